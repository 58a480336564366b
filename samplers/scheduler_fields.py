"""The fields of FewstepScheduler that stand for those of another scheduler's config, and which solvers it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .adaptive import AdaptiveDPM
from .from_config import is_flow, shift_from_config, sigma_time_of


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


def fixed_steps(solver: Any) -> Any:
    """`solver`, or ConfigError if it chooses its steps while it runs: a scheduler lays them out before."""
    kind = solver if isinstance(solver, type) else type(solver)
    if issubclass(kind, AdaptiveDPM):
        raise ConfigError(f"{kind.__name__} chooses its steps while it runs, but a pipeline asks for them before; use "
                          "fewstep.solve, or a solver with fixed steps such as DPMpp2M()")  # fmt: skip
    return solver
