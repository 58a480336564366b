"""The noise levels of a pipeline's run, from the scheduler that it has.

A policy speaks of levels (the space x0, an interval of sigma). A FewstepScheduler has its table; of diffusers' own
schedulers they follow from the config. Where that cannot be read, the run still has its ticks, and whatever asks for
a level is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..samplers.from_config import is_flow, parametrisation_from_config, schedule_from_config
from ..samplers.levels import Level
from ..samplers.prediction import Parametrisation
from ..samplers.scheduler import FewstepScheduler
from ..samplers.scheduler_schedules import LabelledFlow, PreconditionedVE


class Ticks(NamedTuple):
    """The ticks that a call of a pipeline really runs.

    nodes, step, stage: as in samplers.policy.Run; steps count from 0.
    input_scales: what the scheduler multiplies the state by before the network sees it, at preconditioned models.
    """

    nodes: tuple[Level, ...]
    step: tuple[int, ...]
    stage: tuple[int, ...]
    parametrisation: Parametrisation
    input_scales: tuple[float, ...] | None = None


def ticks_of(pipe: Any, timestep: Any) -> Ticks:
    """The ticks of the call in which the denoiser is called first with `timestep`.

    Image to image begins later than `scheduler.timesteps`, other pipelines end earlier.
    Errors: IncompatibleError where the beginning cannot be told.
    """
    scheduler = pipe.scheduler
    total, count = len(scheduler.timesteps), getattr(pipe, "_num_timesteps", None)
    first = first_tick(scheduler, timestep, count)
    last = total if not isinstance(count, int) else min(first + count, total)
    if isinstance(scheduler, FewstepScheduler):
        return _of_table(scheduler, first, last)
    order = max(int(getattr(scheduler, "order", 1)), 1)
    nodes, kind, scales = _levels(scheduler)
    calls = range(last - first)
    return Ticks(
        nodes[first:last],
        tuple(k // order for k in calls),
        tuple(k % order for k in calls),
        kind,
        scales[first:last] if scales else None,
    )


def first_tick(scheduler: Any, timestep: Any, count: int | None) -> int:
    """Which of scheduler.timesteps the call begins at.

    Told by the begin index, by the place of `timestep` in memory, by the number of timesteps, by value: in this order,
    because reading a value from a GPU makes the host wait.
    """
    timesteps = scheduler.timesteps
    begin = getattr(scheduler, "begin_index", None)
    if isinstance(begin, int):
        return begin
    if isinstance(timestep, Tensor) and isinstance(timesteps, Tensor) and timestep.dtype == timesteps.dtype:
        if timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr():
            return int(timestep.storage_offset() - timesteps.storage_offset())
    if count == len(timesteps):
        return 0
    value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
    found = [k for k, t in enumerate(timesteps.tolist()) if t == value]
    if not found and not isinstance(count, int):  # a pipeline that never starts late, such as PixArt's
        return 0
    if not found:
        raise IncompatibleError(f"the denoiser was called first with timestep {value:g}, which is not one of the "
                                f"scheduler's {len(timesteps)}: this run is not known; use fewstep.sample")  # fmt: skip
    return found[0]


def _of_table(scheduler: FewstepScheduler, first: int, last: int) -> Ticks:
    plan, schedule = scheduler.table.plan, scheduler.schedule
    nodes = plan.nodes[first:last]
    scales = tuple(schedule.input_scale(v) for v in nodes) if isinstance(schedule, PreconditionedVE) else None
    begin = plan.step[first]
    steps = tuple(k - begin for k in plan.step[first:last])
    return Ticks(nodes, steps, plan.stage[first:last], scheduler.parametrisation, scales)


def _levels(scheduler: Any) -> tuple[tuple[Level, ...], Parametrisation, tuple[float, ...] | None]:
    """The level of every timestep of a diffusers scheduler, its parametrisation, its input scales."""
    times = [float(t) for t in scheduler.timesteps.tolist()]
    config = {"_class_name": type(scheduler).__name__, **scheduler.config, "thresholding": False}
    try:
        schedule = schedule_from_config(config, preconditioned=True)
        kind = parametrisation_from_config(config)
        nodes = _flow_nodes(scheduler, config, schedule, times) or tuple(schedule.level(t) for t in times)
    except ConfigError as error:
        return tuple(unknown_level(t, str(error)) for t in times), unknown_kind(str(error)), None
    scales = tuple(schedule.input_scale(v) for v in nodes) if isinstance(schedule, PreconditionedVE) else None
    return nodes, kind, scales


def _flow_nodes(
    scheduler: Any, config: Mapping[str, Any], schedule: Any, times: list[float]
) -> tuple[Level, ...] | None:
    """A flow scheduler's sigmas are its levels; its times may be rounded (UniPC) or of before the shift (CogView4)."""
    sigmas = getattr(scheduler, "sigmas", None)
    if not is_flow(config) or sigmas is None or len(sigmas) < len(times):
        return None
    inverted = isinstance(schedule, LabelledFlow) and schedule.inverted
    noise = [1.0 - float(s) if inverted else float(s) for s in sigmas.tolist()]
    return tuple(Level(t, 1.0 - s, s) for t, s in zip(times, noise, strict=False))


# --- levels that are not known --------------------------------------------------------------------------------------


class UnknownLevel(Level):
    """A tick whose noise level is not known; asking for it is refused with the reason."""

    reason: str

    @property
    def alpha(self) -> Any:  # type: ignore[override]
        _refuse(self.reason)

    @property
    def sigma(self) -> Any:  # type: ignore[override]
        _refuse(self.reason)

    def __repr__(self) -> str:
        return f"UnknownLevel(time={self.time})"


def unknown_level(time: float, reason: str) -> Level:
    level = UnknownLevel(time, float("nan"), float("nan"))
    level.reason = reason
    return level


def unknown_kind(reason: str) -> Parametrisation:
    """A parametrisation that nothing can be computed with."""

    def refuse(level: Level) -> NoReturn:
        _refuse(reason)

    return Parametrisation("unknown", refuse, refuse)


def _refuse(reason: str) -> NoReturn:
    raise IncompatibleError(f"the noise levels of the pipeline's scheduler are not known ({reason}): leave "
                            'out what needs them (space="raw" compares predictions as they are), or give '
                            "solver=...")  # fmt: skip
