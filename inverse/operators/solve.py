"""prox and pseudo-inverse of any linear operator that has A and A_adjoint, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, NumericsError
from ..conjugate_gradient import conjugate_gradient
from .base import name_of, per_image, require_linear

Map = Callable[[Tensor], Tensor]

PROX_ITERATIONS = 3150  # a bound: it stops when every image has converged
DAGGER_ITERATIONS = 100
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
_ROUND = 50  # iterations before the first look at who has converged


def prox_by_cg(
    operator: Any, z: Tensor, y: Tensor, gamma: float | Tensor, iterations: int = PROX_ITERATIONS,
    tolerance: float | None = None,
) -> Tensor:  # fmt: skip
    """argmin_x gamma / 2 |A x - y|^2 + 1/2 |x - z|^2, of z's shape and dtype; gradients go to z and y, not to gamma.

    Solves (I + gamma A^T A) d = gamma A^T (y - A z) for x = z + d until the residual of each image is below tolerance
    times its right side; the work grows with sqrt(1 + gamma |A|^2).
    gamma: from 0; (B,) for one per image.       tolerance: default 1e-6 in float32, 1e-12 in float64.
    Errors: IncompatibleError for an operator that is not linear; NumericsError if `iterations` are not enough.
    """
    require_linear(operator, "a proximal step")
    weight = per_image(gamma, z).to(z.dtype).detach()
    tolerance = TOLERANCE[_wide(z.dtype)] if tolerance is None else tolerance
    b = weight * operator.A_adjoint(y - operator.A(z))

    def M(d: Tensor) -> Tensor:
        return d + weight * operator.A_adjoint(operator.A(d))

    def solve(b: Tensor) -> Tensor:
        return _until_converged(M, b, iterations, tolerance, name_of(operator))

    return z + _SelfAdjoint.apply(b, solve)


def dagger_by_cg(
    operator: Any, y: Tensor, iterations: int = DAGGER_ITERATIONS, tolerance: float | None = None
) -> Tensor:
    """A^+ y: of the x with the least |A x - y| the shortest; of y's dtype, with gradients.

    Conjugate gradients on A^T A x = A^T y from 0, so x stays in the range of A^T. Always as many `iterations` unless an
    image has |A^T (y - A x)| <= tolerance |A^T y| before. What is then missing lies where the operator hardly sees
    anything: for y = A x0, |A (x - x0)| <= |A| |x0| / (2 iterations + 1) whatever the singular values, and mostly far
    less. Fewer iterations are a regularisation: noise in y is amplified less.
    tolerance: default 1e-6 in float32, 1e-12 in float64.       Errors: IncompatibleError if it is not linear.
    """
    require_linear(operator, "a pseudo-inverse")
    tolerance = TOLERANCE[_wide(y.dtype)] if tolerance is None else tolerance

    def dagger(y: Tensor) -> Tensor:
        b = operator.A_adjoint(y)
        return _least_squares(lambda x: operator.A_adjoint(operator.A(x)), b, iterations, tolerance)

    def transposed(g: Tensor) -> Tensor:
        b = operator.A(g)
        return _least_squares(lambda v: operator.A(operator.A_adjoint(v)), b, iterations, tolerance)

    return _Pair.apply(y, dagger, transposed)  # pyright: ignore[reportReturnType]


def damped_inverse(operator: Any, y: Tensor, gamma: float | Tensor) -> Tensor:
    """argmin_x gamma / 2 |A x - y|^2 + 1/2 |x|^2: a pseudo-inverse that noise does not blow up, of pictures around 0.

    Its gain is at most sqrt(gamma) / 2; gamma = (spread of the pictures / sigma_y)^2 is Wiener's choice. For a
    correction to a picture x: x + damped_inverse(operator, y - A(x), gamma), which is the prox at z = x.
    """
    require_linear(operator, "a damped inverse")
    own: Any = getattr(operator, "prox_l2", None)
    z = torch.zeros_like(operator.A_adjoint(y))
    return prox_by_cg(operator, z, y, gamma) if own is None else own(z, y, gamma)


def _wide(dtype: torch.dtype) -> torch.dtype:
    if dtype not in TOLERANCE:
        raise ConfigError(f"conjugate gradients need float32 or float64, got {dtype}: pass the tensors as .float()")
    return dtype


def _until_converged(M: Map, b: Tensor, iterations: int, tolerance: float, name: str) -> Tensor:
    """M^-1 b in rounds, each from where the last one ended; an image that has converged is left as it is.

    Every round is twice as long as the last one, because a new round forgets the directions of the old one.
    Errors: NumericsError where that takes more than `iterations`, or b is not finite.
    """
    if not bool(torch.isfinite(b).all()):
        raise NumericsError(f"the proximal step of {name} got values in z, y or gamma that are not finite")
    x = torch.zeros_like(b)
    done = torch.zeros(b.shape[0], dtype=torch.bool, device=b.device)
    left, length = iterations, _ROUND
    while left > 0:
        result = conjugate_gradient(M, b, x=x, iterations=min(length, left), tolerance=tolerance)
        x = torch.where(done.view(-1, *(1,) * (b.dim() - 1)), x, result.x)
        done |= result.converged
        left, length = left - length, 2 * length
        if bool(done.all()):
            return x
    worst = ((b - M(x)).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max()
    raise NumericsError(
        f"the proximal step of {name} has not converged after {iterations} iterations of conjugate gradients: an "
        f"image's residual is {float(worst):.2g} of the right side, expected {tolerance:.1g}. Take a smaller gamma (a "
        "larger sigma_y), or for a blur padding='circular', which needs no iterations"
    )


def _least_squares(N: Map, b: Tensor, iterations: int, tolerance: float) -> Tensor:
    # In one go: restarts would forget the directions that make the bound above.
    return conjugate_gradient(N, b, iterations=iterations, tolerance=tolerance).x


class _SelfAdjoint(torch.autograd.Function):
    """b -> solve(b) for the inverse of a symmetric matrix: its gradient is the same solve."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, solve: Map) -> Tensor:
        ctx.solve = solve
        return solve(b)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(gradients[0].contiguous()), None


class _Pair(torch.autograd.Function):
    """y -> forward(y), with the transposed map for gradients."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, forward: Map, transposed: Map) -> Tensor:
        ctx.transposed = transposed
        return forward(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed(gradients[0].contiguous()), None, None
