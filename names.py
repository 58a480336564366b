"""The names of solvers and grids, ours and other programs', without importing torch.

`resolve_solver` and `resolve_grid` take what people type: "2m", "sde-2m:eta=0.5", "DPM++ 2M Karras", "dpmpp_2m_sde",
"DPMSolverMultistepScheduler", also as "k_dpmpp_2m", "3M SDE" or "diffusers.EulerDiscreteScheduler". docs/names.md has
the table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import NamedTuple

from .aliases import ABSENT, DIFFUSERS, GRID_TABLES, SAME, SOLVER_TABLES, Alias
from .errors import ConfigError

SOLVER_NAMES = (
    "2m", "3m", "3m-as-released", "2s", "3s", "fast++", "unipc-2", "unipc-3", "unipc-4", "deis-2", "deis-3",
    "dpm-2m", "dpm-3m", "dpm-2s", "dpm-3s", "fast", "heun", "euler", "ddim", "ddpm", "sde-1",
    "sde-2m", "sde-3m", "dpmpp-sde", "dpm2-a", "2s-a",
)  # fmt: skip
GRID_NAMES = (
    "lambda", "karras", "time", "linspace", "leading", "trailing", "quadratic", "exponential", "polyexponential",
    "beta", "ays-sd", "ays-sdxl", "ays-svd", "flow",
)  # fmt: skip
DEFAULT_SOLVER = "dpm-2m"
# The grid where none is given: "lambda" for those that it suits better (samplers.defaults says what this rests on).
DEFAULT_GRID, LAMBDA_GRID = "karras", "lambda"
_EVEN_IN_LAM = ("2m", "3m", "3m-as-released", "unipc-2", "unipc-3", "unipc-4", "sde-1", "sde-2m", "sde-3m")
# They choose their steps themselves: no grid, no number of steps.
ADAPTIVE_NAMES = ("adaptive-12", "adaptive-23", "adaptive++-12", "adaptive++-23")


def default_grid(solver: str) -> str:
    """The grid for a solver of SOLVER_NAMES, perhaps with its options, where none is given (not for flow models)."""
    return LAMBDA_GRID if solver.partition(":")[0] in _EVEN_IN_LAM else DEFAULT_GRID


class NamedSolver(NamedTuple):
    """solver: a name of SOLVER_NAMES or ADAPTIVE_NAMES, perhaps with ":key=value,...".

    grid: the name of the grid that the text implies, or None.
    exact: "same", or in what the solver or grid differs from the one that the text names elsewhere.
    """

    solver: str
    grid: str | None
    exact: str


class NamedGrid(NamedTuple):
    """grid: a name of GRID_NAMES.       exact: as in NamedSolver."""

    grid: str
    exact: str


def resolve_solver(text: str) -> NamedSolver:
    """The solver that `text` names: one of ours or another program's, perhaps with a grid's name after it and with
    ":key=value,..." for hyper-parameters. Case, spaces, "_" and "-" do not matter. Hyper-parameters are not checked.

    Errors: ConfigError for a name that is unknown, or of a solver that is not here (it names the nearest).
    """
    name, _, options = text.partition(":")
    name = _PREFIX.sub("", name.strip())
    if _key(name) in _CLASSES:
        return _resolve_class(name, options)
    found, grid = _split_grid(name)
    if found is None:
        raise ConfigError(_unknown(text, "solver", _key(name), {**_SOLVERS, **_CLASSES}, _GRIDS))
    _refuse_absent(found, text, "solver")
    solver = found.ours
    if options:
        solver += ("," if ":" in solver else ":") + options.strip()
    return NamedSolver(solver, grid.grid if grid else None, _both(_exact(found), grid))


def resolve_grid(text: str) -> NamedGrid:
    """The grid that `text` names, one of ours or another program's; errors as in `resolve_solver`."""
    found = _find(text, GRID_NAMES, _GRIDS)
    if found is None:
        raise ConfigError(_unknown(text, "grid", _key(text), _GRIDS, _SOLVERS))
    _refuse_absent(found, text, "grid")
    return NamedGrid(found.ours, _exact(found))


def parse_options(text: str) -> dict[str, str]:
    """ "key=value,..." as a mapping of texts.

    Errors: ConfigError for a part without "=" and for a key given twice.
    """
    options: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ConfigError(f"hyper-parameters are written key=value,key=value, got {part.strip()!r} in {text!r}")
        if key in options:
            raise ConfigError(f"{key} is given twice in {text!r}")
        options[key] = value
    return options


