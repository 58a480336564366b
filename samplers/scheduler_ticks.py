"""Which tick of a run is this call of a scheduler's `step`?

Nothing is looked up by value where the order of the calls, the begin index or the timestep's place in memory tells:
times may repeat (Heun), and reading a number back from a GPU makes the host wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import ConfigError
from .solver import Plan

_ONE_EACH = "two pipelines that run at once need a scheduler each: FewstepScheduler.from_config(scheduler.config)"


def tick_of(timestep: float | Tensor, plan: Plan, due: int | None, issued: Sequence[Tensor]) -> int:
    """The tick that a call with `timestep` performs.

    due: the tick that must come now, or None before the first one of a run without a begin index.
    issued: the `timesteps` tensors of the scheduler's runs, newest last.
    Errors: ConfigError where the call cannot be one of this run.
    """
    ticks = len(plan)
    place = position(timestep, issued)
    if due is None:
        due = place if place is not None else nearest(timestep, plan)
    if due >= ticks:
        raise ConfigError(f"step was called after the last of {ticks} ticks; set_timesteps begins a new run")
    fits = place == due if place is not None else is_near(timestep, plan, due)
    if not fits:
        raise ConfigError(
            f"step was called with timestep {float(timestep):g} where tick {due} of {ticks}, timestep "
            f"{float(plan.nodes[due].time):g}, was due. Ticks cannot be skipped or repeated, and {_ONE_EACH}"
        )
    return due


def position(timestep: float | Tensor, issued: Sequence[Tensor]) -> int | None:
    """Where in the newest `timesteps` the element `timestep` lies, told by its memory; None if it is a copy.

    Errors: ConfigError for an element of an earlier run's `timesteps`.
    """
    if not isinstance(timestep, Tensor) or timestep.numel() != 1:
        return None
    for age, timesteps in enumerate(reversed(issued)):
        if timestep.dtype == timesteps.dtype and _memory(timestep) == _memory(timesteps):
            if age == 0:
                return int(timestep.storage_offset())
            raise ConfigError(f"this timestep belongs to an earlier set_timesteps of this scheduler; {_ONE_EACH}")
    return None


def nearest(timestep: float | Tensor, plan: Plan) -> int:
    """The tick whose time is nearest; of equal ones (Heun) the one that begins a step."""
    time = float(timestep)
    return min(range(len(plan)), key=lambda i: (abs(float(plan.nodes[i].time) - time), plan.stage[i], i))


def is_near(timestep: float | Tensor, plan: Plan, tick: int) -> bool:
    """Whether the timestep can be the tick's time after a rounding to an integer or to bfloat16.

    Not to an integer where all times are small (functions of sigma). On a GPU it is not read.
    """
    if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
        return True
    time, greatest = float(plan.nodes[tick].time), max(abs(float(node.time)) for node in plan.nodes)
    return abs(float(timestep) - time) <= abs(time) / 128.0 + (1.0 if greatest > 10.0 else 1e-3)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
