"""Nothing but noise between the picture and the measurement."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import check_images, per_image


@dataclass(frozen=True)
class Denoise:
    """A = I."""

    name = "denoising"

    def A(self, x: Tensor) -> Tensor:
        check_images(x)
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        check_images(y, "y")
        return y

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)

    def guess(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        check_images(z, "z")
        g = per_image(gamma, z).to(z.dtype)
        return z + g / (1.0 + g) * (y - z)
