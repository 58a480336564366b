"""The methods of `work_precision`: every solver of `SOLVERS` on every grid of a schedule.

A method is asked for the best it can do within a number of network evaluations an image and branch: it takes as many
steps as fit, and says what it used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import FewstepError
from ..samplers import (
    GRIDS,
    SOLVERS,
    Levels,
    NoiseSchedule,
    NoiseTape,
    Parametrisation,
    RectifiedFlow,
    Table,
    fold,
    from_times,
    solve,
    trace,
)
from .work_precision_problems import Problem

OURS = "fewstep"
FLOW_SHIFTS = (1.0, 1.5, 3.0)
FLOW_STARTS = (0.999, 0.99)
OTHER_MODELS = ("ays-sdxl", "ays-svd")  # tables that were tuned for schedules which are not here


class Sample(NamedTuple):
    """x: images at sigma = 0.       ticks: evaluations of a run; nfe: image rows and branches evaluated, an image."""

    x: Tensor
    steps: int
    ticks: int
    nfe: int


@dataclass(frozen=True, eq=False)
class Method:
    """implementation: "fewstep" or "diffusers".       name, grid: as tables print them.
    run(problem, budget): its images with at most `budget` ticks; None where not even one step fits.
    noisy: draws noise in the loop, so it follows no trajectory and has no latent error.
    """

    implementation: str
    name: str
    grid: str
    run: Callable[[Problem, int], Sample | None] = field(repr=False)
    noisy: bool = False


# --- ours -----------------------------------------------------------------------------------------------------------


def flow_steps(schedule: NoiseSchedule, n: int, *, shift: float) -> Levels:
    """t = s u / (1 + (s - 1) u) for u = 1, 1 - 1/n, ..., 1/n, then 0: the times that flow pipelines ask for."""
    scale = float(schedule.noisiest.time)
    us = [1.0 - i / n for i in range(n)]
    return from_times(schedule, [scale * shift * u / (1.0 + (shift - 1.0) * u) for u in us])


def begun_at(schedule: NoiseSchedule, n: int, *, grid: Callable[..., Levels], start: float) -> Levels:
    """`grid` with its first level, t = 1 where lam = -inf, moved to t = `start`; diffusers' solvers begin at 0.999.

    The noise is then taken for a state that it is not quite, and in exchange the first step may be of higher order and
    the second has a history.
    """
    first, *rest = grid(schedule, n)
    return (schedule.level(start * float(first.time)), *rest)


def grids_of(schedule: NoiseSchedule) -> dict[str, Callable[[NoiseSchedule, int], Levels]]:
    """The grids that this schedule has, no two with the same levels; for flows also the shifted times."""
    candidates: dict[str, Any] = {name: grid for name, grid in GRIDS.items() if name not in OTHER_MODELS}
    if isinstance(schedule, RectifiedFlow):
        shifted = {f"shift-{s:g}": partial(flow_steps, shift=s) for s in FLOW_SHIFTS}
        candidates |= shifted
        for start in FLOW_STARTS:
            candidates |= {f"{name} {start:g}": partial(begun_at, grid=g, start=start) for name, g in shifted.items()}
    found: dict[str, Any] = {}
    seen: list[list[float]] = []
    for name, grid in candidates.items():
        try:
            sigmas = [float(level.sigma) for level in grid(schedule, 9)]
        except FewstepError:  # defined for other schedules
            continue
        if all(max(abs(a - b) for a, b in zip(sigmas, other, strict=True)) > 1e-6 for other in seen):
            found[name] = grid
            seen.append(sigmas)
    return found


def fitting(solver: Any, grid: Callable[..., Levels], schedule: NoiseSchedule, budget: int) -> tuple[int, Table] | None:
    """The most steps whose run evaluates the network at most `budget` times, and its table."""
    for steps in range(budget, 0, -1):
        try:
            levels = grid(schedule, steps)
            if len(solver.plan(levels, schedule)) > budget:
                continue
            return steps, trace(solver, levels, schedule)
        except FewstepError:  # a grid or a solver may have a smallest number of steps
            continue
    return None


def run_ours(problem: Problem, budget: int, *, solver: Any, grid: Callable[..., Levels]) -> Sample | None:
    found = fitting(solver, grid, problem.schedule, budget)
    if found is None:
        return None
    steps, table = found
    key = fingerprint(table, problem.parametrisation)
    if key not in problem.memo:
        problem.memo[key] = run_table(problem, table, steps)
    return problem.memo[key]


def fingerprint(table: Table, parametrisation: Parametrisation) -> tuple[Any, ...]:
    """Equal for tables that do the same: other names for a solver, or a budget of which an evaluation stays unused."""
    folded = [fold(row, parametrisation, (1.0,)) for row in table.rows]
    return tuple(
        (round(float(row.level.time), 6), f.live, f.sources, _rounded(f.matrix))
        for row, f in zip(table.rows, folded, strict=True)
    )


def _rounded(lines: Any) -> Any:
    return tuple(tuple(round(value, 9) for value in line) for line in lines)


def run_table(problem: Problem, table: Table, steps: int) -> Sample:
    parts, ticks, nfe = [], 0, 0
    for network, x, seeds in problem.batches():
        result = solve(table, network, x, guidance=problem.guidance, tape=NoiseTape(tuple(seeds)))
        parts.append(result.x)
        ticks, nfe = result.report.evaluations, result.report.nfe // len(seeds)
    return Sample(torch.cat(parts), steps, ticks, nfe)


def ours(schedule: NoiseSchedule, names: Iterable[str]) -> list[Method]:
    """Every solver on every grid of the schedule."""
    grids = grids_of(schedule)
    methods = []
    for name in names:
        solver: Any = SOLVERS[name]()
        noisy = is_noisy(solver, schedule)
        for grid_name, grid in grids.items():
            run = partial(run_ours, solver=solver, grid=grid)
            methods.append(Method(OURS, name, grid_name, run, noisy))
    return methods


def is_noisy(solver: Any, schedule: NoiseSchedule) -> bool:
    return any(trace(solver, GRIDS["lambda"](schedule, 6), schedule).noisy)
