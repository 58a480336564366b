r"""A linear operator and an affine decoder as one linear operator on the model's own states.

With D(z) = D' z + b the measurement is y = A D(z) + sigma_y n, so H = A D' says how a change of the state changes it.
Models of pixels have D' = c I (c = 1/2 for states in [-1, 1]); then everything is the operator's own closed form.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleError
from .operators.base import is_linear, name_of
from .operators.solve import dagger_by_cg, damped_inverse
from .problem import Problem

AFFINE = 1e-3  # how far a decoder may be from affine, relative; that of tiny-sd is 0.7


def check_linear(operator: Any, method: str) -> None:
    """IncompatibleError for an operator that is not linear."""
    if not is_linear(operator):
        raise IncompatibleError(f"{method} needs a linear operator, one with A_adjoint(y), got "
                                f"{name_of(operator)}: take LDPS or STSL")  # fmt: skip


class StateOperator:
    """H, for operators that are linear and decoders that are affine.

    method: who asks, for messages. The decoder is tried on four states, which no ledger counts.
    scale: c where D' = c I, else None, and pseudo-inverses are by conjugate gradients.
    Errors: IncompatibleError for any other operator or decoder.
    """

    def __init__(self, problem: Problem, method: str) -> None:
        self.operator, self._decode = problem.measurement.operator, problem.to_pixels
        check_linear(self.operator, method)
        guess = problem.measurement.guess()[:1]
        shape = problem.backbone.latent_shape(*guess.shape[-2:])
        self._zero = guess.new_zeros(1, *shape)
        decode = problem.backbone.to_pixels
        self._offset = decode(self._zero)
        generator = torch.Generator("cpu").manual_seed(0)
        a, b = (torch.randn(1, *shape, generator=generator, dtype=torch.float64).to(guess) for _ in range(2))
        Da, Db, Dab = (decode(z) - self._offset for z in (a, b, a + 2.0 * b))
        if float((Dab - Da - 2.0 * Db).norm()) > AFFINE * float(Da.norm() + 2.0 * Db.norm()):
            raise IncompatibleError(f"{method} needs a model whose states are pixels, or an affine decoder, and this "
                                    f"{type(problem.backbone).__name__}'s is neither: take LDPS or STSL")  # fmt: skip
        self.scale = _multiple(a, Da)

    def A(self, z: Tensor) -> Tensor:
        """H z, of y's shape."""
        return self.operator.A(self._decode(z) - self._offset if self.scale is None else self.scale * z)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """H^T y, of a state's shape."""
        x = self.operator.A_adjoint(y)
        if self.scale is not None:
            return self.scale * x
        with torch.enable_grad():
            z = self._zero.expand(y.shape[0], *self._zero.shape[1:]).clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self._decode(z), z, x)
        return gradient

    def damped(self, r: Tensor, gamma: float) -> Tensor:
        """gamma H^T (I + gamma H H^T)^-1 r, of a state's shape; H^+ r where gamma is infinite."""
        c = self.scale
        operator: Any = self if c is None else self.operator
        factor = 1.0 if c is None else c
        if math.isfinite(gamma):
            return damped_inverse(operator, r, gamma * factor**2) / factor
        own: Any = getattr(operator, "A_dagger", None)
        return torch.divide(own(r) if own else dagger_by_cg(operator, r), factor)


def _multiple(z: Tensor, Dz: Tensor) -> float | None:
    """c where Dz is c z to rounding."""
    if Dz.shape != z.shape:
        return None
    rounding = 64.0 * torch.finfo(z.dtype).eps
    z, Dz = z.cpu().double(), Dz.cpu().double()
    c = float((Dz * z).sum() / z.square().sum())
    return c if c != 0.0 and float((Dz - c * z).norm()) <= rounding * float(Dz.norm()) else None
