r"""Noise of one Brownian path per image, the same path whatever the number of steps.

The path W lives on the clock u = sigma / (alpha + sigma) in [0, 1] (0 at sigma = 0, 1 at alpha = 0; the time of a
rectified flow). A tick from s to t draws (W(u_t) - W(u_s)) / sqrt(u_s - u_t): standard normal, independent of every
other tick, and a run of twice the steps draws the halves of the same increments. So the picture of a seed settles as
the steps shrink, which it does not with noise keyed by the tick.

W is a Brownian bridge, halved again and again (Levy's construction): W(0) = 0, W(1) = z_0 and, at the middle m of the
interval [a, b] of node k, W(m) = (W(a) + W(b)) / 2 + sqrt(b - a) / 2 z_k; its halves are the nodes 2k and 2k + 1. After
DEPTH halvings W(u) is drawn from its law given the two ends. z_k is `philox_normal` of (seed, k): a value is a sum of
at most DEPTH + 2 normals whose weights are known before anything is drawn, and its law is exact.

Source: the virtual Brownian tree of Li, Wong, Chen, Duvenaud 2020, arXiv:2001.01328, which k-diffusion uses through
torchsde; here the last interval is drawn, not rounded to an end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels.ops_philox import philox_normal
from .levels import Level
from .noise import check_seeds

DEPTH = 24
"""Two levels of a run must not lie in one of the 2^24 last intervals, 6e-8 long: there the path has a single normal."""

Weights = dict[int, float]  # node -> its weight


@dataclass(frozen=True)
class BrownianTape:
    """Noise for ticks that follow one another without a gap: every solver with noise but the ancestral ones.

    seeds: one per image of the batch, 63 bits. Image k is the same alone and in any batch. A tick draws about 45
    normals of x's shape where NoiseTape draws one. A run that visits the same levels twice gets the same noise twice.
    Errors: ConfigError for a tick that rises in noise, or whose ends are too close (see DEPTH), as they are in the
    inner ticks of ancestral solvers.
    """

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", check_seeds(self.seeds))

    def normal(self, i: int, s: Level, t: Level, x: Tensor) -> Tensor:
        """Standard normal of x's shape, dtype and device for the tick from s to t; its number does not enter."""
        if x.shape[0] != len(self.seeds):
            raise ConfigError(f"the tape has {len(self.seeds)} seeds for a batch of {x.shape[0]} images")
        total = torch.zeros_like(x)
        for node, weight in increment(clock(s), clock(t)):
            total.add_(philox_normal(self.seeds, node, x.shape[1:], device=x.device, dtype=x.dtype), alpha=weight)
        return total


def clock(level: Level) -> float:
    """u = sigma / (alpha + sigma)."""
    return float(level.sigma) / (float(level.alpha) + float(level.sigma))


@lru_cache(maxsize=256)
def increment(start: float, end: float) -> tuple[tuple[int, float], ...]:
    """The weights of (W(end) - W(start)) / sqrt(start - end), for 1 >= start > end >= 0."""
    if int(start * 2**DEPTH) <= int(end * 2**DEPTH):
        raise ConfigError(f"a Brownian path has no noise for a tick from u = {start:.9g} to {end:.9g}: u = sigma / "
                          f"(alpha + sigma) must fall, by 2^-{DEPTH} or more; use NoiseTape(seeds)")  # fmt: skip
    first, last, scale = path(start), path(end), math.sqrt(start - end)
    weights = {node: (last.get(node, 0.0) - first.get(node, 0.0)) / scale for node in {**first, **last}}
    return tuple((node, weight) for node, weight in sorted(weights.items()) if weight != 0.0)


@lru_cache(maxsize=256)
def path(u: float) -> Weights:
    """W(u) as weights of the nodes' normals."""
    low, high, node = 0.0, 1.0, 1
    at_low: Weights = {}
    at_high: Weights = {0: 1.0}
    while low < u < high:
        middle = 0.5 * (low + high) if node < 2**DEPTH else u
        between = bridge(low, middle, high, at_low, at_high, node)
        if u >= middle:
            low, at_low, node = middle, between, 2 * node + 1
        else:
            high, at_high, node = middle, between, 2 * node
    return at_low if u <= low else at_high


def bridge(a: float, m: float, b: float, at_a: Weights, at_b: Weights, node: int) -> Weights:
    """W(m) given W(a) and W(b), with the normal of `node`."""
    share = (m - a) / (b - a)
    weights = {k: (1.0 - share) * at_a.get(k, 0.0) + share * at_b.get(k, 0.0) for k in {**at_a, **at_b}}
    weights[node] = math.sqrt((m - a) * (b - m) / (b - a))
    return weights
