"""`philox_normal` on a device: the numbers of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..kernels import choice
from ..kernels.ops_philox import philox_normal
from .gpu_outcome import Check, Outcome, at_most, holds, needs_cuda

SEEDS = (0, 123, 2**40 + 17, 2**63 - 1)


def equal_to_the_cpu(device: torch.device) -> Iterator[Outcome]:
    """A word that differed anywhere would make another normal; one that rounds differently only last bits of it."""
    sizes = (1, 511, 2045) if device.type == "cpu" else (1, 3, 511, 2045, 65_536, 1_000_003)
    for tick in (0, 9, 2**32 - 1):
        worst = 0.0
        for n in sizes:
            found = philox_normal(SEEDS, tick, (n,), device=device).cpu()
            with choice.forced("torch"):
                wanted = philox_normal(SEEDS, tick, (n,), device="cpu")
            worst = max(worst, float((found - wanted).abs().max()))
        yield at_most(f"normals of tick {tick}, absolute", worst, 1e-6)


def one_image_or_many(device: torch.device) -> Iterator[Outcome]:
    many = philox_normal(SEEDS, 3, (4, 5, 7), device=device)
    each = [philox_normal((seed,), 3, (4, 5, 7), device=device) for seed in SEEDS]
    yield holds("an image is the same alone, bit by bit", torch.equal(many, torch.cat(each)))


def captured(device: torch.device) -> Iterator[Outcome]:
    needs_cuda(device)
    seeds, tick = torch.tensor(SEEDS).to(device), torch.zeros(1, dtype=torch.int64, device=device)
    philox_normal(seeds, tick, (4, 64, 64), device=device)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = philox_normal(seeds, tick, (4, 64, 64), device=device)
    for k in (0, 1, 19):
        tick.fill_(k)
        graph.replay()
        same = torch.equal(found, philox_normal(SEEDS, k, (4, 64, 64), device=device))
        yield holds(f"a graph captured once draws tick {k}", same)


CHECKS: tuple[Check, ...] = (equal_to_the_cpu, one_image_or_many, captured)
