"""The times of flow pipelines, evenly spaced down to 0."""

from __future__ import annotations

import math

from ..errors import ConfigError
from .levels import Level, NoiseSchedule


def even_times(schedule: NoiseSchedule, n: int, start: float) -> tuple[Level, ...]:
    """Times T (1 - i / n) for i = 0..n, T the noisiest time; start * T where that is pure noise (alpha = 0).

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
    begin = float(top.time) * (start if float(top.alpha) == 0.0 else 1.0)
    return (*(schedule.level(begin * (1.0 - i / n)) for i in range(n)), schedule.clean)
