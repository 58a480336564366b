"""Whole model times, for networks that were trained at integers and look them up (or truncate what they are fed)."""

from __future__ import annotations

import math
from itertools import accumulate

from ..errors import ConfigError
from .grids import Levels
from .levels import DiscreteVP, NoiseSchedule


def whole_times(schedule: NoiseSchedule, levels: Levels) -> Levels:
    """`levels` at whole times of a DiscreteVP, each with the trained level *of its whole time*; sigma = 0 stays.

    Every time is rounded to the nearest integer. Where two nodes would then share a time (Karras' grid puts many nodes
    between the times 0 and 10), the nodes around move apart by as little as possible, so that the run keeps its number
    of steps and none has length zero: the largest move is the smallest there is. Dropping nodes would change the number
    of evaluations that was asked for, and refusing would refuse grids that work with a node moved by one.
    levels: strictly falling noise.       Errors: ConfigError for another schedule, for levels that rise, and for more
    nodes than there are whole times.
    """
    if not isinstance(schedule, DiscreteVP):
        raise ConfigError(
            f"whole times exist for discrete-time models only; {schedule!r} takes real times: leave it out"
        )
    nodes = [level for level in levels if float(level.sigma) > 0.0]
    lams = [float(level.lam) for level in levels]
    if any(not a < b for a, b in zip(lams, lams[1:], strict=False)):
        raise ConfigError("whole_times needs levels whose noise falls from each to the next")
    last = len(schedule.alphas_cumprod) - 1
    if len(nodes) > last + 1:
        raise ConfigError(f"{len(nodes)} nodes do not fit on {last + 1} whole times: use fewer steps")
    times = spread([math.floor(float(level.time) + 0.5) for level in nodes], last)
    return (*(schedule.level(time) for time in times), *levels[len(nodes) :])


def spread(times: list[int], last: int) -> list[int]:
    """Strictly falling whole numbers in 0..last near the non-increasing `times`: the largest difference is minimal.

    With w_i = times_i + i the wanted sequence must not rise, and the L-infinity isotonic regression of w is the mean of
    its running minimum from the left and its running maximum from the right. Times that already fall stay as they are.
    """
    w = [time + i for i, time in enumerate(times)]
    least = list(accumulate(w, min))
    most = list(accumulate(reversed(w), max))[::-1]
    means = [(a + b) // 2 for a, b in zip(least, most, strict=True)]
    return [min(max(mean, len(w) - 1), last) - i for i, mean in enumerate(means)]
