"""The levels of a scheduler's run: what `set_timesteps` was asked for, on the scheduler's grid, with its time shift.

Most pipelines that always pass sigmas of their own pass the same evenly spaced ones. Those are nobody's choice, so they
stand for their number alone: the scheduler's grid has that many ticks. Other sigmas (a caller's, Mochi's) are used as
they are, each as the beginning of a step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from .from_config import is_flow, shift_from_config
from .grids import Grid, Levels, check_levels, check_steps, from_times, uniform_lambda
from .levels import Level, NoiseSchedule, RectifiedFlow, level_at
from .scheduler_schedules import LabelledFlow, PreconditionedVE
from .shift import shift_levels, shift_of_mu, stretch_to_terminal
from .solver import Solver
from .table import Table

_ROUNDED = 1e-3  # published sigmas have three or four digits: 14.615 for Stable Diffusion's 14.6146


class Asked(NamedTuple):
    """The arguments of `set_timesteps`, as plain numbers."""

    steps: int | None
    sigmas: tuple[float, ...] | None
    mu: float | None
    times: tuple[float, ...] | None

    @classmethod
    def of(cls, steps: int | None, sigmas: Any, mu: float | None, times: Any) -> Asked:
        """From what a pipeline passes: lists, arrays or tensors. Errors: ConfigError where they contradict."""
        rows = {"sigmas": _numbers("sigmas", sigmas), "timesteps": _numbers("timesteps", times)}
        given = {name: len(row) for name, row in rows.items() if row is not None}
        if not given and steps is None:
            raise ConfigError("set_timesteps needs one of num_inference_steps, timesteps and sigmas")
        lengths = {**given, **({} if steps is None else {"num_inference_steps": check_steps(steps)})}
        if len(set(lengths.values())) > 1:
            got = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise ConfigError(f"these must agree in number, got {got}; give one of them")
        return cls(next(iter(lengths.values())), rows["sigmas"], mu, rows["timesteps"])


def run_levels(
    config: Mapping[str, Any], schedule: NoiseSchedule, solver: Solver, grid: Grid | None, asked: Asked
) -> tuple[Levels, NoiseSchedule]:
    """The levels of the run, and the schedule that they lie on (another label for CogView4's).

    grid: the scheduler's, or None for the default: "lambda", or the evenly spaced times of the pipelines for a flow.
    Errors: ConfigError for what cannot be honoured.
    """
    if is_flow(config):
        return _flow_levels(config, schedule, solver, grid, asked)
    if asked.mu is not None:
        raise ConfigError("mu belongs to flow-matching models; leave it out")
    if asked.sigmas is not None and asked.times is not None:
        raise ConfigError("timesteps and sigmas say the same twice for this model; give one of them")
    if asked.times is not None:
        return from_times(schedule, asked.times), schedule
    if asked.sigmas is not None:
        return from_sigmas(schedule, asked.sigmas), schedule
    chosen = grid or uniform_lambda
    return within(asked.steps, solver, schedule, lambda k: chosen(schedule, k)), schedule  # type: ignore[arg-type]


def from_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float]) -> Levels:
    """The levels of sigma / alpha, noisiest first; sigma = 0 follows unless it is there.

    A sigma that lies outside the trained range by no more than the rounding of published figures is its end.
    Errors: ConfigError for sigmas that do not fall, or lie outside.
    """
    nodes = sigmas[:-1] if sigmas and sigmas[-1] == 0.0 else sigmas
    if not nodes or any(not 0.0 < b < a for a, b in zip((math.inf, *nodes), nodes, strict=False)):
        raise ConfigError(f"sigmas must be positive and falling, noisiest first, got {list(sigmas)!r}")
    levels = tuple(_at_sigma(schedule, sigma) for sigma in nodes)
    return check_levels((*levels, schedule.clean))


def within(n: int, solver: Solver, schedule: NoiseSchedule, levels: Callable[[int], Levels]) -> Levels:
    """`levels` of the most steps, at most n, that cost no more than n ticks.

    Errors: ConfigError where not even one step does.
    """

    def ticks(steps: int) -> int:
        return len(solver.plan(levels(steps), schedule))

    n = check_steps(n)
    steps = n if ticks(n) <= n else bisect_right(range(1, n + 1), n, key=ticks)
    if not steps:
        raise ConfigError(f"one step of {solver} takes {ticks(1)} evaluations, so num_inference_steps must be at least "
                          f"{ticks(1)}, got {n}")  # fmt: skip
    return levels(steps)


# --- flow models ------------------------------------------------------------------------------------------------------


def _flow_levels(
    config: Mapping[str, Any], schedule: NoiseSchedule, solver: Solver, grid: Grid | None, asked: Asked
) -> tuple[Levels, NoiseSchedule]:
    scale = float(config["num_train_timesteps"])
    if asked.times is not None and asked.sigmas is None:
        return from_times(schedule, asked.times), schedule  # what the network is fed, so no shift
    flow = RectifiedFlow(time_scale=scale)
    shift, terminal = flow_shift(config, asked.mu), config.get("shift_terminal")
    label = None if isinstance(schedule, RectifiedFlow) else schedule
    if asked.times is not None and _told_before_shift(asked, scale, shift):
        if terminal:
            raise ConfigError("shift_terminal with both timesteps and sigmas is not supported; pass sigmas alone")
        label = LabelledFlow(scale, shift, inverted=bool(config.get("invert_sigmas")))
        shift = 1.0  # in the label's own map

    def moved(levels: Levels) -> Levels:
        levels = shift_levels(flow, levels, shift)
        levels = stretch_to_terminal(levels, terminal) if terminal else levels
        return levels if label is None else tuple(label.level_of(float(v.time) / scale) for v in levels)  # type: ignore

    def chosen(steps: int) -> Levels:
        if grid is not None:
            return moved(grid(flow, steps))
        return moved(from_times(flow, [scale * u for u in _default_times(asked, scale, steps)]))

    on = label or schedule
    if asked.sigmas is None or _is_default(asked, scale):
        return within(asked.steps, solver, on, chosen), on  # type: ignore[arg-type]
    sigmas = asked.sigmas[:-1] if asked.sigmas[-1] == 0.0 else asked.sigmas
    return moved(from_times(flow, [scale * s for s in sigmas])), on


def flow_shift(config: Mapping[str, Any], mu: float | None) -> float:
    """The shift s of a run: the config's, or with use_dynamic_shifting that of mu, which the pipeline computes.

    Errors: ConfigError where mu is needed and missing.
    """
    if not config.get("use_dynamic_shifting"):
        return shift_from_config(config)  # a mu that pipelines pass all the same is not used, as in diffusers
    if mu is None:
        raise ConfigError(
            "use_dynamic_shifting=True makes the time shift depend on the image size, and this pipeline passed no mu; "
            "give a constant shift: from_config(config, use_dynamic_shifting=False, shift=3.0), or call "
            "set_timesteps(n, mu=1.15) yourself"
        )
    return shift_of_mu(float(mu), config.get("time_shift_type") or "exponential")


def _default_times(asked: Asked, scale: float, steps: int) -> list[float]:
    """The evenly spaced times of `steps` steps, as the pipeline's own: 1, 1 - 1/n, ..., or those that it passed."""
    times = asked.sigmas if asked.sigmas is not None and asked.times is not None else None
    if times is None:
        return [1.0 - i / steps for i in range(steps)]
    if steps == len(times):
        return list(times)
    return [times[0] + (times[-1] - times[0]) * i / max(steps - 1, 1) for i in range(steps)]


def _is_default(asked: Asked, scale: float) -> bool:
    """Whether the sigmas are a pipeline's own: 1, 1 - 1/n, ..., or evenly spaced from 1 up to rounding (CogView4)."""
    sigmas = list(asked.sigmas or ())
    n = len(sigmas)
    if asked.times is None:
        return all(abs(s - (1.0 - i / n)) < 1e-6 for i, s in enumerate(sigmas))
    if abs(sigmas[0] - 1.0) > 1e-6:
        return False
    gap = (sigmas[-1] - sigmas[0]) / max(n - 1, 1)
    return all(abs(s - (sigmas[0] + gap * i)) <= 1.0 / scale for i, s in enumerate(sigmas))


def _told_before_shift(asked: Asked, scale: float, shift: float) -> bool:
    """Whether the network shall be told the times before the shift; False: those after it.

    Errors: ConfigError for timesteps that are neither.
    """
    pairs = list(zip(asked.sigmas or (), asked.times or (), strict=True))
    if all(abs(t - scale * s) <= 1e-6 * scale for s, t in pairs):
        return shift != 1.0
    if all(abs(t - scale * shift * s / (1.0 + (shift - 1.0) * s)) <= 1e-6 * scale for s, t in pairs):
        return False
    raise ConfigError(f"timesteps must be {scale:g} times the sigmas, before or after the time shift; got timesteps "
                      f"{list(asked.times or ())[:4]} with sigmas {list(asked.sigmas or ())[:4]}")  # fmt: skip


def sigmas_of(table: Table, config: Mapping[str, Any], schedule: NoiseSchedule) -> Tensor:
    """(ticks + 1,) float32 on the CPU: sigma of a flow model, else sigma / alpha, as diffusers' schedulers show."""
    flow, inverted = is_flow(config), isinstance(schedule, LabelledFlow) and schedule.inverted
    pairs = [(float(v.sigma), float(v.alpha)) for v in (*table.plan.nodes, table.plan.targets[-1])]
    values = [(a if inverted else s) if flow else s / a if a else float("inf") for s, a in pairs]
    return torch.tensor(values, dtype=torch.float32, device="cpu")


# --- numbers ----------------------------------------------------------------------------------------------------------


def _at_sigma(schedule: NoiseSchedule, sigma: float) -> Level:
    if isinstance(schedule, PreconditionedVE):
        return schedule.level_of(sigma)
    lam, top, bottom = -math.log(sigma), schedule.noisiest, schedule.cleanest
    for end in (top, bottom):
        if abs(lam - float(end.lam)) <= _ROUNDED:
            return end
    if not float(top.lam) < lam < float(bottom.lam):
        high, low = (math.exp(-float(end.lam)) for end in (top, bottom))
        raise ConfigError(f"sigma {sigma:g} is outside the trained range: expected {low:g} to {high:g}")
    return level_at(schedule, lam)


def _numbers(name: str, values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be a list of numbers, got {values!r}") from error
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{name} must be one or more finite numbers, got {list(numbers)!r}")
    return numbers
