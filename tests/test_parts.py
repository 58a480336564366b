"""The small parts: phi functions, linear forms, combine, noise, states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.kernels.ops import combine
from fewstep.samplers import (
    SOLVERS,
    DiscreteVP,
    DPMpp2M,
    GeneratorTape,
    NoiseTape,
    edit,
    initial_noise,
    solve,
    start,
    trace,
    uniform_lambda,
)
from fewstep.samplers.form import LinearForm
from fewstep.samplers.phi import g

from .problems import Mixture

SD = DiscreteVP.scaled_linear()


@pytest.mark.parametrize("z", [1e-8, 1e-4, 0.01, 0.5, 1.0, 1.99, 2.01, 7.0, -0.005, -0.5, -1.99, -2.01, -9.0])
def test_phi_functions_against_quadrature(z):
    """z^n g_n(z) is the integral of e^{z-u} u^n / n! over (0, z); Gauss-Legendre with 60 nodes is exact here."""
    u, w = np.polynomial.legendre.leggauss(60)
    u, w = 0.5 * z * (u + 1.0), 0.5 * z * w
    for n in range(5):
        expected = float((np.exp(z - u) * u**n / math.factorial(n) * w).sum())
        assert math.isclose(z**n * g(n, z), expected, rel_tol=1e-13)


def test_phi_functions_at_infinity():
    assert [g(n, -math.inf) for n in range(4)] == [-1.0, -1.0, -0.5, -1.0 / 6.0]


def test_a_linear_form_is_linear_and_nothing_else():
    a, b = LinearForm.register("a"), LinearForm.register("b")
    assert (2.0 * a - b / 4.0 + np.float64(3.0) * a).terms == {"a": 5.0, "b": -0.25}
    assert (a - a).terms == {} and (0.0 * a).terms == {} and (-a).terms == {"a": -1.0}
    for wrong in (lambda: a * b, lambda: a + 1.0, lambda: a / b, lambda: 1.0 / a, lambda: a - 2.0):
        with pytest.raises(TypeError):
            wrong()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda m: st.integers(1, 8).flatmap(
            lambda n: st.lists(
                st.lists(st.sampled_from([0.0, 1.0, -1.3, 0.7, 2.5e-3]), min_size=n, max_size=n), min_size=m, max_size=m
            )
        )
    )
)
def test_combine_is_a_matrix_product_that_skips_zeros(rows):
    C = tuple(tuple(row) for row in rows)
    generator = torch.Generator().manual_seed(1)
    registers = [torch.randn(3, 5, dtype=torch.float64, generator=generator) for _ in rows[0]]
    expected = torch.einsum("mn,nbk->mbk", torch.tensor(rows, dtype=torch.float64), torch.stack(registers))
    poisoned = [r if any(row[k] for row in rows) else r * math.nan for k, r in enumerate(registers)]
    per_image = torch.tensor(rows, dtype=torch.float64).expand(3, -1, -1)
    for outputs in (combine(C, poisoned), combine(per_image, poisoned)):
        assert torch.allclose(torch.stack(outputs), expected, rtol=1e-13, atol=1e-14)


def test_combine_accumulates_half_precision_in_float32():
    x = torch.randn(4, 8)
    u, c = (torch.randn(4, 8).half() for _ in range(2))
    C = ((1.1, -6.5, 7.5), (0.3, -1.3, 1.5))
    outputs = combine(C, (x, u, c))
    exact = [sum(k * r.double() for k, r in zip(line, (x, u, c), strict=True)) for line in C]
    assert all(y.dtype == torch.float32 for y in outputs)
    assert all(torch.allclose(y.double(), e, rtol=0, atol=1e-5) for y, e in zip(outputs, exact, strict=True))
    assert [y.dtype for y in combine(C, (x, u, c), (torch.float16, torch.float32))] == [torch.float16, torch.float32]


# ---------------------------------------------------------------- noise


def test_initial_noise_is_diffusers_noise_for_any_batch():
    from diffusers.utils.torch_utils import randn_tensor

    batch = initial_noise((7, 8, 9), (4, 8, 8))
    for k, seed in enumerate((7, 8, 9)):
        alone = randn_tensor((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(seed))
        assert torch.equal(batch[k : k + 1], alone)
        assert torch.equal(initial_noise((seed,), (4, 8, 8)), alone)


def test_tape_noise_depends_on_image_and_tick_alone():
    x = torch.zeros(3, 4, 8, 8)
    s, t = SD.level(500), SD.level(400)
    batch = NoiseTape((5, 6, 7)).normal(2, s, t, x)
    assert torch.equal(batch[1:2], NoiseTape((6,)).normal(2, s, t, x[:1]))
    assert torch.equal(batch, NoiseTape((5, 6, 7)).normal(2, s, t, x))
    draws = torch.stack([NoiseTape((k,)).normal(i, s, t, x[:1]) for k in range(40) for i in range(20)]).flatten(1)
    assert abs(float(draws.mean())) < 4 / draws.numel() ** 0.5
    assert abs(float(draws.var()) - 1) < 4 * (2 / draws.numel()) ** 0.5
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert float(correlation.abs().max()) < 6.5 / draws.shape[1] ** 0.5
    with pytest.raises(ConfigError, match="2 seeds for a batch of 3"):
        NoiseTape((1, 2)).normal(0, s, t, x)
    with pytest.raises(ConfigError, match="generators"):
        GeneratorTape([torch.Generator()]).normal(0, s, t, x)


def test_solve_asks_for_noise_it_needs():
    table = trace(SOLVERS["sde-2m"](), uniform_lambda(SD, 4), SD)
    with pytest.raises(ConfigError, match="NoiseTape"):
        solve(table, Mixture(SD), torch.zeros(1, 2))


def test_states_are_floating_and_never_half():
    table = trace(DPMpp2M(), uniform_lambda(SD, 2), SD)
    assert start(table, torch.zeros(1, 2, dtype=torch.float16)).x.dtype == torch.float32
    with pytest.raises(IncompatibleError, match="floating"):
        start(table, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(IncompatibleError, match="shape"):
        edit(table, start(table, torch.zeros(1, 2)), torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="tick 2 does not exist"):
        start(table, torch.zeros(1, 2), tick=2)
