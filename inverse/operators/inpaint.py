"""Inpainting: some pixels are missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from ...samplers.noise import MAX_SEED
from .base import check_choice, check_fraction, check_images, check_whole, constant, per_image


class Inpainting:
    """Base of the inpainting operators: A keeps the known pixels and puts 0 in the hole.

    A subclass says `mask_for(H, W)`: bool on the CPU, (1, 1 | C, H, W), true where a pixel is known. What y holds in
    the hole is never read, nor is x's part there by A: values that are not finite may stand there.
    """

    def mask_for(self, height: int, width: int) -> Tensor:
        raise NotImplementedError

    def observed(self, y: Tensor) -> Tensor:
        """bool, (1, 1 | C, H, W): true where y carries a measurement."""
        mask = _moved(self, y.shape[-2], y.shape[-1], y.device)
        if mask.shape[1] not in (1, y.shape[1]):
            raise ConfigError(f"the mask has {mask.shape[1]} channels and the picture {y.shape[1]}: give a mask (H, W)")
        return mask

    def A(self, x: Tensor) -> Tensor:
        check_images(x)
        return torch.where(self.observed(x), x, 0.0)

    def A_adjoint(self, y: Tensor) -> Tensor:
        check_images(y, "y")
        return torch.where(self.observed(y), y, 0.0)

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        check_images(z, "z")
        check_images(y, "y")
        g = per_image(gamma, z).to(z.dtype)
        return torch.where(self.observed(z), z + g / (1.0 + g) * (y - z), z)

    def guess(self, y: Tensor) -> Tensor:
        """y with the hole filled by the mean of what is known, per image and channel; 1/2 where nothing is."""
        mask = self.observed(y).expand(1, y.shape[1], *y.shape[-2:])
        known = self.A_adjoint(y)
        count = mask.sum((-2, -1), keepdim=True)
        mean = known.sum((-2, -1), keepdim=True) / count.clamp(min=1)
        return torch.where(mask, known, torch.where(count > 0, mean, 0.5))


@dataclass(frozen=True)
class InpaintBox(Inpainting):
    """A box is missing.

    size: of the box: below 1 a fraction of each side, from 1 on pixels. The default is the field's: 128 of 256 pixels,
    256 of 512.
    place: "center", or "random": a place that the seed alone decides, the same relative to the room there is in every
    size of picture.       margin: what a random box leaves free at each edge, in the units of `size` (32 of 256).
    """

    size: float = 0.5
    place: Literal["center", "random"] = "center"
    margin: float = 0.125
    seed: int = 0

    name = "box inpainting"

    def __post_init__(self) -> None:
        _check_length(self.size, "size", least=0.0)
        _check_length(self.margin, "margin", least=-1.0)
        check_choice(self.place, "place", ("center", "random"))
        check_whole(self.seed, "seed", 0, MAX_SEED)

    def mask_for(self, height: int, width: int) -> Tensor:
        return _box(self, height, width)

    def rows(self, n: int, where: float) -> tuple[int, int]:
        """First and last + 1 of the missing ones along a side of n pixels.       where: from 0 to 1, for "random"."""
        size = round(self.size * n) if self.size < 1 else int(self.size)
        margin = 0 if self.place == "center" else round(self.margin * n) if self.margin < 1 else int(self.margin)
        size = max(size, 1)
        room = n - size - 2 * margin
        if room < 0 or size >= n:
            raise ConfigError(f"a missing box of {size} pixels with a margin of {margin} at each edge does not fit "
                              f"into {n} pixels with something left: take a smaller size or margin")  # fmt: skip
        first = (n - size) // 2 if self.place == "center" else margin + min(int(where * (room + 1)), room)
        return first, first + size


@dataclass(frozen=True)
class InpaintRandom(Inpainting):
    """Single pixels are missing, in all channels alike: round(fraction_missing * H * W) of them.

    fraction_missing: the field's is 0.7.       seed: decides which, with the size.
    """

    fraction_missing: float = 0.7
    seed: int = 0

    name = "random inpainting"

    def __post_init__(self) -> None:
        check_fraction(self.fraction_missing, "fraction_missing", 0.0, 1.0)
        if self.fraction_missing == 1.0:
            raise ConfigError("fraction_missing = 1 leaves no pixel to restore from: take less, such as 0.7")
        check_whole(self.seed, "seed", 0, MAX_SEED)

    def mask_for(self, height: int, width: int) -> Tensor:
        return _random(self, height, width)


@dataclass(frozen=True, eq=False)
class InpaintMask(Inpainting):
    """The caller says which pixels are known.

    mask: (H, W), (1, H, W) or (C, H, W), bool or of any dtype with nothing but 0 (missing) and 1 (known); pictures must
    have its size. Values between are refused: a pixel that is half known has a noise of its own, and
    sigma_y is one number.
    text: what `named.described` says, for a mask that came from a file.
    """

    mask: Tensor
    text: str = ""

    name = "mask inpainting"

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Tensor) or self.mask.dim() not in (2, 3) or not self.mask.numel():
            got = tuple(self.mask.shape) if isinstance(self.mask, Tensor) else type(self.mask).__name__
            raise ConfigError(f"a mask must be a tensor (H, W) or (C, H, W), got {got}")
        known = self.mask.detach().cpu()
        if not bool(((known == 0) | (known == 1)).all()):
            raise ConfigError(f"a mask must hold 0 (missing) and 1 (known) only, got values from {known.min():g} to "
                              f"{known.max():g}: pass mask > 0.5, or mask > 127 for bytes")  # fmt: skip
        if not bool(known.any()):
            raise ConfigError(
                "the mask says that no pixel is known: 1 means known; pass mask == 0 if yours is inverted"
            )
        object.__setattr__(self, "mask", constant(lambda: (known != 0).view(1, -1, *known.shape[-2:]).clone()))

    def mask_for(self, height: int, width: int) -> Tensor:
        if self.mask.shape[-2:] != (height, width):
            raise ConfigError(f"the mask has {_size(self.mask)} pixels (height x width) and the picture {height}x"
                              f"{width}: give a mask of the picture's size")  # fmt: skip
        return self.mask


def _size(x: Tensor) -> str:
    return f"{x.shape[-2]}x{x.shape[-1]}"


def _check_length(value: float, name: str, least: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value <= least or value < 0 or (value >= 1 and value != int(value)):
        raise ConfigError(f"{name} must be a fraction of the side below 1, or a whole number of pixels, got {value!r}")


@lru_cache(maxsize=32)
def _box(operator: InpaintBox, height: int, width: int) -> Tensor:
    def make() -> Tensor:
        across, along = torch.rand(2, dtype=torch.float64, generator=_generator(operator.seed)).tolist()
        (top, bottom), (left, right) = operator.rows(height, across), operator.rows(width, along)
        mask = torch.ones(1, 1, height, width, dtype=torch.bool)
        mask[..., top:bottom, left:right] = False
        return mask

    return constant(make)


@lru_cache(maxsize=32)
def _random(operator: InpaintRandom, height: int, width: int) -> Tensor:
    def make() -> Tensor:
        n = height * width
        missing = round(operator.fraction_missing * n)
        if missing == n:
            raise ConfigError(f"fraction_missing = {operator.fraction_missing:g} leaves none of {height}x{width} "
                              "pixels: take less of it, or a larger picture")  # fmt: skip
        mask = torch.ones(n, dtype=torch.bool)
        order = torch.randperm(n, generator=_generator(operator.seed))
        mask[order[:missing]] = False
        return mask.view(1, 1, height, width)

    return constant(make)


@lru_cache(maxsize=32)
def _moved(operator: Inpainting, height: int, width: int, device: torch.device) -> Tensor:
    return constant(lambda: operator.mask_for(height, width).to(device))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)
