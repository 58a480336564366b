"""The fields of FewstepScheduler that stand for those of another scheduler's config, and which solvers it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..errors import ConfigError
from .adaptive import AdaptiveDPM
from .from_config import is_flow, shift_from_config, sigma_time_of
from .solver import Solver
from .solver_config import solver_config

_LACKS = "lacks"  # the key, in a solver's config, of the names of hyper-parameters that are not in it


def own_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` of any scheduler with what only its class says put into fields. A new mapping.

    Flow models: prediction_type, shift.       Preconditioned networks: sigma_time, sigma_data.
    """
    own = dict(config)
    if own.get("variance_type") in ("learned", "learned_range"):
        own["variance_type"] = "fixed_small"  # pipelines ask: then they drop the channels that no solver here reads
    sigma_time = sigma_time_of(config)
    if sigma_time is not None:
        own |= {"sigma_time": sigma_time, "sigma_data": config.get("sigma_data") or 1.0}
    elif is_flow(config):
        # Not use_flow_sigmas, which would say the same: where it is True, Flux drops the sigmas that its caller gives.
        own.setdefault("prediction_type", "flow_prediction")
        own["shift"] = shift_from_config(config)
    return own


def usable(solver: Any) -> Any:
    """`solver`, or ConfigError if it chooses its steps while it runs, or was saved without all that it needs."""
    kind = solver if isinstance(solver, type) else type(solver)
    if issubclass(kind, AdaptiveDPM):
        raise ConfigError(f"{kind.__name__} chooses its steps while it runs, but a pipeline asks for them before; use "
                          "fewstep.solve, or a solver with fixed steps such as DPMpp2M()")  # fmt: skip
    if isinstance(solver, Mapping) and solver.get(_LACKS):
        lacks = ", ".join(solver[_LACKS])
        raise ConfigError(f"a config cannot hold {lacks} of {solver.get('name')}; pass the solver itself, here too: "
                          "from_pretrained(path, solver=...)")  # fmt: skip
    return solver


def written(solver: Solver) -> dict[str, Any]:
    """`solver_config(solver)`, where some hyper-parameters are no JSON values (statistics) without those.

    A config that lacks some says which; the scheduler runs, but cannot be made from that config alone.
    """
    if not is_dataclass(solver) or isinstance(solver, type):
        return solver_config(solver)  # refuses it
    lacks = [f.name for f in fields(solver) if f.init and not _is_json(getattr(solver, f.name))]
    if not lacks:
        return solver_config(solver)
    kept = {f.name: getattr(solver, f.name) for f in fields(solver) if f.init and f.name not in lacks}
    return {"name": type(solver).__name__, **kept, _LACKS: lacks}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
