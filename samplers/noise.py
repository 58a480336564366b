"""Noise that depends on the image and the tick, never on the batch.

The initial latent is what diffusers draws for one generator per image, on the CPU. Noise inside the loop comes from
a tape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels.ops_philox import philox_normal
from .levels import Level

MAX_SEED = (1 << 63) - 1


class Tape(Protocol):
    """A source of in-loop noise: standard normal of x's shape, dtype and device for tick i, which goes from s to t."""

    def normal(self, i: int, s: Level, t: Level, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NoiseTape:
    """Noise keyed by (seed of the image, tick): image k is the same alone, in any batch, and when a run resumes.

    seeds: one per image of the batch, all 63 bits count. The noise is `philox_normal` of (seed, tick, element), made on
    x's device and the same on each up to the last bits. The ends s, t of the tick do not enter: see
    `brownian.BrownianTape` for noise that follows one path at any number of steps.
    """

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", check_seeds(self.seeds))

    def normal(self, i: int, s: Level, t: Level, x: Tensor) -> Tensor:
        return self.draw(i, x)

    def draw(self, tick: int | Tensor, x: Tensor) -> Tensor:
        """Standard normal of x's shape, dtype and device for a tick: a number, or a tensor with one on x's device.

        The tensor is read when the kernel runs, so a CUDA graph that was captured once draws the noise of every tick.
        Draw once before capturing: the seeds go to the device then.
        """
        if x.shape[0] != len(self.seeds):
            raise ConfigError(f"the tape has {len(self.seeds)} seeds for a batch of {x.shape[0]} images")
        return philox_normal(self.seeds, tick, x.shape[1:], device=x.device, dtype=x.dtype)


@dataclass(frozen=True, eq=False)
class GeneratorTape:
    """Noise drawn in order from generators, as diffusers' pipelines do: one for the batch, or one per image."""

    generator: torch.Generator | Sequence[torch.Generator] | None = None

    def normal(self, i: int, s: Level, t: Level, x: Tensor) -> Tensor:
        if isinstance(self.generator, Sequence):
            if len(self.generator) != x.shape[0]:
                raise ConfigError(f"{len(self.generator)} generators for a batch of {x.shape[0]} images")
            return torch.cat([_draw(g, x[k : k + 1]) for k, g in enumerate(self.generator)])
        return _draw(self.generator, x)


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """(len(seeds), *shape) float32 standard normal; image k equals diffusers' CPU generator of seeds[k]."""
    return torch.stack([_cpu_normal(seed, shape) for seed in seeds])


def check_seed(seed: int) -> int:
    """`seed` if it is in 0..2^63 - 1, else ConfigError.

    The initial latent is torch's CPU generator's, which uses the low 32 bits alone. Noise in the loop uses all of them.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"a seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    return seed


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """One seed per image, each as in `check_seed`; ConfigError for a number alone."""
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        raise ConfigError(f"seeds are one per image, such as seeds=(0, 1), got {seeds!r}")
    return tuple(check_seed(seed) for seed in seeds)


def _cpu_normal(seed: int, shape: Sequence[int]) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(check_seed(seed))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def _draw(generator: torch.Generator | None, x: Tensor) -> Tensor:
    device = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