def _resolve_class(name: str, options: str) -> NamedSolver:
    """A scheduler class of diffusers with the options of its config that choose a solver or a grid."""
    given, grid = parse_options(options) if options.strip() else {}, None
    chosen: list[str] = []
    for option in list(given):
        found = _GRIDS.get(_key(option)) or _GRIDS.get(_key(f"{option}={given[option]}"))
        if found is None:
            continue
        on = given.pop(option).lower() not in ("false", "none", "0", "")
        if on and option.startswith("use_"):
            chosen.append(option)
        if on and (option.startswith("use_") or grid is None):  # as in diffusers they come before timestep_spacing
            grid = NamedGrid(found.ours, _exact(found))
    if len(chosen) > 1:
        raise ConfigError(f"{name}: {chosen[0]} and {chosen[1]} choose two grids; give one of them")
    given = {key: value for key, value in given.items() if f"{key}={value.lower()}" not in _DEFAULTS}
    rest = ",".join(f"{key}={given[key]}" for key in sorted(given))
    found = _SOLVERS.get(_key(f"{name}:{rest}" if rest else name))
    if found is None:
        rows = [alias.theirs for alias in DIFFUSERS if _key(alias.theirs.partition(":")[0]) == _key(name)]
        raise ConfigError(f"{name} with {rest!r} is not in the table; of this class it has {', '.join(rows)}")
    _refuse_absent(found, f"{name}:{rest}" if rest else name, "solver")
    return NamedSolver(found.ours, grid.grid if grid else None, _both(_exact(found), grid))


def _split_grid(name: str) -> tuple[Alias | None, NamedGrid | None]:
    """The solver that `name` begins with, if any, and the grid whose name ends it."""
    found = _find(name, SOLVER_NAMES + ADAPTIVE_NAMES, _SOLVERS)
    if found is not None or _key(name) in _GRIDS:
        return found, None
    for i in range(1, len(name)):
        if _key(name[i:]) in _GRIDS and (found := _find(name[:i], SOLVER_NAMES + ADAPTIVE_NAMES, _SOLVERS)):
            return found, resolve_grid(name[i:])
    return None, None


def _find(text: str, ours: tuple[str, ...], table: Mapping[str, Alias]) -> Alias | None:
    """Our own name as it is, or else the row of the table."""
    text, key = text.strip(), _key(text)
    if text.lower() in ours:
        return Alias(text.lower(), text.lower(), SAME)
    return table.get(key) or (table.get(f"dpmpp{key}") if key[:1].isdigit() else None)  # "3M SDE"


def _key(text: str) -> str:
    """What is compared: lower case, "pp" for "++", without spaces, "_" and "-"."""
    text = text.lower().replace("++", "pp")
    return "".join(c for c in text if c not in " _-\t")


def _exact(alias: Alias) -> str:
    return alias.exact if not alias.note else f"{alias.exact}; {alias.note}"


def _both(solver: str, grid: NamedGrid | None) -> str:
    return solver if grid is None or grid.exact == SAME else f"{solver}. Grid: {grid.exact}"


def _refuse_absent(alias: Alias, text: str, what: str) -> None:
    if alias.exact == ABSENT:
        raise ConfigError(f"the {what} {text.strip()!r} is not here: {alias.note}. The nearest is {alias.ours!r}; "
                          "docs/names.md in fewstep's repository has the table")  # fmt: skip


def _unknown(text: str, what: str, key: str, known: Mapping[str, Alias], others: Mapping[str, Alias]) -> str:
    if key in others:
        other = "grid" if what == "solver" else "solver"
        return f"{text!r} is a {other}, not a {what}; pass it as {other}"
    if what == "solver" and key in _PYTHON_ONLY:
        return f"the solver {text.strip()!r} is in Python only (samplers/dpm_v3.py): it needs statistics of the model"
    ours = SOLVER_NAMES + ADAPTIVE_NAMES if what == "solver" else GRID_NAMES
    here = [key for key, alias in known.items() if alias.exact != ABSENT]
    likely = [known[close].theirs for close in difflib.get_close_matches(key, here, n=4, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, likely))}? Ours" if likely else "ours"
    return (f"unknown {what} {text.strip()!r}: {hint} are {', '.join(ours)}; docs/names.md in fewstep's repository has "
            "other programs' names")  # fmt: skip


def _table(ours: tuple[str, ...], tables: Mapping[str, tuple[Alias, ...]]) -> dict[str, Alias]:
    """By key. The order of the tables decides where names agree; ours come last: `_find` tries them first, as typed."""
    found: dict[str, Alias] = {}
    for alias in (alias for table in tables.values() for alias in table):
        found.setdefault(_key(alias.theirs), alias)
    for name in ours:
        found.setdefault(_key(name), Alias(name, name, SAME))
    return found


_PREFIX = re.compile(r"^(diffusers\.(schedulers\.)?|k_)", re.IGNORECASE)  # of modules, and of older interfaces
_PYTHON_ONLY = ("dpmv3", "dpmsolverv3")
# Options of diffusers that may be written out though they are at their default.
_DEFAULTS = {
    "solver_order=2", "algorithm_type=dpmsolver++", "algorithm_type=deis", "solver_type=midpoint", "solver_type=bh2",
    "solver_type=logrho", "final_sigmas_type=zero", "lower_order_final=true", "predict_x0=true",
}  # fmt: skip
_SOLVERS = _table((*SOLVER_NAMES, *ADAPTIVE_NAMES), SOLVER_TABLES)
_GRIDS = _table(GRID_NAMES, GRID_TABLES)
_CLASSES = {_key(alias.theirs): alias for alias in DIFFUSERS if ":" not in alias.theirs}
