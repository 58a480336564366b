"""Runs of some images of a batch, and thresholds that make Adaptive Guidance switch where a test wants it to.

Before an image switches its run is that of full guidance, so the gammas of a run that never switches say where any
threshold would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .tiny_flow import Tiny

STEPS = 6

Gammas = Mapping[int, Sequence[float]]


def crossings(gammas: Gammas, threshold: float) -> tuple[int | None, ...]:
    """Per image: the tick whose gamma crosses first."""
    images = zip(*(gammas[i] for i in sorted(gammas)), strict=True)
    return tuple(next((i for i, g in enumerate(row) if g >= threshold), None) for row in images)


def apart(gammas: Gammas) -> float:
    """The threshold farthest from every gamma, of those at which images switch at different ticks in mid-run."""
    values = sorted({g for row in gammas.values() for g in row})
    middles = [((a + b) / 2, b - a) for a, b in zip(values, values[1:], strict=False)]
    ticks = len(gammas)
    good = []
    for middle, gap in middles:
        found = crossings(gammas, middle)
        inside = [k for k in found if k is not None and k < ticks - 1]
        if len(set(found)) > 1 and inside:
            good.append((gap, middle))
    assert good, f"no threshold separates these images: {gammas}"
    gap, middle = max(good)
    assert gap > 2e-6, f"the widest gap, {gap}, is of the size of float32 noise"
    return middle


def early(gammas: Gammas) -> tuple[float, int]:
    """(threshold, K): a run of one image that crosses in its first half, after K guided ticks."""
    (row,) = zip(*(gammas[i] for i in sorted(gammas)), strict=True)
    found = [(row[k] - max(row[:k], default=-1.0), k) for k in range(1, (len(row) + 1) // 2)]
    gap, k = max(found)
    assert gap > 2e-6, f"gamma does not rise: {row}"
    return row[k] - gap / 2, k + 1


def run(tiny: Tiny, images: slice = slice(None), **changes: Any) -> torch.Tensor:
    """The latents of a call for some of its images. Image k begins with seed k."""
    call = {**tiny.call, **changes}
    seeds = range(call["prompt_embeds"].shape[0])[images]
    call = {name: value[images] if isinstance(value, torch.Tensor) else value for name, value in call.items()}
    found = tiny.pipe(**call, generator=[torch.Generator().manual_seed(seed) for seed in seeds])
    return found if isinstance(found, torch.Tensor) else found[0]


def clean_cosines(tiny: Tiny, sign: float = 1.0) -> list[torch.Tensor]:
    """Per tick the cosines (B,) of x - sigma v for the two predictions of a guided run of a flow model.

    sign: of the network's output, where it is not v.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = tiny.denoiser.register_forward_hook(
        lambda module, args, kwargs, out: seen.append((kwargs["hidden_states"], out[0])), with_kwargs=True
    )
    run(tiny)
    hook.remove()
    found, sigmas = [], tiny.pipe.scheduler.sigmas[-len(seen) // 2 - 1 : -1]
    for sigma, (x, cond), (_, uncond) in zip(sigmas, seen[::2], seen[1::2], strict=True):
        x = (x if x.shape == cond.shape else x[:, : cond.shape[1]]).double()
        clean = [(x - sign * float(sigma) * v.double()).flatten(1) for v in (cond, uncond)]
        found.append(torch.nn.functional.cosine_similarity(*clean))
    return found
