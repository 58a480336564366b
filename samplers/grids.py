"""Grids: (schedule, n) -> the n + 1 levels of a run of n steps.

Every grid but ``leading`` starts at the schedule's noisiest level. By default it ends at sigma = 0, so the last step
returns the predicted clean image; ``to_zero=False`` ends at the cleanest trained level instead, as the papers' order
statements need. Times are real numbers: a grid never rounds what the network is fed, except the three spacings that
are defined by rounding (``linspace``, ``leading``, ``trailing``), which use the level *of the rounded time*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

from ..errors import ConfigError
from .levels import DiscreteVP, Level, NoiseSchedule, level_at

Levels = tuple[Level, ...]
Grid = Callable[[NoiseSchedule, int], Levels]

MAX_STEPS = 10_000


def check_steps(n: int) -> int:
    """`n` as an int in 1..10,000, or ConfigError."""
    if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= MAX_STEPS:
        raise ConfigError(f"steps must be a whole number from 1 to {MAX_STEPS}, got {n!r}")
    return int(n)


def _ends(schedule: NoiseSchedule) -> tuple[Level, Level]:
    """The noisiest and cleanest level with finite lam (flow schedules begin at lam = -inf)."""
    top, bottom = schedule.noisiest, schedule.cleanest
    if top.lam == -math.inf:
        if isinstance(schedule, DiscreteVP):
            top = schedule.level(len(schedule.alphas_cumprod) - 2)
        else:
            top = level_at(schedule, -float(bottom.lam))
    return top, bottom


def _finish(schedule: NoiseSchedule, levels: list[Level], to_zero: bool) -> Levels:
    """Snap the first node to the noisiest level (they differ where that has lam = -inf) and append sigma = 0."""
    levels[0] = schedule.noisiest
    return tuple([*levels, schedule.clean] if to_zero else levels)


def _ramp(n: int, to_zero: bool) -> list[float]:
    """0..1 over the nodes that a formula places: n of them when sigma = 0 is appended, else n + 1."""
    last = check_steps(n) - (1 if to_zero else 0)
    return [i / last for i in range(last + 1)] if last else [0.0]


def uniform_lambda(schedule: NoiseSchedule, n: int, *, to_zero: bool = True) -> Levels:
    """Equal steps in lam = log(alpha / sigma) (Lu et al. 2022, arXiv:2206.00927, section 3.4)."""
    top, bottom = _ends(schedule)
    a, b = float(top.lam), float(bottom.lam)
    nodes = [level_at(schedule, a + (b - a) * f) for f in _ramp(n, to_zero)]
    return _finish(schedule, nodes, to_zero)


def karras(schedule: NoiseSchedule, n: int, *, rho: float = 7.0, to_zero: bool = True) -> Levels:
    """Equal steps in (sigma / alpha)^(1/rho) (Karras et al. 2022, arXiv:2206.00364, equation 5)."""
    if not (math.isfinite(rho) and rho > 0.0):
        raise ConfigError(f"rho must be a positive number, got {rho!r}")
    top, bottom = _ends(schedule)
    a, b = (math.exp(-float(e.lam) / rho) for e in (top, bottom))
    nodes = [level_at(schedule, -rho * math.log(a + (b - a) * f)) for f in _ramp(n, to_zero)]
    return _finish(schedule, nodes, to_zero)


def uniform_time(schedule: NoiseSchedule, n: int, *, to_zero: bool = True) -> Levels:
    """Equal steps in the model's time, unrounded."""
    a, b = float(schedule.noisiest.time), float(schedule.cleanest.time)
    nodes = [schedule.level(a + (b - a) * f) for f in _ramp(n, to_zero)]
    return _finish(schedule, nodes, to_zero)


def linspace(schedule: NoiseSchedule, n: int) -> Levels:
    """diffusers' ``timestep_spacing="linspace"`` for its multistep solvers: n + 1 rounded times, 0 dropped."""
    last = _training_steps(schedule, n) - 1
    times = [_round_half_even(last * i / n) for i in range(n, 0, -1)]
    return from_times(schedule, times)


def leading(schedule: NoiseSchedule, n: int, *, offset: int = 1) -> Levels:
    """diffusers' ``"leading"`` spacing for DDIM and Euler (Stable Diffusion 1.x: offset 1)."""
    stride = _training_steps(schedule, n) // n
    return from_times(schedule, [i * stride + offset for i in range(n - 1, -1, -1)])


def trailing(schedule: NoiseSchedule, n: int) -> Levels:
    """diffusers' ``"trailing"`` spacing: begins at the last training time (Lin et al. 2023, arXiv:2305.08891)."""
    total = _training_steps(schedule, n)
    return from_times(schedule, [_round_half_even(total - i * total / n) - 1 for i in range(n)])


def from_times(schedule: NoiseSchedule, times: Sequence[float], *, to_zero: bool = True) -> Levels:
    """Explicit model times, noisiest first; sigma = 0 is appended unless ``to_zero=False``."""
    if not times:
        raise ConfigError("a grid needs at least one time")
    levels = [schedule.level(time) for time in times]
    return check_levels(tuple([*levels, schedule.clean] if to_zero else levels))


def check_levels(levels: Levels) -> Levels:
    """At least two finite levels, no two neighbours equal; they may rise (inversion, restarts)."""
    if len(levels) < 2:
        raise ConfigError(f"a run needs at least two levels, got {len(levels)}")
    for i, level in enumerate(levels):
        alpha, sigma = float(level.alpha), float(level.sigma)
        if not (math.isfinite(alpha) and math.isfinite(sigma) and alpha >= 0 and sigma >= 0 and alpha + sigma > 0):
            raise ConfigError(f"level {i} is not a noise level: {level}")
        if i and (alpha, sigma) == (float(levels[i - 1].alpha), float(levels[i - 1].sigma)):
            raise ConfigError(f"levels {i - 1} and {i} are equal ({level}): a step of length zero does nothing")
    return levels


def _training_steps(schedule: NoiseSchedule, n: int) -> int:
    if not isinstance(schedule, DiscreteVP):
        raise ConfigError(f"this spacing is defined for discrete-time models only, not for {schedule!r}; use 'time'")
    total = len(schedule.alphas_cumprod)
    if check_steps(n) >= total:
        raise ConfigError(f"this spacing has whole-numbered times: at most {total - 1} steps, got {n}; use 'time'")
    return total


def _round_half_even(value: float) -> int:
    return round(value)  # numpy's rule, which diffusers uses


GRIDS: dict[str, Grid] = {
    "lambda": uniform_lambda,
    "karras": karras,
    "time": uniform_time,
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
}
