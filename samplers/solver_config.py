"""Solvers and grids as JSON-able values, for configs that must survive save_pretrained and from_pretrained."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Any

from ..errors import ConfigError
from . import SOLVERS
from .grids import GRIDS, Grid
from .solver import Solver


def solver_of(value: Solver | str | Mapping[str, Any]) -> Solver:
    """The solver that `value` names.

    value: a Solver (returned as it is), a name of SOLVERS ("2m") or of a class ("DPMpp2M"), or {"name": "UniPC",
    "order": 3}.
    Errors: ConfigError for an unknown name or hyper-parameter.
    """
    if not isinstance(value, str | Mapping):
        if not (hasattr(value, "plan") and hasattr(value, "step")) or isinstance(value, type):
            raise ConfigError(f"a solver must be an instance such as DPMpp2M(), or a name, got {value!r}")
        return value
    name, parameters = _split(value, "solver")
    if name in SOLVERS and not parameters:
        return SOLVERS[name]()
    classes: dict[str, Any] = {type(make()).__name__: type(make()) for make in SOLVERS.values()}
    if name not in classes:
        raise ConfigError(f"unknown solver {name!r}: expected one of {', '.join((*SOLVERS, *classes))}, or pass the "
                          "solver itself: solver=DPMpp2M()")  # fmt: skip
    _check_names(classes[name], parameters, f"solver {name}")
    return classes[name](**parameters)


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
    """The grid that `value` names: a name of GRIDS, or {"name": "karras", "rho": 5.0}.

    Errors: ConfigError for an unknown name or parameter.
    """
    if not isinstance(value, str | Mapping):
        raise ConfigError(f"a grid must be one of {', '.join(GRIDS)} (or {{'name': ..., ...}}), got {value!r}; "
                          "for explicit times call set_timesteps(timesteps=[...])")  # fmt: skip
    name, parameters = _split(value, "grid")
    if name not in GRIDS:
        raise ConfigError(f"unknown grid {name!r}: expected one of {', '.join(GRIDS)}")
    _check_names(GRIDS[name], parameters, f"grid {name}", skip=2)
    return partial(GRIDS[name], **parameters) if parameters else GRIDS[name]


def _split(value: str | Mapping[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    parameters = dict(value)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"a {what} as a mapping needs a 'name', got {dict(value)!r}")
    return name, parameters


def _check_names(function: Any, given: Mapping[str, Any], what: str, skip: int = 0) -> None:
    known = list(inspect.signature(function).parameters)[skip:]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"{what} has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}")
