"""Which table a run of `sample` is: from a solver, a grid, a number of steps or a budget, and a strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from ..samplers import DiscreteVP, Level, Levels, NoiseSchedule, Solver, Table, trace
from ..samplers.grids import MAX_STEPS
from ..samplers.solver_config import grid_of

DEFAULT_STEPS = 10
DEFAULT_GRID = "lambda"


def levels_of(grid: str | Levels, steps: int, schedule: Any) -> Levels:
    """The levels of a named grid (see solver_config.grid_of), or the explicit ones as they are."""
    if not isinstance(grid, str):
        return grid
    return grid_of(grid)(schedule, steps)


def table_of(
    schedule: NoiseSchedule,
    solver: Solver,
    *,
    grid: str | Levels = DEFAULT_GRID,
    steps: int | None = None,
    nfe: int | None = None,
    branches: int = 1,
    strength: float = 1.0,
) -> Table:
    """The table of a run.

    steps: default 10; explicit levels have their own number.       nfe: instead of steps, a budget of network rows per
    image; a tick costs `branches` of them (2 with classifier-free guidance), and the largest number of steps that does
    not exceed it is taken.       strength: see `shortened`.
    Errors: ConfigError for what contradicts, and for a budget too small for one step.
    """
    if steps is not None and nfe is not None:
        raise ConfigError(f"steps={steps} and nfe={nfe} were both given: the budget decides the steps, give one")
    if not isinstance(grid, str):
        if nfe is not None or strength != 1.0:
            what = f"nfe={nfe}" if nfe is not None else f"strength={strength}"
            raise ConfigError(f"{what} places the levels, and grid gives them explicitly: leave one out")
        return trace(solver, grid, schedule)
    start = shortened(schedule, strength)

    def levels(n: int) -> Levels:
        return levels_of(grid, n, start)

    if nfe is not None:
        steps = steps_within(nfe, branches, lambda n: trace(solver, levels(n), schedule).evaluations)
    return trace(solver, levels(DEFAULT_STEPS if steps is None else steps), schedule)


def steps_within(nfe: int, branches: int, evaluations: Callable[[int], int]) -> int:
    """The largest number of steps whose cost does not exceed `nfe` network rows per image.

    evaluations(n): how often a run of n steps calls the network, not falling with n; it may raise ConfigError for an n
    that the grid cannot have, if it does for all larger ones too.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ConfigError(f"nfe must be a whole number, at least 1: network evaluations per image, got {nfe!r}")
    least = evaluations(1) * branches
    if least > nfe:
        guided = f", {branches} for each evaluation with guidance" if branches > 1 else ""
        raise ConfigError(f"a budget of {nfe} is too small: one step of this solver costs {least}{guided}")

    def fits(n: int) -> bool:
        try:
            return evaluations(n) * branches <= nfe
        except ConfigError:  # 1 worked, so n is more than the grid can have
            return False

    good, bad = 1, min(nfe // branches, MAX_STEPS) + 1  # a step costs one evaluation at least
    if fits(bad - 1):
        return bad - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def check_strength(strength: float) -> float:
    """`strength` as a float if it is in (0, 1], else ConfigError."""
    number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not number or not 0.0 < strength <= 1.0:
        raise ConfigError(f"strength must be a number above 0 and at most 1 (1: nothing of the image stays), "
                          f"got {strength!r}")  # fmt: skip
    return float(strength)


def shortened(schedule: NoiseSchedule, strength: float) -> NoiseSchedule:
    """`schedule` up to time strength * T: what a grid is laid over when a run starts from an image.

    diffusers means the same time by strength, but takes the steps of the whole grid that lie below it, so that strength
    0.3 of 10 steps leaves 3. Here every grid is laid anew below that time, and all its steps run.
    Of a discrete schedule the first round(strength * N) of N levels stay, at least two, exactly as they were trained.
    """
    check_strength(strength)
    if strength == 1.0:
        return schedule
    if isinstance(schedule, DiscreteVP):
        total = len(schedule.alphas_cumprod)
        kept = round(strength * total)
        if kept < 2:
            raise ConfigError(f"strength {strength:g} leaves no noise to remove: of {total} levels at least two must "
                              f"stay, so at least {2.0 / total:g}")  # fmt: skip
        return replace(schedule, alphas_cumprod=schedule.alphas_cumprod[:kept])
    time = strength * float(schedule.noisiest.time)
    least = float(schedule.cleanest.time)
    if time <= least:
        share = least / float(schedule.noisiest.time)
        raise ConfigError(f"strength {strength:g} leaves no noise to remove: this model needs more than {share:g}")
    return _UpTo(schedule, schedule.level(time))


@dataclass(frozen=True)
class _UpTo:
    """A schedule in continuous time whose noisiest level is another."""

    whole: NoiseSchedule
    noisiest: Level

    @property
    def cleanest(self) -> Level:
        return self.whole.cleanest

    @property
    def clean(self) -> Level:
        return self.whole.clean

    def level(self, time: float) -> Level:
        return self.whole.level(time)

    def time_of(self, lam: float) -> float:
        return self.whole.time_of(lam)

    def describe(self) -> dict[str, float | int | str]:
        return self.whole.describe()
