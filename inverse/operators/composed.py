"""One operator after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import IncompatibleError
from .base import is_linear, name_of, require_linear
from .denoise import Denoise
from .solve import DAGGER_ITERATIONS, dagger_by_cg, prox_by_cg


@dataclass(frozen=True)
class Composed:
    """A x = second.A(first.A(x)).

    It is linear where both parts are; else A_adjoint, A_dagger and prox_l2 raise IncompatibleError. Where one part is
    Denoise the other's A_dagger and prox_l2 are taken, if it has them; otherwise they are by conjugate gradients (see
    `solve`).
    iterations: of the pseudo-inverse.
    """

    second: Any
    first: Any
    iterations: int = DAGGER_ITERATIONS

    def __post_init__(self) -> None:
        for part in (self.second, self.first):
            if not callable(getattr(part, "A", None)):
                raise IncompatibleError(f"{name_of(part)} is no operator: it has no method A(x)")

    @property
    def name(self) -> str:
        return f"{name_of(self.second)} after {name_of(self.first)}"

    @property
    def linear(self) -> bool:
        return is_linear(self.second) and is_linear(self.first)

    def A(self, x: Tensor) -> Tensor:
        return self.second.A(self.first.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        require_linear(self, "an adjoint")
        return self.first.A_adjoint(self.second.A_adjoint(y))

    def A_dagger(self, y: Tensor) -> Tensor:
        if (method := self._of_only("A_dagger")) is not None:
            return method(y)
        return dagger_by_cg(self, y, self.iterations)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        if (method := self._of_only("prox_l2")) is not None:
            return method(z, y, gamma)
        return prox_by_cg(self, z, y, gamma)

    def guess(self, y: Tensor) -> Tensor:
        """The first part's guess from the second's."""
        return guess_of(self.first, guess_of(self.second, y))

    def observed(self, y: Tensor) -> Tensor | None:
        """What the second part measures; the first part's hole is lost in it, unless the second is Denoise."""
        last = self.first if isinstance(self.second, Denoise) else self.second
        method: Any = getattr(last, "observed", None)
        return None if method is None else method(y)

    def _of_only(self, name: str) -> Any | None:
        """The method of the one part that is not Denoise, if it has one."""
        require_linear(self, "a pseudo-inverse or proximal step")
        if isinstance(self.second, Denoise):
            return getattr(self.first, name, None)
        return getattr(self.second, name, None) if isinstance(self.first, Denoise) else None


def guess_of(operator: Any, y: Tensor) -> Tensor:
    """A first picture: the operator's guess, else (anybody's physics) its pseudo-inverse, else the multiple of its
    adjoint that is nearest to y, for an adjoint alone may be as much too dark as A averages.

    Errors: IncompatibleError where it has none of them.
    """
    names = ("guess", "A_dagger") if is_linear(operator) else ("guess",)
    for name in names:
        method: Any = getattr(operator, name, None)
        if method is not None:
            return method(y)
    if is_linear(operator):
        return _nearest_multiple(operator, y)
    raise IncompatibleError(f"nothing says how large the pictures of {name_of(operator)} are: give it guess(y), a "
                            "first picture (B, C, H, W)")  # fmt: skip


def _nearest_multiple(operator: Any, y: Tensor) -> Tensor:
    """c A^T y with c = <y, A A^T y> / |A A^T y|^2 per image; the pseudo-inverse where A A^T is a multiple of I."""
    x = operator.A_adjoint(y)
    back = operator.A(x).flatten(1)
    squared = back.square().sum(1)
    c = torch.where(squared > 0.0, (y.flatten(1) * back).sum(1) / squared, 1.0)
    return c.view(-1, *[1] * (x.dim() - 1)) * x
