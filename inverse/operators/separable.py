r"""Operators that are one small matrix per axis: Y = L X R^T for each channel.

With the two thin singular value decompositions L = U S V^T, R = U' S' V'^T the singular values of the whole are all the
products s_i s'_j, so adjoint, pseudo-inverse and prox are exact:

    A x     = U  [ (s s')        . (V^T X V') ] U'^T
    A^+ y   = V  [ (1 / (s s'))  . (U^T Y U') ] V'^T         where s s' > rcond max(s s')
    prox    = z + V [ g s s' / (1 + g (s s')^2) . (U^T Y U' - s s' . V^T Z V') ] V'^T      g = gamma
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .base import check_images, constant, per_image


class Decomposed(NamedTuple):
    """The thin decomposition U [m, k] diag(S [k]) Vt [k, n] of a matrix [m, n]."""

    U: Tensor
    S: Tensor
    Vt: Tensor


class Separable:
    """Base of the operators whose A is one matrix per axis.

    A subclass says `axes(H, W)`, L and R for a picture's sides, float64 on the CPU, `shape_of(y)`, its (H, W) for a y,
    and `rcond`. The decompositions grow with the cube of a side, so they are made where they are needed first.
    """

    rcond: float

    def axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def shape_of(self, y: Tensor) -> tuple[int, int]:
        raise NotImplementedError

    def A(self, x: Tensor) -> Tensor:
        check_images(x)
        L, R = _moved(self, x.shape[-2], x.shape[-1], x.dtype, x.device)
        return _apply(L, x, R)

    def A_adjoint(self, y: Tensor) -> Tensor:
        check_images(y, "y")
        L, R = _moved(self, *self.shape_of(y), y.dtype, y.device)
        return _apply(L.mT, y, R.mT)

    def A_dagger(self, y: Tensor) -> Tensor:
        """A^+ y, of the operator without the singular values below `rcond` times the largest."""
        check_images(y, "y")
        L, R = _decomposed(self, *self.shape_of(y), y.dtype, y.device)
        inner = _apply(L.U.mT, y, R.U.mT) * _inverse(self, *self.shape_of(y), y.dtype, y.device)
        return _apply(L.Vt.mT, inner, R.Vt.mT)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        check_images(z, "z")
        check_images(y, "y")
        L, R = _decomposed(self, z.shape[-2], z.shape[-1], z.dtype, z.device)
        s = L.S[:, None] * R.S
        g = per_image(gamma, z).to(z.dtype)
        seen = _apply(L.U.mT, y, R.U.mT) - s * _apply(L.Vt, z, R.Vt)
        return z + _apply(L.Vt.mT, g * s / (1.0 + g * s.square()) * seen, R.Vt.mT)


@lru_cache(maxsize=16)
def _moved(
    operator: Separable, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both matrices where they are needed: they are small, and asked for at every step."""
    L, R = operator.axes(height, width)
    return constant(lambda: (L.to(device, dtype), R.to(device, dtype)))


@lru_cache(maxsize=16)
def _decomposed(
    operator: Separable, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Decomposed, Decomposed]:
    if (dtype, device.type) != (torch.float64, "cpu"):
        found = _decomposed(operator, height, width, torch.float64, torch.device("cpu"))
        return constant(lambda: (_to(found[0], dtype, device), _to(found[1], dtype, device)))
    L, R = operator.axes(height, width)

    def make() -> tuple[Decomposed, Decomposed]:
        left = Decomposed(*torch.linalg.svd(L, full_matrices=False))
        return left, left if R is L else Decomposed(*torch.linalg.svd(R, full_matrices=False))

    return constant(make)


@lru_cache(maxsize=16)
def _inverse(operator: Separable, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 / (s s') where it counts, else 0. What counts is decided in float64, alike for every dtype."""
    L, R = _decomposed(operator, height, width, torch.float64, torch.device("cpu"))

    def make() -> Tensor:
        s = L.S[:, None] * R.S
        kept = s > operator.rcond * s.max()
        return torch.where(kept, 1.0 / torch.where(kept, s, 1.0), 0.0).to(device, dtype)

    return constant(make)


def _to(found: Decomposed, dtype: torch.dtype, device: torch.device) -> Decomposed:
    return Decomposed(*(part.to(device, dtype) for part in found))


def _apply(L: Tensor, x: Tensor, R: Tensor) -> Tensor:
    """L X R^T for every image and channel, in x's dtype whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        return L @ x @ R.mT
