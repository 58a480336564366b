"""Measurements of vectors (B, 1, 1, d): dense matrices, and two nonlinear ones."""

from __future__ import annotations

import torch
from torch import Tensor


class LinearMap:
    """y = A x, (B, 1, 1, d) to (B, 1, 1, m), with the exact adjoint, pseudo-inverse and prox.

    A: (m, d), kept in float64; results have the dtype of what went in.
    """

    def __init__(self, A: Tensor) -> None:
        self.matrix = A.double()
        self._U, self._s, self._Vh = torch.linalg.svd(self.matrix, full_matrices=False)

    def A(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x.dtype)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y.dtype)

    def A_dagger(self, y: Tensor) -> Tensor:
        small = self._s <= self._s.max() * max(self.matrix.shape) * torch.finfo(torch.float64).eps
        inverse = torch.where(small, 0.0, 1.0 / self._s)
        return ((y.double() @ self._U * inverse) @ self._Vh).to(y.dtype)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """argmin_x gamma / 2 |A x - y|^2 + 1/2 |x - z|^2: only what A sees of z - A^T y changes.

        gamma: from 0; a tensor (B,) for one per image.
        """
        g = gamma.double().reshape(-1, 1, 1, 1) if isinstance(gamma, Tensor) else gamma
        z_, y_ = z.double(), y.double()
        seen = z_ @ self._Vh.T
        wanted = (seen + g * self._s * (y_ @ self._U)) / (1.0 + g * self._s**2)
        return (z_ + (wanted - seen) @ self._Vh).to(z.dtype)


class Modulus:
    """y = |x|, number by number. It has no adjoint; a first picture is y itself."""

    def A(self, x: Tensor) -> Tensor:
        return x.abs()

    def guess(self, y: Tensor) -> Tensor:
        return y


class Square:
    """y = x^2, number by number. It has no adjoint; a first picture is the positive root."""

    def A(self, x: Tensor) -> Tensor:
        return x.square()

    def guess(self, y: Tensor) -> Tensor:
        return y.clamp_min(0.0).sqrt()
