"""The times of flow pipelines, evenly spaced down to 0."""

from __future__ import annotations

import math

from ..errors import ConfigError
from .levels import Level, NoiseSchedule


def even_times(schedule: NoiseSchedule, n: int, start: float) -> tuple[Level, ...]:
    """Times T (1 - i / n) for i = 0..n, T the noisiest time; the first is start * T where T is pure noise (alpha = 0).

    At alpha = 0 lam is infinite: a step from there is of first order and leaves no history, so the next is too. Just
    below, both are of the method's order, for an error of 1 - start in the first state, which is noise all the same.
    Errors: ConfigError for other than flow schedules, and for a start outside (0.5, 1].
    """
    top = schedule.noisiest
    half = schedule.level(0.5 * float(top.time))
    if not math.isclose(float(half.alpha) + float(half.sigma), 1.0, abs_tol=1e-12):
        raise ConfigError(f"this grid is for flow models (alpha + sigma = 1) only, not for {schedule!r}; use 'time'")
    if not 0.5 < start <= 1.0:
        raise ConfigError(f"start must be above 0.5 and at most 1 (pure noise), got {start!r}")
    T = float(top.time)
    first = schedule.level(start * T) if float(top.alpha) == 0.0 else top
    levels = (first, *(schedule.level(T * (1.0 - i / n)) for i in range(1, n)), schedule.clean)
    if n > 1 and float(levels[1].time) >= float(first.time):
        raise ConfigError(f"{n} even steps begin above start={start!r}: use fewer steps, or start=1")
    return levels
