"""Super-resolution: a picture seen at a lower resolution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from .base import check_choice, check_images, check_whole, constant
from .separable import Separable

MAX_FACTOR = 64


@dataclass(frozen=True)
class Downsample(Separable):
    """(B, C, H, W) -> (B, C, H / factor, W / factor).

    factor: whole; H and W must be multiples. The field's are 4 and 8; 16 and 32 occur.
    filter: "bicubic", antialiased: Keys' cubic with a = -1/2, stretched by the factor, which is what Matlab's imresize
    and the `Resizer` of the published operators do, with the picture mirrored at its edges (the edge pixel twice).
    "average": the mean of factor x factor pixels.
    Adjoint, pseudo-inverse and prox are exact, from the decompositions of one small matrix per axis.
    Source of the cubic: Keys 1981, IEEE Trans. ASSP 29 (6), equation 15.
    """

    factor: int = 4
    filter: Literal["bicubic", "average"] = "bicubic"

    rcond: ClassVar[float] = 1e-6  # no singular value of these matrices is that small

    def __post_init__(self) -> None:
        check_whole(self.factor, "factor", 1, MAX_FACTOR)
        check_choice(self.filter, "filter", ("bicubic", "average"))

    @property
    def name(self) -> str:
        return f"super-resolution x{self.factor} ({self.filter})"

    def axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        if height % self.factor or width % self.factor:
            whole = [max(n - n % self.factor, self.factor) for n in (height, width)]
            raise ConfigError(f"a picture of {height}x{width} pixels cannot be divided by {self.factor}: crop or "
                              f"resize it to multiples, such as {whole[0]}x{whole[1]}, or take another "
                              "factor")  # fmt: skip
        return _axis(height, self.factor, self.filter), _axis(width, self.factor, self.filter)

    def shape_of(self, y: Tensor) -> tuple[int, int]:
        return y.shape[-2] * self.factor, y.shape[-1] * self.factor

    def guess(self, y: Tensor) -> Tensor:
        """y enlarged by cubic interpolation: smoother than A^+ y, and noise is not amplified."""
        check_images(y, "y")
        return torch.nn.functional.interpolate(y, self.shape_of(y), mode="bicubic", align_corners=False)


@lru_cache(maxsize=32)
def _axis(n: int, factor: int, filter: str) -> Tensor:
    """[n / factor, n] float64."""
    if filter == "average":
        return constant(lambda: torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor)
    return constant(lambda: _bicubic(n, factor))


def _bicubic(n: int, factor: int) -> Tensor:
    """[n / factor, n]: row i weighs the pixels by the stretched cubic around the centre of the output pixel i.

    Centres lie at (i + 1/2) factor - 1/2 in input pixels. Rows sum to 1.
    """
    m = n // factor
    centre = (torch.arange(m, dtype=torch.float64) + 0.5) * factor - 0.5
    taps = torch.arange(-2 * factor, n + 2 * factor)  # the cubic's support is 2 output pixels to each side
    weights = _keys((centre[:, None] - taps) / factor)
    weights = weights / weights.sum(1, keepdim=True)
    mirrored = taps % (2 * n)
    mirrored = torch.where(mirrored < n, mirrored, 2 * n - 1 - mirrored)
    return torch.zeros(m, n, dtype=torch.float64).index_add_(1, mirrored, weights)


def _keys(t: Tensor) -> Tensor:
    """Keys' cubic: 1.5 |t|^3 - 2.5 |t|^2 + 1 up to 1; -0.5 |t|^3 + 2.5 |t|^2 - 4 |t| + 2 up to 2; then 0."""
    t = t.abs()
    inner = (1.5 * t - 2.5) * t * t + 1.0
    outer = ((-0.5 * t + 2.5) * t - 4.0) * t + 2.0
    return torch.where(t <= 1.0, inner, torch.where(t < 2.0, outer, 0.0))
