"""Which table a run of `sample` is: from a solver, a grid, a number of steps or a budget, and a strength."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import ConfigError
from ..samplers import DiscreteVP, Level, Levels, NoiseSchedule, Solver, Table, level_at, trace
from ..samplers.grids import MAX_STEPS, Grid, ays_sd, ays_sdxl, ays_svd, check_steps, leading
from ..samplers.solver_config import grid_of

DEFAULT_STEPS = 10
_PUBLISHED = (ays_sd, ays_sdxl, ays_svd)
_FINE = 1000  # a multiple of the ten steps that were published


def table_of(
    schedule: NoiseSchedule,
    solver: Solver,
    *,
    grid: str | Levels = "lambda",
    steps: int | None = None,
    nfe: int | None = None,
    branches: int = 1,
    strength: float = 1.0,
) -> Table:
    """The table of a run.

    grid: a name as in solver_config.grid_of, or explicit levels.
    steps: default 10; explicit levels have their own number.       nfe: instead of steps, see `steps_for`.
    strength: see `shortened`.
    Errors: ConfigError for what contradicts, and for a budget too small for one step.
    """
    if steps is not None and nfe is not None:
        raise ConfigError(f"steps={steps} and nfe={nfe} were both given: the budget decides the steps, give one")
    if not isinstance(grid, str):
        if nfe is not None or strength != 1.0 or steps not in (None, len(grid) - 1):
            what = f"nfe={nfe}" if nfe is not None else f"steps={steps}" if strength == 1.0 else f"strength={strength}"
            raise ConfigError(f"{what} places the levels, and grid gives {len(grid)} of them explicitly: leave one out")
        return trace(solver, grid, schedule)
    if nfe is not None:
        steps = steps_for(nfe, schedule, solver, grid=grid, branches=branches, strength=strength)
    return trace(solver, _placed(schedule, grid, strength)(DEFAULT_STEPS if steps is None else steps), schedule)


def steps_for(
    nfe: int, schedule: NoiseSchedule, solver: Solver, *, grid: str, branches: int, strength: float = 1.0
) -> int:
    """The largest number of steps that costs no more than `nfe` network rows per image.

    A tick costs `branches` rows: 2 with classifier-free guidance.       Errors: ConfigError where one step costs more.
    """
    levels = _placed(schedule, grid, strength)
    return steps_within(nfe, branches, lambda n: trace(solver, levels(n), schedule).evaluations)


def levels_of(schedule: NoiseSchedule, grid: str, steps: int, strength: float = 1.0) -> Levels:
    """The levels of a run, before a solver has them; errors as in `table_of`."""
    return _placed(schedule, grid, strength)(steps)


def _placed(schedule: NoiseSchedule, grid: str, strength: float) -> Callable[[int], Levels]:
    """n -> the levels of n steps."""
    start = shortened(schedule, strength)
    rule = grid_of(grid)
    if strength != 1.0 and getattr(rule, "func", rule) in _PUBLISHED:
        return lambda n: _below(start.noisiest, rule, n, schedule)
    return lambda n: rule(start, n)


def _below(top: Level, grid: Grid, n: int, schedule: NoiseSchedule) -> Levels:
    """The part below `top` of a grid that was published for a whole schedule, in n steps.

    Such a grid is a curve of lam over its places, and is not stretched: where `top` is one of its own levels, with as
    many steps as the grid has below it, these are the published ones.
    """
    lams = [float(level.lam) for level in grid(schedule, _FINE, to_zero=False)]  # type: ignore[call-arg]
    k = min(max(bisect_right(lams, float(top.lam)), 1), _FINE)
    first = k - 1 + (float(top.lam) - lams[k - 1]) / (lams[k] - lams[k - 1])
    inner = []
    for i in range(1, check_steps(n)):
        place = first + (_FINE - first) * i / n
        k = min(int(place), _FINE - 1)
        inner.append(level_at(schedule, lams[k] + (lams[k + 1] - lams[k]) * (place - k)))
    return (top, *inner, schedule.clean)


def steps_within(nfe: int, branches: int, evaluations: Callable[[int], int]) -> int:
    """The largest number of steps whose cost does not exceed `nfe` network rows per image.

    evaluations(n): how often a run of n steps calls the network, not falling with n; it may raise ConfigError for an n
    that the grid cannot have, if it does for all larger ones too.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ConfigError(f"nfe must be a whole number, at least 1: network evaluations per image, got {nfe!r}")
    least = evaluations(1) * branches
    if least > nfe:
        guided = f" with guidance, which takes {branches} for each of the solver's" if branches > 1 else ""
        without = ", or guidance scale 1" if branches > 1 and least // branches <= nfe else ""
        raise ConfigError(f"nfe {nfe} is too small a budget: one step costs {least}{guided}; give at least {least}"
                          f"{without}")  # fmt: skip

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


def check_begins_in_noise(first: Level, steps: int, schedule: NoiseSchedule) -> None:
    """ConfigError where a run that begins with noise alone would begin at a level that still has much of the picture.

    sigma / (alpha + sigma) of the first level must be 0.9 of that of the noisiest one, or that of the spacing "leading"
    with so many steps, which begins lowest of all named grids that are laid over a whole schedule.
    """

    def noise(level: Level) -> float:
        return float(level.sigma) / (float(level.alpha) + float(level.sigma))

    if noise(first) >= 0.9 * noise(schedule.noisiest):
        return
    try:
        lowest = noise(leading(schedule, steps)[0])
    except ConfigError:  # a schedule in continuous time, or more steps than it can have
        lowest = math.inf
    if noise(first) < lowest:
        begin, noisiest = float(first.time), float(schedule.noisiest.time)
        raise ConfigError(f"the levels begin at time {begin:.4g}, where much of a picture is there already, and there "
                          f"is none to start from: begin near time {noisiest:.4g}, or give init_images")  # fmt: skip


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
