"""Every linear operator: adjoint, pseudo-inverse, proximal step, batches, gradients, sizes and parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.inverse.operators import (
    Downsample,
    GaussianBlur,
    InpaintBox,
    InpaintRandom,
    KernelBlur,
    LinearOperator,
    MotionBlur,
    Operator,
    dagger_by_cg,
    damped_inverse,
    guess_of,
    is_linear,
    name_of,
    prox_by_cg,
)
from fewstep.inverse.operators.solve import TOLERANCE

from .operator_rows import (
    EPS,
    NAMES,
    OURS,
    SIZE,
    dot,
    matrix_of,
    norm_bound,
    normal,
    pictures,
    row_of,
    size_of,
)

every = pytest.mark.parametrize("name", NAMES)
ours = pytest.mark.parametrize("name", OURS)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
GAMMAS = (3.0, 400.0)  # 400: sigma_y = 0.05


@every
@dtypes
def test_adjoint(name, dtype):
    operator = row_of(name, dtype).operator
    x = pictures(2, dtype)
    y = operator.A(x)
    v = normal(y, 1)
    assert y.dtype == operator.A_adjoint(v).dtype == dtype
    assert operator.A_adjoint(v).shape == x.shape
    scale = size_of(y) * size_of(v)
    assert abs(dot(y, v) - dot(x, operator.A_adjoint(v))) <= {torch.float64: 1e-10, torch.float32: 1e-5}[dtype] * scale


@every
@dtypes
def test_A_of_dagger_of_A_is_A(name, dtype):
    """|A (x' - x)| for x' = A^+ A x, up to

    - rounding in A^+ y, which may be far larger than x;
    - the singular values that are left out: each at most `cut` times the largest;
    - conjugate gradients that stop early: |A| |x| / (2 k + 1);
    - or that converge to a residual rho = A^T A (x' - x), of which |A (x' - x)| <= |rho| / the smallest singular value.
    """
    row = row_of(name, dtype)
    x = pictures(2, dtype)
    y = row.operator.A(x)
    found = row.operator.A_dagger(y)
    assert found.shape == x.shape and found.dtype == dtype
    bound = 100 * EPS[dtype] * (size_of(found) + size_of(y)) + row.solver * size_of(y)
    if row.smallest:
        bound += TOLERANCE[dtype] * size_of(row.operator.A_adjoint(y)) / row.smallest
    if row.cut or row.iterations:
        part = row.cut + (1 / (2 * row.iterations + 1) if row.iterations else 0.0)
        bound += part * norm_bound(row.operator, x) * size_of(x)
    assert size_of(row.operator.A(found) - y) <= bound


@ours
def test_dagger_is_the_pseudo_inverse_and_prox_the_minimiser(name):
    """Against dense matrices: torch.linalg.pinv with the same cut, and a direct solve."""
    row = OURS[name]
    operator, shape = row.operator, SIZE if name == "mask per channel" else (1, *SIZE[1:])
    A = matrix_of(operator.A, shape)
    x = pictures(1, size=shape)
    y = normal(operator.A(x), 3)  # not in the range of A
    assert torch.allclose(matrix_of(operator.A_adjoint, tuple(y.shape[1:])), A.mT, rtol=0, atol=1e-13)
    if not row.iterations:
        expected = torch.linalg.pinv(A, rtol=row.cut or 1e-6) @ y.flatten()
        # What rounding leaves of y is amplified by 1 / the smallest singular value that is kept.
        kept = min(row.cut or 1.0, row.smallest or 1.0, 0.01)
        tolerance = 1e-12 / kept * size_of(expected)
        assert torch.allclose(operator.A_dagger(y).flatten(), expected, rtol=0, atol=tolerance)
    z, gamma = normal(x, 4), 50.0
    M = torch.eye(A.shape[1], dtype=torch.float64) + gamma * A.mT @ A
    expected = torch.linalg.solve(M, z.flatten() + gamma * A.mT @ y.flatten())
    assert torch.allclose(operator.prox_l2(z, y, gamma).flatten(), expected, rtol=0, atol=1e-10 * size_of(expected))


@every
@dtypes
@pytest.mark.parametrize("gamma", GAMMAS)
def test_prox_is_where_the_gradient_is_zero(name, dtype, gamma):
    """gamma A^T (A p - y) + p - z = 0, up to rounding of its terms and the residual that CG is asked for."""
    row = row_of(name, dtype)
    operator = row.operator
    z = pictures(2, dtype)
    y = operator.A(pictures(2, dtype, seed=7)) + 0.05 * normal(operator.A(z), 8)
    p = operator.prox_l2(z, y, gamma)
    gradient = gamma * operator.A_adjoint(operator.A(p) - y) + p - z
    terms = (1 + gamma) * (size_of(p) + size_of(y)) + size_of(z)
    asked = row.solver + (0.0 if row.exact else TOLERANCE[dtype]) * gamma / (1 + gamma)
    assert p.dtype == dtype
    assert size_of(gradient) <= (50 * EPS[dtype] + asked) * terms
    if name in OURS:
        assert torch.equal(operator.prox_l2(z, y, 0.0), z)


@ours
@dtypes
def test_batch_is_singles(name, dtype):
    operator = OURS[name].operator
    x, z = pictures(2, dtype), pictures(2, dtype, seed=2)
    y = operator.A(x) + 0.05 * normal(operator.A(x), 1)
    gammas = torch.tensor([0.5, 400.0])
    together = (operator.A(x), operator.A_adjoint(y), operator.A_dagger(y), operator.prox_l2(z, y, gammas))
    for k in range(2):
        one = slice(k, k + 1)
        alone = (operator.A(x[one]), operator.A_adjoint(y[one]), operator.A_dagger(y[one]),
                 operator.prox_l2(z[one], y[one], float(gammas[k])))  # fmt: skip
        for many, single in zip(together, alone, strict=True):
            tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[dtype] * max(1.0, float(single.abs().max()))
            assert torch.allclose(many[one], single, rtol=0, atol=tolerance)


@ours
def test_gradients(name):
    """The vector-Jacobian products are the transposes: of A it is A^T; the others by <u, f(w)> = <f^T u, w>."""
    row = OURS[name]
    operator = row.operator
    x = pictures(2).requires_grad_()
    y = operator.A(x)
    v = normal(y, 1)
    (gradient,) = torch.autograd.grad(y, x, v)
    assert torch.allclose(gradient, operator.A_adjoint(v), rtol=0, atol=1e-13)

    y, z = y.detach().requires_grad_(), pictures(2, seed=5).requires_grad_()
    u, w = normal(x, 2), normal(v, 3)
    maps = [(operator.A_adjoint, (y,), (w,))]
    if not row.iterations:  # unconverged iterations depend on y in other ways too
        maps.append((operator.A_dagger, (y,), (w,)))
    maps.append((lambda z, y: operator.prox_l2(z, y, 30.0), (z, y), (normal(u, 4), w)))
    for f, inputs, others in maps:
        gradients = torch.autograd.grad(f(*inputs), inputs, u)
        transposed = sum(dot(g, o) for g, o in zip(gradients, others, strict=True))
        found = dot(u, f(*others))
        assert abs(found - transposed) <= 1e-9 * size_of(u) * size_of(f(*others))


@ours
def test_cached_parts_made_in_inference_mode_take_gradients(name):
    operator = OURS[name].operator
    size = SIZE if name == "mask per channel" else (1, *SIZE[1:])
    x = pictures(1, torch.float32, size=size)
    with torch.inference_mode():
        operator.prox_l2(x, operator.A(x), 2.0)
    x.requires_grad_()
    assert torch.autograd.grad(operator.prox_l2(x, operator.A(x), 2.0).sum(), x)[0].isfinite().all()


@ours
def test_guess_and_protocols(name):
    operator = OURS[name].operator
    assert isinstance(operator, LinearOperator) and is_linear(operator) and name_of(operator) != type(operator).__name__
    x = pictures(2, torch.float32)
    y = operator.A(x)
    guess = operator.guess(y)
    assert guess.shape == x.shape and guess.dtype == x.dtype
    flat = torch.full_like(x, 0.25)  # a picture without detail is guessed right from what is seen of it
    assert torch.allclose(operator.guess(operator.A(flat)), flat, rtol=0, atol=1e-6)
    assert guess_of(operator, y).equal(guess)


# --- sizes and parameters ---------------------------------------------------------------------------------------------

sides = st.integers(5, 20)
seeds = st.integers(0, 2**63 - 1)
blurs = st.one_of(
    st.builds(GaussianBlur, st.floats(0.1, 5.0), st.none() | st.sampled_from([1, 3, 5]),
              st.sampled_from(["reflect", "circular"])),
    st.builds(MotionBlur, st.sampled_from([None, 1, 3, 5]), st.floats(0.0, 1.0), seeds,
              st.sampled_from(["reflect", "circular"])),
    st.builds(lambda h, w, padding, seed: KernelBlur(torch.rand(h, w, generator=torch.Generator().manual_seed(seed)),
                                                     padding),
              st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5]), st.sampled_from(["reflect", "circular"]), seeds),
)  # fmt: skip
holes = st.one_of(
    st.builds(InpaintBox, st.floats(0.05, 0.7), st.just("center"), st.just(0.0), seeds),
    st.builds(InpaintBox, st.integers(1, 3), st.just("random"), st.sampled_from([0, 1, 0.1]), seeds),
    st.builds(InpaintRandom, st.floats(0.0, 0.9), seeds),
)


def check_identities(operator, x):
    y = operator.A(x)
    v = normal(y, 1)
    assert abs(dot(y, v) - dot(x, operator.A_adjoint(v))) <= 1e-10 * size_of(x) * size_of(v)
    p = operator.prox_l2(x, v, 20.0)
    gradient = 20.0 * operator.A_adjoint(operator.A(p) - v) + p - x
    assert size_of(gradient) <= 1e-10 * (size_of(x) + size_of(v))


@settings(max_examples=40, deadline=None)
@given(st.one_of(blurs, holes), sides, sides, st.sampled_from([1, 3]))
def test_any_blur_and_hole(operator, height, width, channels):
    check_identities(operator, pictures(2, size=(channels, height, width)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from(["bicubic", "average"]), st.integers(1, 4), st.integers(1, 4))
def test_any_factor(factor, filter, rows, columns):
    operator = Downsample(factor, filter)
    x = pictures(1, size=(3, rows * factor, columns * factor))
    check_identities(operator, x)
    y = operator.A(x)
    assert y.shape == (1, 3, rows, columns)
    assert size_of(operator.A(operator.A_dagger(y)) - y) <= 1e-11 * size_of(y)
    assert torch.allclose(operator.A(torch.ones_like(x)), torch.ones_like(y), rtol=0, atol=1e-13)


# --- solve and composition --------------------------------------------------------------------------------------------


class Scaled:
    """Somebody's operator with nothing but A and A_adjoint."""

    def A(self, x):
        return 0.5 * x[..., ::2]

    def A_adjoint(self, y):
        return torch.stack((0.5 * y, torch.zeros_like(y)), -1).flatten(-2)


def test_operators_with_an_adjoint_only():
    x = pictures(2)
    operator = Scaled()
    assert not isinstance(operator, Operator) and is_linear(operator) and name_of(operator) == "Scaled"
    y = operator.A(x)
    seen = torch.stack((x[..., ::2], torch.zeros_like(x[..., ::2])), -1).flatten(-2)
    assert torch.allclose(dagger_by_cg(operator, y), seen, rtol=0, atol=1e-12)
    expected = torch.stack((4.0 * 0.5 * y / (1 + 4.0 * 0.25), torch.zeros_like(y)), -1).flatten(-2)
    assert torch.allclose(prox_by_cg(operator, torch.zeros_like(x), y, 4.0), expected, rtol=0, atol=1e-12)
    assert torch.allclose(damped_inverse(operator, y, 4.0), expected, rtol=0, atol=1e-12)
    assert guess_of(operator, y).shape == x.shape
