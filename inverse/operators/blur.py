"""Gaussian blur: one matrix per axis, so everything is exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from .base import check_choice, check_fraction, check_images, check_whole, constant
from .separable import Separable

Padding = Literal["reflect", "circular"]
PADDINGS = ("reflect", "circular")


@dataclass(frozen=True)
class GaussianBlur(Separable):
    """Convolution with a Gaussian; the measurement has the picture's size.

    std: of the Gaussian in pixels. None: 3 pixels in 256, and as much of the shorter side in other sizes (0.75
    in 64, 6 in 512).
    size: pixels of the kernel, odd. None: up to 4 std to each side. The field's are 61 with std 3 in 256 pixels, and
    121 with std 3 in 512; what lies beyond 4 std is below 1e-4 of it per axis.
    padding: beyond the edge, "reflect" (the edge pixel once, the field's) or "circular".
    rcond: A_dagger leaves out the singular values below this part of the largest. A Gaussian has ever smaller ones: for
    measurements with noise take 0.01 to 0.1, or `solve.damped_inverse`; prox_l2 needs none.
    Adjoint, pseudo-inverse and prox are exact.
    """

    std: float | None = None
    size: int | None = None
    padding: Padding = "reflect"
    rcond: float = 1e-6

    def __post_init__(self) -> None:
        if self.std is not None:
            check_fraction(self.std, "std, in pixels,", 1e-3, 1e4)
        check_size(self.size)
        check_choice(self.padding, "padding", PADDINGS)
        check_rcond(self.rcond)

    @property
    def name(self) -> str:
        return "Gaussian blur" if self.std is None else f"Gaussian blur (std {self.std:g} pixels)"

    def axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        k = tuple(self.kernel_for(height, width).tolist())
        return _axis(k, height, self.padding), _axis(k, width, self.padding)

    def shape_of(self, y: Tensor) -> tuple[int, int]:
        return y.shape[-2], y.shape[-1]

    def guess(self, y: Tensor) -> Tensor:
        """y itself."""
        check_images(y, "y")
        return y

    def kernel_for(self, height: int, width: int) -> Tensor:
        """The kernel along each side of a picture, float64, sum 1."""
        side = min(height, width)
        std = 3.0 * side / 256.0 if self.std is None else self.std
        size = min(2 * math.ceil(4.0 * std) + 1, odd_below(side)) if self.size is None else self.size
        check_fits(size, height, width)
        t = torch.arange(size, dtype=torch.float64) - size // 2
        k = torch.exp(-0.5 * (t / std).square())
        return k / k.sum()


def check_size(size: int | None) -> None:
    """ConfigError unless size is None or odd: an even kernel has no centre."""
    if size is None:
        return
    check_whole(size, "size", 1)
    if size % 2 == 0:
        raise ConfigError(f"size must be odd, so that the kernel has a centre, got {size}: take {size + 1}")


def check_fits(size: int, height: int, width: int) -> None:
    """ConfigError for a kernel that is larger than the picture."""
    side = min(height, width)
    if size > side:
        raise ConfigError(f"a kernel of {size} pixels is larger than the picture of {height}x{width}: take size="
                          f"{odd_below(side)} or less, or a larger picture")  # fmt: skip


def check_rcond(rcond: float) -> None:
    """ConfigError unless 0 <= rcond < 1."""
    if isinstance(rcond, bool) or not isinstance(rcond, int | float) or not 0.0 <= rcond < 1.0:
        raise ConfigError(f"rcond must be a number from 0 and below 1, got {rcond!r}")


def odd_below(n: int) -> int:
    """The largest odd number up to n."""
    return n - 1 + n % 2


def beyond(index: Tensor, n: int, padding: str) -> Tensor:
    """Which of n pixels is seen at an index beyond the edge, up to n - 1 pixels away."""
    if padding == "circular":
        return index % n
    index = index.abs()
    return torch.where(index < n, index, 2 * (n - 1) - index)


@lru_cache(maxsize=16)
def _axis(kernel: tuple[float, ...], n: int, padding: str) -> Tensor:
    """[n, n] float64."""

    def make() -> Tensor:
        k = torch.tensor(kernel, dtype=torch.float64)
        half = len(k) // 2
        rows = torch.arange(n)[:, None].expand(n, len(k))
        columns = beyond(rows + torch.arange(-half, half + 1), n, padding)
        matrix = torch.zeros(n, n, dtype=torch.float64)
        return matrix.index_put_((rows, columns), k.expand(n, -1), accumulate=True)

    return constant(make)
