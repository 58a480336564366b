"""The pictures and measurements of `restore`: held-out scenes, three tasks, noise fixed by each scene's number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..inverse.measurement import Measurement
from ..inverse.operators import Downsample, InpaintBox, MotionBlur
from ..models.scenes import Scene, render, sample_scene

SIGMA_Y = 0.05  # pixels in [0, 1]
Split = Literal["test", "tuning"]
COUNTS: dict[Split, int] = {"test": 16, "tuning": 4}
_SCENE_SEEDS: dict[Split, int] = {"test": 60, "tuning": 61}
_RUN_SEEDS: dict[Split, int] = {"test": 0, "tuning": 1000}
_NOISE_SEED = 500_000  # added to a run's seed: the noise of its measurement


@dataclass(frozen=True)
class Task:
    """name: in the rows' names.       title: in the tables.       operator: the same for all pictures."""

    name: str
    title: str
    operator: Any


# Circular padding and rcond for PSLD's sake: its A^+ is exact then, A^+ A a projection, and noise not blown up.
TASKS = {
    task.name: task
    for task in (
        Task("sr", "super-resolution x4 (bicubic, antialiased)", Downsample(factor=4)),
        Task("motion", "motion deblurring", MotionBlur(seed=0, padding="circular", rcond=0.1)),
        Task("box", "box inpainting", InpaintBox()),
    )
}


@cache
def scenes(split: Split) -> tuple[Scene, ...]:
    """Distinct scenes, each with an object in a combination that training never showed; none is in both splits."""
    found: dict[Scene, None] = {}
    rng = np.random.default_rng(_SCENE_SEEDS[split])
    taken = set() if split == "test" else set(scenes("test"))
    while len(found) < COUNTS[split]:
        scene = sample_scene(rng, "heldout")
        if scene not in taken:
            found.setdefault(scene)
    return tuple(found)


def truth(split: Split, first: int, count: int) -> Tensor:
    """(count, 3, 64, 64) float32 in [0, 1]: scenes first, first + 1, ... as they are drawn."""
    drawn = np.stack([render(scene) for scene in scenes(split)[first : first + count]])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255.0


def seeds(split: Split, first: int, count: int) -> tuple[int, ...]:
    """Of the runs: scene k has its own, the same for every method."""
    return tuple(_RUN_SEEDS[split] + k for k in range(first, first + count))


def measurement(task: Task, split: Split, first: int, count: int) -> Measurement:
    """Of those scenes; the noise of scene k is the same in every chunk and for every method."""
    noise = [_NOISE_SEED + seed for seed in seeds(split, first, count)]
    return Measurement.simulate(task.operator, truth(split, first, count), SIGMA_Y, seeds=noise)
