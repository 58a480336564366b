"""Guided sampling with a known answer: every branch is the exact denoiser of a Gaussian."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.samplers import (
    EPS,
    FLOW,
    CosineVP,
    DPMpp2M,
    Level,
    NoiseSchedule,
    Parametrisation,
    RectifiedFlow,
    solve,
    trace,
    uniform_lambda,
    uniform_time,
)

from .problems import network_output

SIZE = 64
STEPS = 20
SCALE = 3.0
ISOTROPIC = (0.36, 1.96)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Gaussians:
    """x0 ~ N(mean, diag(variance)) under each branch. means, variances: (B or 1, n) by branch.

    With isotropic variances all predictions of a run are combinations of x_T and the means, with numbers that no
    sample changes.       log: what every call returned, by branch.
    """

    schedule: NoiseSchedule
    means: dict[str, Tensor]
    variances: dict[str, Tensor | float]
    parametrisation: Parametrisation = EPS
    log: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None):
        outputs = []
        x = x if rows is None else x[rows]
        for branch in branches:
            mean, variance = self.means[branch], self.variances[branch]
            mean = mean if rows is None or len(mean) == 1 else mean[rows]
            z = (x - level.alpha * mean) / (level.alpha**2 * variance + level.sigma**2)
            x0, eps = mean + level.alpha * variance * z, level.sigma * z
            outputs.append(network_output(self.parametrisation, level, x, x0, eps))
        self.log.append(dict(zip(branches, outputs, strict=True)))
        return tuple(outputs)

    @property
    def rows(self) -> int:
        """Images x branches evaluated so far."""
        return sum(len(out) for call in self.log for out in call.values())


def prompts(
    schedule: NoiseSchedule,
    seed: int,
    variances: tuple[Tensor | float, Tensor | float] = ISOTROPIC,
    kind: Parametrisation = EPS,
    images: int = 16,
) -> tuple[Gaussians, Tensor]:
    """A network with a mean of "cond" for each image, drawn by `seed`, the same "uncond" always, and its x_T."""
    means = {"cond": normal(images, SIZE, seed=seed), "uncond": normal(1, SIZE, seed=1)}
    variances_of = dict(zip(("cond", "uncond"), variances, strict=True))
    return Gaussians(schedule, means, variances_of, kind), normal(images, SIZE, seed=1000 + seed)


def anisotropic(seed: int) -> tuple[Tensor, Tensor]:
    """Variances of "cond" and "uncond", uniform in [0.3, 2.3]."""
    first, second = torch.rand((2, 1, SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.3 + 2.0 * first, 0.3 + 2.0 * second


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, over everything."""
    return float((found - expected).norm() / expected.norm())


def problem(kind=EPS, solver=None, variances=ISOTROPIC, steps=STEPS):
    """(table, held(seed) -> network and x_T, run(policy, seed)): SCALE and STEPS unless told otherwise."""
    schedule = RectifiedFlow() if kind is FLOW else CosineVP()
    levels = uniform_time(schedule, steps) if kind is FLOW else uniform_lambda(schedule, steps)
    table = trace(DPMpp2M() if solver is None else solver, levels, schedule)

    def held(seed):
        return prompts(schedule, seed, variances, kind)

    def run(policy, seed):
        network, x = held(seed)
        solve(table, network, x, guidance=policy)

    return table, held, run
