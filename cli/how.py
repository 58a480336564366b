"""How a run samples: solver, schedule, steps or budget, or a saved table. What contradicts is refused. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..aliases import AUTOMATIC, GRID_DIFFERS
from ..errors import ConfigError
from ..names import (
    ADAPTIVE_NAMES,
    DEFAULT_SOLVER,
    GRID_NAMES,
    SOLVER_NAMES,
    NamedGrid,
    NamedSolver,
    default_grid,
    parse_options,
    resolve_grid,
    resolve_solver,
)
from . import checks
from .table_ref import TableRef, find_table

DEFAULT_STEPS = 10


class How(NamedTuple):
    """solver: canonical, as in "sde-2m:eta=0.5".       schedule: likewise, or "table", or "adaptive" for a solver that
    chooses its steps while it runs.       steps: None for that, and for a budget.
    notes: what other programs' names became, for standard error.
    """

    solver: str
    schedule: str
    steps: int | None
    nfe: int | None
    table: TableRef | None
    notes: tuple[str, ...] = ()


def choose(
    solver: str | None, schedule: str | None, steps: int | None, nfe: int | None = None, table: str | None = None
) -> How:
    """From the options as they were given; None for those that were not."""
    if steps is not None:
        checks.whole("--steps", steps, 1, checks.MAX_STEPS)
    if nfe is not None:
        checks.whole("--nfe", nfe, 1, checks.MAX_NFE)
    if steps is not None and nfe is not None:
        raise ConfigError("--steps and --nfe were both given: --nfe finds the number of steps itself, use one of them")
    if table is not None:
        return _of_table(find_table(table), solver=solver, schedule=schedule, steps=steps, nfe=nfe)
    named = solver_named(DEFAULT_SOLVER if solver is None else solver)
    if named.solver.partition(":")[0] in ADAPTIVE_NAMES:
        return _adaptive(named, _notes(solver, named, None, None), schedule=schedule, steps=steps, nfe=nfe)
    if schedule is None:
        grid, notes = named.grid or default_grid(named.solver), ()
    else:
        grid, exact = schedule_named(schedule)
        notes = () if _is_ours(schedule, GRID_NAMES) else (f"{schedule!r} is --schedule {grid} here ({exact})",)
    notes = _notes(solver, named, grid, schedule) + notes
    return How(named.solver, grid, DEFAULT_STEPS if steps is None and nfe is None else steps, nfe, None, notes)


def solver_named(text: str) -> NamedSolver:
    """Our name of a solver, the schedule that the text implies, and how well they fit."""
    try:
        named = resolve_solver(text)
        return named._replace(solver=_canonical(named.solver))
    except ConfigError as error:
        other = _known(resolve_grid, text)
        if other is not None:
            raise ConfigError(f"--solver is the update rule; {text!r} is noise levels: --schedule {other[0]}") from None
        raise ConfigError(f"--solver: {error}") from None


def schedule_named(text: str) -> NamedGrid:
    """Our name of a schedule, with its ":key=value,..." if it has any, and how well it fits."""
    name, _, options = text.partition(":")
    try:
        found = resolve_grid(name)
        return found._replace(grid=_canonical(f"{found.grid}:{options}"))
    except ConfigError as error:
        other = _known(resolve_solver, text)
        if other is not None:
            raise ConfigError(f"--schedule is noise levels; {text!r} is an update rule: --solver {other[0]}") from None
        raise ConfigError(f"--schedule: {error}") from None


def _canonical(text: str) -> str:
    """ "name:key=value,..." without spaces, and without a colon that nothing follows. An order that contradicts a name
    that says it is refused: records would have the name."""
    name, _, options = text.partition(":")
    if not options.strip():
        return name
    given = parse_options(options)
    family = name.rpartition("-")[0]
    if "order" in given and family in ("unipc", "deis", "adaptive", "adaptive++"):
        others = [other for other in (*SOLVER_NAMES, *ADAPTIVE_NAMES) if other.rpartition("-")[0] == family]
        raise ConfigError(f"order={given['order']} does not go with {name}, whose name says the order: choose from "
                          f"{', '.join(others)}")  # fmt: skip
    return f"{name}:{','.join(f'{key}={value}' for key, value in given.items())}"


def _is_ours(given: str, names: Sequence[str]) -> bool:
    return given.partition(":")[0].strip().lower() in names


def _known(resolve: Callable[[str], tuple[Any, ...]], text: str) -> tuple[Any, ...] | None:
    try:
        return resolve(text)
    except ConfigError:
        return None


def _notes(given: str | None, named: NamedSolver, grid: str | None, schedule: str | None) -> tuple[str, ...]:
    """A line where what was typed is another program's name.       grid: what is used; schedule: what was typed."""
    if given is None or _is_ours(given, (*SOLVER_NAMES, *ADAPTIVE_NAMES)):
        return ()
    implied, after, exact = "", "", named.exact
    if schedule is not None:
        implied = f", on --schedule {grid} as you say,"
    elif named.grid is not None:
        implied = f" --schedule {named.grid}"
    elif grid is not None:
        after = f", on --schedule {grid}, which is used where none is named"
    if schedule is not None or named.grid is not None:
        exact = exact.replace(f"; {AUTOMATIC}", "")
    exact = exact.replace(GRID_DIFFERS, f"same; {GRID_DIFFERS}")
    return (f"{given!r} is --solver {named.solver}{implied} here (update rule: {exact}){after}",)


def _adaptive(named: NamedSolver, notes: tuple[str, ...], **given: str | int | None) -> How:
    for option, value in {**given, "schedule": given["schedule"] or named.grid}.items():
        if value is not None:
            raise ConfigError(f"--{option} {value} does not go with --solver {named.solver}, which chooses its steps "
                              "while it runs: leave it out (rtol=... and atol=... say how exactly)")  # fmt: skip
    return How(named.solver, "adaptive", None, None, None, notes)


def _of_table(ref: TableRef, *, solver: str | None, schedule: str | None, steps: int | None, nfe: int | None) -> How:
    for option, value in (("--solver", solver), ("--schedule", schedule), ("--nfe", nfe)):
        if value is not None:
            raise ConfigError(f"{option} {value} and --table were both given: a table holds solver, schedule and steps "
                              "already; leave one of the two out")  # fmt: skip
    if steps is not None and steps != ref.steps:
        raise ConfigError(f"--table {ref.name!r} has {ref.steps} steps, and --steps {steps} was given: leave --steps "
                          f"out, or make another table: fewstep table --steps {steps} --save FILE")  # fmt: skip
    return How(ref.solver, "table", ref.steps, None, ref)
