"""Ancestral steps of second order: the split, the inner node, the coefficients against k-diffusion's formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import KDPM2AncestralDiscreteScheduler

from fewstep.errors import ConfigError
from fewstep.samplers import (
    EDM,
    DiscreteVP,
    DPM2Ancestral,
    DPMpp2SAncestral,
    DPMppSDE,
    GeneratorTape,
    Level,
    RectifiedFlow,
    level_at,
    solve,
    trace,
    uniform_lambda,
)
from fewstep.samplers.ddim import split

from .problems import Mixture
from .solver_rows import VP, relative, states, uneven_levels


def x_next(row):
    """x_next of a table's row as {input: coefficient}."""
    return dict(zip(row.inputs, row.coefficients[0], strict=True))


def test_a_split_keeps_the_variance():
    s = level_at(VP, -1.0)
    for t in (level_at(VP, -0.9), level_at(VP, 2.0), VP.clean, Level(0.0, 0.3, 0.7)):
        for eta in (0.0, 0.3, 1.0, 1.2, 5.0):
            for start in (s, RectifiedFlow().noisiest):
                d, up = split(start, t, eta)
                assert math.isclose(d.sigma**2 + up**2, t.sigma**2, rel_tol=1e-14) and d.alpha == t.alpha
                assert 0.0 <= up <= t.sigma
    t = level_at(VP, 1.0)
    assert math.isclose(split(s, t, 1.0)[0].sigma / t.sigma, math.exp(s.lam - t.lam), rel_tol=1e-14)  # no cancellation
    assert split(s, t, 5.0) == (t._replace(sigma=0.0), t.sigma)


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.05])
def test_ancestral_steps_are_k_diffusions(eta):
    """In k-diffusion's variables (alpha = 1 after division, sigma / alpha), with D the denoised image:

    dpm-2 a: x + (sigma_down - sigma) (x2 - D2) / sigma_mid;    2s a: down x + (1 - down) D2, down = sigma_down / sigma.
    """
    levels = uneven_levels(5)
    for k, (s, t) in enumerate(itertools.pairwise(levels)):
        a, b = s.sigma / s.alpha, t.sigma / t.alpha
        up = min(b, eta * math.sqrt(b**2 * (a**2 - b**2) / a**2))
        down = math.sqrt(b**2 - up**2)
        mid = math.sqrt(a * down)
        for solver in (DPM2Ancestral(eta), DPMpp2SAncestral(eta)):
            table = trace(solver, levels, VP)
            node = table.plan.nodes[2 * k + 1]
            assert math.isclose(node.sigma / node.alpha, mid, rel_tol=1e-12)
            first, second = (x_next(table.rows[j]) for j in (2 * k, 2 * k + 1))
            assert first["noise"] == 0.0
            assert math.isclose(first["eps"] / node.alpha, mid, rel_tol=1e-12)
            assert math.isclose(first["x0"] / node.alpha, 1.0, rel_tol=1e-12)
            assert math.isclose(second["noise"] / t.alpha, up, rel_tol=1e-12)
            if isinstance(solver, DPM2Ancestral):
                of_x, of_m, inner = 1.0 / s.alpha, down - a, second["eps"]
            else:
                of_x, of_m, inner = down / a / s.alpha, 1.0 - down / a, second["x0"]
            assert math.isclose(second["carry0"] / t.alpha, of_x, rel_tol=1e-11)
            assert math.isclose(inner / t.alpha, of_m, rel_tol=1e-11)
            assert abs(second.get("carry1", 0.0)) < 1e-12


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # in diffusers, with numpy 2
def test_dpm2_ancestral_is_diffusers():
    """The same noises and evaluations as KDPM2AncestralDiscreteScheduler on its own levels, which are float32: 1e-7."""
    peer = KDPM2AncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    peer.set_timesteps(8)
    sigmas = list(dict.fromkeys(float(v) for v in peer.sigmas))  # each stands there twice
    schedule = EDM(1e-9, 1e9)
    network, levels = Mixture(schedule), tuple(Level(sigma, 1.0, sigma) for sigma in sigmas)
    x = sigmas[0] * states(4, 6)
    ours = solve(
        trace(DPM2Ancestral(), levels, schedule), network, x, tape=GeneratorTape(torch.Generator().manual_seed(1))
    ).x
    generator = torch.Generator().manual_seed(1)
    for time in peer.timesteps:
        k = peer.step_index or 0
        sigma = float(peer.sigmas[k] if peer.state_in_first_order else peer.sigmas_interpol[k - 1])
        eps = network(x, Level(sigma, 1.0, sigma), ("cond",))[0]
        x = peer.step(eps, time, x, generator=generator).prev_sample
    assert relative(ours, x) < 1e-6


def test_more_noise_than_there_is():
    """eta so large that down = 0: the step is the predicted image and all of sigma_t as noise, in one evaluation."""
    levels = uneven_levels(3)
    for solver in (DPM2Ancestral(3.0), DPMpp2SAncestral(3.0)):
        table = trace(solver, levels, VP)
        assert len(table) == 3
        for row, t in zip(table.rows, levels[1:], strict=True):
            assert row.coefficients[0] == (0.0, t.alpha, 0.0, t.sigma)


def test_beyond_the_last_trained_level():
    schedule = DiscreteVP.scaled_linear()
    levels = uniform_lambda(schedule, 20, to_zero=False)
    trace(DPMpp2SAncestral(), levels, schedule)
    with pytest.raises(ConfigError, match="use eta <= 1"):
        trace(DPMpp2SAncestral(1.1), levels, schedule)


@pytest.mark.parametrize("solver", [DPMppSDE(), DPMppSDE(0.5), DPM2Ancestral(), DPMpp2SAncestral(0.5)], ids=repr)
def test_an_edit_in_the_middle_of_a_step(solver):
    """Without its carry the rest of a step has first order and keeps the marginal: alpha_t x0, and sigma_t in all."""
    levels = uneven_levels(5)
    table = trace(solver, levels, VP)
    for i in range(1, len(table), 2):
        _, x0, eps, noise = table.row(i, 0).coefficients[0]
        t = table.plan.targets[i]
        assert x0 == t.alpha and math.isclose(math.hypot(eps, noise), t.sigma, rel_tol=1e-12)
