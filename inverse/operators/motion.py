"""Motion blur: the path of a shaken camera, drawn from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ...samplers.noise import MAX_SEED
from .base import check_choice, check_fraction, check_whole, constant
from .blur import PADDINGS, check_fits, check_rcond, check_size, odd_below
from .convolution import Convolution
from .solve import DAGGER_ITERATIONS

_POINTS = 12  # of the path per pixel of the kernel: closer than the pixels, so that the line has no gaps
_TURNS = 24  # pieces of the path between which the direction changes


@dataclass(frozen=True)
class MotionBlur(Convolution):
    """Blur along a random path. The kernel is a function of size, intensity and seed alone.

    size: pixels of the kernel's side, odd. None: 61 in 256 pixels, and as much of the shorter side in other sizes (15
    in 64, 121 in 512), which are the field's.
    intensity: 0 is a straight line, 1 a path that turns about; the field's is 0.5.
    padding, rcond, iterations: see Convolution; for measurements with noise take an rcond of 0.01 to 0.1 with circular
    padding, fewer iterations, or `solve.damped_inverse`.

    The path has 1/2 to 9/10 of the size as its length. Its direction begins anywhere; between equal pieces it turns by
    a normal angle, together of standard deviation pi * intensity over the path, and at a jerk, with probability
    intensity / 24 a piece, by any angle. It is centred on its bounding box, shrunk if it does not fit, and every point
    of it is shared out to the four pixels around it. The kernels of the field's generator are of this kind, not equal.
    """

    size: int | None = None
    intensity: float = 0.5
    seed: int = 0
    padding: Literal["reflect", "circular"] = "reflect"
    rcond: float = 1e-6
    iterations: int = DAGGER_ITERATIONS

    def __post_init__(self) -> None:
        check_size(self.size)
        check_fraction(self.intensity, "intensity", 0.0, 1.0)
        check_whole(self.seed, "seed", 0, MAX_SEED)
        check_choice(self.padding, "padding", PADDINGS)
        check_rcond(self.rcond)
        check_whole(self.iterations, "iterations", 1)

    @property
    def name(self) -> str:
        return "motion blur" if self.size is None else f"motion blur ({self.size} pixels)"

    def kernel_for(self, height: int, width: int) -> Tensor:
        side = min(height, width)
        size = odd_below(min(max(3, round(side * 61 / 256)), side)) if self.size is None else self.size
        check_fits(size, height, width)
        return _kernel(size, self.intensity, self.seed)


@lru_cache(maxsize=64)
def _kernel(size: int, intensity: float, seed: int) -> Tensor:
    """[size, size] float64, sum 1."""
    return constant(lambda: _drawn(_path(size, intensity, seed), size))


def _path(size: int, intensity: float, seed: int) -> Tensor:
    """[points, 2] float64: rows and columns, centred on 0, within the kernel."""
    generator = torch.Generator("cpu").manual_seed(seed)
    uniform = torch.rand(2 + 2 * _TURNS, dtype=torch.float64, generator=generator)
    turns = torch.randn(_TURNS, dtype=torch.float64, generator=generator) * (math.pi * intensity / _TURNS**0.5)
    length = (0.5 + 0.4 * uniform[0]) * size
    jerks = uniform[2 : 2 + _TURNS] < intensity / _TURNS
    turns = torch.where(jerks, 2 * math.pi * uniform[2 + _TURNS :], turns)
    direction = 2 * math.pi * uniform[1] + turns.cumsum(0)
    per_piece = max(1, _POINTS * size // _TURNS)
    step = length / (_TURNS * per_piece)
    moves = torch.stack((direction.sin(), direction.cos()), 1).repeat_interleave(per_piece, 0) * step
    path = torch.cat((torch.zeros(1, 2, dtype=torch.float64), moves.cumsum(0)))
    low, high = path.amin(0), path.amax(0)
    path = path - 0.5 * (low + high)
    reach, room = float(path.abs().max()), (size - 1) / 2
    return path * min(1.0, room / reach) if reach > 0.0 else path


def _drawn(path: Tensor, size: int) -> Tensor:
    """Every point shared out to the four pixels around it, bilinearly."""
    position = (path + (size - 1) / 2).clamp(0.0, size - 1.0)
    corner = position.floor().clamp(max=max(size - 2, 0))
    part = position - corner
    k = torch.zeros(size, size, dtype=torch.float64)
    for down in (0, 1):
        for across in (0, 1):
            weight = (part[:, 0] if down else 1 - part[:, 0]) * (part[:, 1] if across else 1 - part[:, 1])
            row = (corner[:, 0] + down).clamp(max=size - 1).long()
            column = (corner[:, 1] + across).clamp(max=size - 1).long()
            k.index_put_((row, column), weight, accumulate=True)
    return k / k.sum()
