"""Two Gaussian conditions per image: closed-form networks on which gamma rises from image to image at its own pace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.samplers import EPS, SOLVERS, DiscreteVP, Level, NoiseTape, Parametrisation, Result, Table, solve, trace
from fewstep.samplers.grids import uniform_lambda

from .problems import network_output

VP = DiscreteVP.scaled_linear()
SHAPE = (3, 2, 4, 4)
SCALE = 3.0
AG = AdaptiveGuidance
_MEANS = ((0.2, 0.5), (0.5, 0.2), (0.9, -0.9))  # per image how far out the means of cond and uncond are


@dataclass
class Pair:
    """x0 ~ N(m_k, 0.25) in "cond" and N(n_k, 0.5) in "uncond" for image k.

    Counts calls and, per branch, rows.       images: which ones the batch holds.       broken: a branch that returns
    NaN from this tick on.       zero: outputs are zero.
    """

    parametrisation: Parametrisation = EPS
    images: tuple[int, ...] = (0, 1, 2)
    broken: tuple[str, int] | None = None
    zero: bool = False
    schedule: DiscreteVP = VP
    calls: int = field(default=0, init=False)
    rows: dict[str, int] = field(default_factory=dict, init=False)

    def __call__(self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Any = None) -> tuple[Tensor, ...]:
        self.calls += 1
        ramp = torch.linspace(-1.0, 1.0, x[0].numel(), dtype=x.dtype).view(x.shape[1:])
        m = torch.stack([torch.stack([c * ramp, u * ramp]) for c, u in (_MEANS[k] for k in self.images)])
        x, m = (x, m) if rows is None else (x[rows], m[rows])
        return tuple(self._branch(x, m, level, b) for b in branches)

    def _branch(self, x: Tensor, m: Tensor, level: Level, branch: str) -> Tensor:
        self.rows[branch] = self.rows.get(branch, 0) + len(x)
        mean, variance = (m[:, 0], 0.25) if branch == "cond" else (m[:, 1], 0.5)
        total = level.alpha**2 * variance + level.sigma**2
        residual = x - level.alpha * mean
        x0, eps = mean + level.alpha * variance / total * residual, level.sigma / total * residual
        out = network_output(self.parametrisation, level, x, x0, eps)
        if self.broken == (branch, self.calls - 1):
            out = out * float("nan")
        return torch.zeros_like(out) if self.zero else out


def table_of(name: str = "2m", steps: int = 12) -> Table:
    return trace(SOLVERS[name](), uniform_lambda(VP, steps), VP)


def start_of(images: tuple[int, ...] = (0, 1, 2), dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    return x[list(images)]


def run(
    guidance: Any, name: str = "2m", images: tuple[int, ...] = (0, 1, 2), steps: int = 12, **options: Any
) -> Result:
    """A run in float64 with a tape of the images' own seeds; options: net, dtype, and what solve takes."""
    net = options.pop("net", None) or Pair(images=images)
    x = start_of(images, options.pop("dtype", torch.float64))
    return solve(
        table_of(name, steps), net, x, guidance=guidance, tape=NoiseTape(tuple(7 + k for k in images)), **options
    )


def gammas(name: str = "2m", **policy: Any) -> dict[int, tuple[float, ...]]:
    """Of a run that is guided to its end."""
    return run(AG(2.0, scale=SCALE, **policy), name).report.scores


def mixed_threshold(name: str = "2m", **policy: Any) -> float:
    """One that the three images cross at different ticks, if possible."""
    return apart(gammas(name, **policy))


def apart(scores: dict[int, tuple[float, ...]]) -> float:
    """A threshold halfway between two gammas that occur, 1e-6 from any, that images cross at different ticks."""
    ticks = list(scores)
    images = range(len(scores[ticks[0]]))

    def first(threshold: float) -> list[int]:
        return [next((i for i in ticks if scores[i][k] >= threshold), 10**6) for k in images]

    values = sorted({g for row in scores.values() for g in row})
    middles = [(a + b) / 2.0 for a, b in zip(values, values[1:], strict=False) if b - a > 2e-6]
    return max(middles, key=lambda t: (len(set(first(t))), sum(ticks[0] < f < ticks[-1] for f in first(t))))
