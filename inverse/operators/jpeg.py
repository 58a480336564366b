"""JPEG: what is left of a picture after its compression, with gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError
from .base import check_choice, check_images, check_whole, constant

# ITU-T T.81 (1992), Annex K, tables K.1 and K.2, row by row.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32,
)  # fmt: skip
# ITU-T T.871 (JFIF): Y = K_R R + K_G G + K_B B, Cb = (B - Y) / 1.772, Cr = (R - Y) / 1.402.
_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772),
    (0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402),
)
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587), (1.0, 1.772, 0.0))
# Halves are rounded away from 0 as libjpeg does. They occur exactly (sums of whole numbers), so a device whose last
# bits differ must not decide them: what is this close below a half counts as one.
_TIE = 1e-9


@dataclass(frozen=True)
class JPEG:
    """Compression and decompression of pictures in [0, 1] with 1 or 3 channels (grey, RGB); of the same size.

    quality: 1 to 100, which scales the standard tables as libjpeg does. At 10 the blocks are plain to see.
    chroma: "4:2:0" (colour at half the resolution, the usual) or "4:4:4".
    Not linear, so it has no adjoint. Values are rounded to 8 bits and clipped as an encoder and a decoder do; a
    picture's edge is repeated up to whole blocks. The gradient passes every rounding and clipping as if it were not
    there (straight through): for grey and "4:4:4" it is the identity, for "4:2:0" colour passes the filters.
    In float64 whatever the dtype (float32 on mps, which has no other), so a picture compresses alike on every device.
    Source: ITU-T T.81 (1992), A.3.3 (transform), A.3.4 (quantisation), Annex K.
    """

    quality: int = 10
    chroma: Literal["4:2:0", "4:4:4"] = "4:2:0"

    linear = False

    def __post_init__(self) -> None:
        check_whole(self.quality, "quality", 1, 100)
        check_choice(self.chroma, "chroma", ("4:2:0", "4:4:4"))

    @property
    def name(self) -> str:
        return f"JPEG (quality {self.quality}, {self.chroma})"

    def A(self, x: Tensor) -> Tensor:
        check_images(x)
        if x.shape[1] not in (1, 3):
            raise ConfigError(f"JPEG needs pictures of 1 or 3 channels, got {x.shape[1]}")
        wide = x.float() if x.device.type == "mps" else x.double()
        with torch.autocast(x.device.type, enabled=False):
            pixels = _clipped(_rounded(255.0 * wide))
            coded = self._grey(pixels) if x.shape[1] == 1 else self._colour(pixels)
            return (_clipped(_rounded(coded)) / 255.0).to(x.dtype)

    def guess(self, y: Tensor) -> Tensor:
        """y itself."""
        check_images(y, "y")
        return y

    def _grey(self, pixels: Tensor) -> Tensor:
        return _coded(pixels, quantisation(_LUMINANCE, self.quality))

    def _colour(self, rgb: Tensor) -> Tensor:
        H, W = rgb.shape[-2:]
        Y, *CC = _mixed(rgb, _TO_YCC).split(1, 1)
        Y = self._grey(_rounded(Y))
        C = _rounded(torch.cat(CC, 1) + 128.0)
        table = quantisation(_CHROMINANCE, self.quality)
        if self.chroma == "4:4:4":
            C = _coded(C, table)
        else:
            C = _coded(_rounded(_halves_down(F.avg_pool2d(_padded(C, 2), 2), first=0, step=1 / 4)), table)
            C = F.interpolate(C, scale_factor=2, mode="bilinear", align_corners=False)
            C = _rounded(_halves_down(C, first=1, step=1 / 16))[..., :H, :W]
        return _mixed(torch.cat((Y, C - 128.0), 1), _TO_RGB)


def quantisation(table: tuple[int, ...], quality: int) -> tuple[int, ...]:
    """libjpeg's scaling of a table: 50 leaves it, 100 makes it ones, 1 multiplies it by 50; entries from 1 to 255."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(max((entry * scale + 50) // 100, 1), 255) for entry in table)


def _coded(plane: Tensor, table: tuple[int, ...]) -> Tensor:
    """Planes (B, C, H, W) from 0 to 255, through the transform and quantisation of 8 x 8 blocks; whole numbers again.

    S = D s D^T of each block s, less 128.
    """
    B, C, H, W = plane.shape
    D, Q = _transform(plane.dtype, plane.device), _table(table, plane.dtype, plane.device)
    padded = _padded(plane, 8) - 128.0
    h, w = padded.shape[-2] // 8, padded.shape[-1] // 8
    s = padded.view(B, C, h, 8, w, 8).transpose(3, 4)
    S = _rounded(D @ s @ D.mT / Q) * Q
    s = (D.mT @ S @ D).transpose(3, 4).reshape(B, C, 8 * h, 8 * w)
    return _clipped(_rounded(s + 128.0))[..., :H, :W]


def _mixed(x: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Every pixel's channels times a matrix, as sums in a fixed order: alike on every device to the last bits."""
    a, b, c = x.unbind(1)
    return torch.stack([i * a + j * b + k * c for i, j, k in matrix], 1)


def _padded(x: Tensor, multiple: int) -> Tensor:
    """x with its last row and column repeated up to a multiple."""
    down, across = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    return F.pad(x, (0, across, 0, down), mode="replicate") if down or across else x


def _rounded(x: Tensor) -> Tensor:
    """x rounded, halves away from 0; the gradient is the identity."""
    value = x.detach()
    rounded = torch.sign(value) * torch.floor(value.abs() + (0.5 + _TIE))
    return x + (rounded - value) if x.requires_grad else rounded


def _halves_down(x: Tensor, first: int, step: float) -> Tensor:
    """x, of multiples of `step`, so that halves of every other column, from `first`, are rounded down.

    So libjpeg does it: colour that is averaged or interpolated is not shifted as a whole.
    """
    shift = torch.zeros(x.shape[-1], dtype=x.dtype, device=x.device)
    shift[first::2] = step / 2
    return x - shift


def _clipped(x: Tensor) -> Tensor:
    """x within 0 and 255; the gradient is the identity."""
    value = x.detach()
    clipped = value.clamp(0.0, 255.0)
    return x + (clipped - value) if x.requires_grad else clipped


@lru_cache(maxsize=8)
def _transform(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[8, 8] D: D[u, x] = C(u) / 2 cos((2 x + 1) u pi / 16), C(0) = 1 / sqrt(2), else 1; orthogonal."""
    D = [[math.cos((2 * x + 1) * u * math.pi / 16) * (0.5 if u else 0.125**0.5) for x in range(8)] for u in range(8)]
    return constant(lambda: torch.tensor(D, dtype=torch.float64).to(device, dtype))


@lru_cache(maxsize=64)
def _table(table: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return constant(lambda: torch.tensor(table, dtype=torch.float64).view(8, 8).to(device, dtype))
