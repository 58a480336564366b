"""Solvers and grids from names, and as JSON-able values for configs that must survive save_pretrained."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..names import ADAPTIVE_NAMES, parse_options, resolve_grid, resolve_solver
from . import ADAPTIVE, SOLVERS
from .adaptive import AdaptiveDPM
from .grids import GRIDS, Grid
from .solver import Solver


def solver_of(value: Solver | str | Mapping[str, Any]) -> Solver:
    """The solver that `value` names.

    value: a Solver (returned as it is), a name as in `names.resolve_solver` ("2m", "sde-2m:eta=0.5", "DPM++ SDE") or
    of a class ("DPMpp2M"), or {"name": "UniPC", "order": 3}.
    Errors: ConfigError for an unknown name or hyper-parameter, and for a name that implies a grid (see
    `solver_and_grid`).
    """
    solver, grid = solver_and_grid(value)
    if grid is not None:
        raise ConfigError(f"{value!r} names a grid too, which has no place here: name the solver alone, as in "
                          f"solver={solver!r}, and pass grid={grid!r} where a grid is asked for")  # fmt: skip
    return solver


def solver_and_grid(value: Solver | str | Mapping[str, Any]) -> tuple[Solver, str | None]:
    """`solver_of`, and the name of the grid that a name like "DPM++ 2M Karras" implies, or None."""
    if isinstance(value, str):
        return _solver_of_text(value)
    if isinstance(value, Mapping):
        name, parameters = _split(value, "solver")
        classes = _classes()
        solver, grid = (classes[name](), None) if name in classes else _solver_of_text(name)
        return _with(solver, parameters, f"solver {name}"), grid
    if isinstance(value, AdaptiveDPM):
        raise ConfigError(f"{value!r} chooses its steps while it runs, so it has no plan and no grid: take a solver of "
                          "a fixed number of steps, such as DPMpp2M(), or fewstep.solve")  # fmt: skip
    if not (hasattr(value, "plan") and hasattr(value, "step")) or isinstance(value, type):
        raise ConfigError(f"a solver must be an instance such as DPMpp2M(), or a name, got {value!r}")
    return value, None


def _solver_of_text(text: str) -> tuple[Solver, str | None]:
    name, _, options = text.partition(":")
    of_class = _classes().get(name)
    if of_class is None:
        return _solver_of_name(text)
    solver = _with_texts(of_class(), options, f"solver {name}")
    try:
        other = resolve_solver(text).solver
    except ConfigError:  # nobody else uses this name
        return solver, None
    if solver != _solver_of_name(other)[0]:
        raise ConfigError(f"{text!r} is the class {solver} here, and {other!r} in other programs: pass that text, or "
                          f"{{'name': {name!r}}} for the class")  # fmt: skip
    return solver, None


def _solver_of_name(text: str) -> tuple[Solver, str | None]:
    named = resolve_solver(text)
    name, _, options = named.solver.partition(":")
    if name in ADAPTIVE_NAMES and name not in SOLVERS:
        raise ConfigError(
            f"{name} ({text!r}) chooses its steps while it runs, so it has no plan and no grid: take a solver of a "
            "fixed number of steps, such as 2m; AdaptiveDPM() is for fewstep.solve"
        )
    return _with_texts(SOLVERS[name](), options, f"solver {name}"), named.grid


def adaptive_of(value: Any) -> AdaptiveDPM | None:
    """The adaptive solver that `value` is or names ("adaptive-23:rtol=0.02", "DPM adaptive"); None for anything else.

    Errors: ConfigError for an unknown hyper-parameter, and for an adaptive solver's name with a grid's.
    """
    if not isinstance(value, str):
        return value if isinstance(value, AdaptiveDPM) else None
    try:
        named = resolve_solver(value)
    except ConfigError:
        return None  # whoever asked for a solver says what is wrong
    name, _, options = named.solver.partition(":")
    if name not in ADAPTIVE:
        return None
    if named.grid is not None:
        raise ConfigError(f"{value!r} names a grid, and {name} chooses its steps itself: leave {named.grid} out")
    return _with_texts(ADAPTIVE[name](), options, f"solver {name}")


def solver_config(solver: Solver) -> dict[str, Any]:
    """{"name": class name, **hyper-parameters}, the inverse of `solver_of` for the solvers of SOLVERS.

    Errors: ConfigError for a solver whose hyper-parameters are not JSON values.
    """
    if not is_dataclass(solver) or isinstance(solver, type):
        raise ConfigError(f"{solver!r} cannot be written to a config: a solver must be a dataclass")
    config = {"name": type(solver).__name__, **asdict(solver)}
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{solver!r} cannot be written to a config: {error}") from error
    return config


def grid_of(value: str | Mapping[str, Any]) -> Grid:
    """The grid that `value` names: as in `names.resolve_grid`, with ":key=value,..." ("karras", "karras:rho=5",
    "SGM Uniform"), or {"name": "karras", "rho": 5.0}.

    Errors: ConfigError for an unknown name or parameter.
    """
    if isinstance(value, str):
        name, _, options = value.partition(":")
        name = resolve_grid(name).grid
        types = get_type_hints(GRIDS[name])
        known = {parameter: types[parameter] for parameter in _parameters(GRIDS[name], skip=2)}
        parameters = parse_all(options, known, f"grid {name}")
    elif isinstance(value, Mapping):
        name, parameters = _split(value, "grid")
        name = resolve_grid(name).grid
        _check_names(_parameters(GRIDS[name], skip=2), parameters, f"grid {name}")
    else:
        raise ConfigError(f"a grid must be one of {', '.join(GRIDS)} (or {{'name': ..., ...}}), got {value!r}; "
                          "for explicit times call set_timesteps(timesteps=[...])")  # fmt: skip
    return partial(GRIDS[name], **parameters) if parameters else GRIDS[name]


def _classes() -> dict[str, Callable[..., Any]]:
    return {type(make()).__name__: type(make()) for make in SOLVERS.values()}


def _split(value: Mapping[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    parameters = dict(value)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"a {what} as a mapping needs a 'name', got {dict(value)!r}")
    return name, parameters


def _with(solver: Any, parameters: Mapping[str, Any], what: str) -> Solver:
    _check_names([field.name for field in fields(solver)], parameters, what)
    return replace(solver, **parameters)


def _with_texts(solver: Any, options: str, what: str) -> Any:
    types = get_type_hints(type(solver))
    known = {field.name: types[field.name] for field in fields(solver)}
    return replace(solver, **parse_all(options, known, what))


def parse_all(options: str, types: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values that "key=value,..." writes, of the types that `types` gives for the keys.

    what: what has them, for the ConfigErrors of an unknown key and of a value of another type.
    """
    texts = parse_options(options) if options.strip() else {}
    _check_names(list(types), texts, what)
    return {key: _parse(text, types[key], f"{key} of {what}") for key, text in texts.items()}


def _parse(text: str, kind: Any, what: str) -> Any:
    """The value of type `kind` (int, float, bool, str, Literal, or one of these and None) that `text` writes."""
    if get_origin(kind) in (Union, UnionType):
        kinds = [k for k in get_args(kind) if k is not NoneType]
        if len(kinds) < len(get_args(kind)) and text.lower() == "none":
            return None
        kind = kinds[0] if len(kinds) == 1 else object
    if get_origin(kind) is Literal:
        found = [choice for choice in get_args(kind) if str(choice) == text]
        if not found:
            raise ConfigError(f"{what} must be one of {', '.join(map(str, get_args(kind)))}, got {text!r}")
        return found[0]
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float, str):
        try:
            return kind(text)
        except ValueError:
            pass
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    raise ConfigError(f"{what} must be {names.get(kind, 'given in Python')}, got {text!r}")


def _parameters(function: Callable[..., Any], skip: int) -> list[str]:
    return list(inspect.signature(function).parameters)[skip:]


def _check_names(known: list[str], given: Mapping[str, Any], what: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"{what} has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}")
