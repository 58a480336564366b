"""Grids: (schedule, n) -> the n + 1 levels of a run of n steps.

All grids but ``leading`` and ``flow`` start at the schedule's noisiest level, and levels fall strictly. Two ends:

to_zero=True (default)   n nodes, the last one the cleanest trained level, and then sigma = 0: the last of the n steps
                         goes there and returns the predicted clean image (the papers' "denoise to zero", but within
                         the n evaluations). The cleanest level is a node once: no step has length zero. (The ays grids
                         put sigma = 0 in its place.)
to_zero=False            n + 1 nodes that end at the cleanest trained level, as the papers' order statements need.

Times are real numbers: a grid never rounds what the network is fed, except the three spacings that are defined by
rounding (``linspace``, ``leading``, ``trailing``), which use the level *of the rounded time*; `whole_times` does the
same to any grid, for networks that take whole times only.

lam_min: some schedules are so noisy at the top that steps there are wasted or harmful (discrete cosine: lam = -9.9,
where an error of the predicted noise is multiplied by 1 / alpha = 2e4 in x0). Grids made in lam or time take lam_min,
for instance -5.1: no node is noisier, except a beginning at pure noise (alpha = 0), which stays. The run then begins
at the level of lam_min itself, with that level's own time. diffusers calls it lambda_min_clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

from ..errors import ConfigError
from .beta_quantile import beta_quantile
from .grids_flow import even_times
from .grids_tables import AYS_SD_TIMES, AYS_SDXL_TIMES, AYS_SVD_SIGMAS, SD_ENDS, places
from .levels import DiscreteVP, Level, NoiseSchedule, RectifiedFlow, level_at

Levels = tuple[Level, ...]
Grid = Callable[[NoiseSchedule, int], Levels]

MAX_STEPS = 10_000


def check_steps(n: int) -> int:
    """`n` as an int in 1..10,000, or ConfigError."""
    if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= MAX_STEPS:
        raise ConfigError(f"steps must be a whole number from 1 to {MAX_STEPS}, got {n!r}")
    return int(n)


# --- made in lam ------------------------------------------------------------------------------------------------------


def uniform_lambda(schedule: NoiseSchedule, n: int, *, to_zero: bool = True, lam_min: float | None = None) -> Levels:
    """Equal steps in lam = log(alpha / sigma) (Lu et al. 2022, arXiv:2206.00927, section 3.4).

    log(sigma / alpha) = -lam, so this also is the "exponential" grid of k-diffusion and diffusers; both names are kept.
    """
    return _in_lam(schedule, n, to_zero, lam_min, lambda f, a, b: a + (b - a) * f)


def polyexponential(
    schedule: NoiseSchedule, n: int, *, rho: float = 1.0, to_zero: bool = True, lam_min: float | None = None
) -> Levels:
    """log(sigma / alpha) = bottom + (top - bottom) (1 - f)^rho for f = 0..1 (k-diffusion).

    rho = 1, k-diffusion's default, is the exponential grid; above 1 nodes move to the clean end, below 1 to the noisy.
    """
    _check_positive("rho", rho)
    return _in_lam(schedule, n, to_zero, lam_min, lambda f, a, b: b + (a - b) * (1.0 - f) ** rho)


def karras(
    schedule: NoiseSchedule, n: int, *, rho: float = 7.0, to_zero: bool = True, lam_min: float | None = None
) -> Levels:
    """Equal steps in (sigma / alpha)^(1/rho) (Karras et al. 2022, arXiv:2206.00364, equation 5)."""
    _check_positive("rho", rho)

    def place(f: float, top: float, bottom: float) -> float:
        # -rho log(A + (B - A) f) with A = e^(-top/rho), B = e^(-bottom/rho), divided by A so that no rho overflows
        return top - rho * math.log1p(math.expm1((top - bottom) / rho) * f)

    return _in_lam(schedule, n, to_zero, lam_min, place)


def beta(
    schedule: NoiseSchedule,
    n: int,
    *,
    a: float = 0.6,
    b: float = 0.6,
    to_zero: bool = True,
    lam_min: float | None = None,
) -> Levels:
    """Quantiles of the Beta(a, b) distribution, stretched over sigma / alpha (over t for flow models): dense at both
    ends. As in diffusers; Lee et al. 2024, "Beta Sampling is All You Need", arXiv:2407.12173, propose it over time.
    """
    flow = isinstance(schedule, RectifiedFlow)

    def noise(lam: float) -> float:
        return 1.0 / (1.0 + math.exp(lam)) if flow else math.exp(-lam)

    def place(f: float, top: float, bottom: float) -> float:
        high, low = 1.0 if flow and lam_min is None else noise(top), noise(bottom)
        value = low + beta_quantile(1.0 - f, a, b) * (high - low)
        return math.log((1.0 - value) / value) if flow else -math.log(value)

    return _in_lam(schedule, n, to_zero, lam_min, place)


def _in_lam(
    schedule: NoiseSchedule,
    n: int,
    to_zero: bool,
    lam_min: float | None,
    place: Callable[[float, float, float], float],
) -> Levels:
    """Nodes at lam = place(f, top, bottom) for f = 0..1; the ends are the schedule's own levels, not recomputed."""
    first, a, b = _ends(schedule, lam_min)
    inner = [level_at(schedule, place(f, a, b)) for f in _ramp(n, to_zero)[1:-1]]
    return _from_nodes(schedule, n, first, inner, to_zero)


def _ends(schedule: NoiseSchedule, lam_min: float | None) -> tuple[Level, float, float]:
    """The first node, and the lams between which a formula places the others (lam = -inf at alpha = 0 is of no use)."""
    top, bottom = schedule.noisiest, schedule.cleanest
    a, b = float(top.lam), float(bottom.lam)
    if lam_min is not None:
        if not -50.0 <= lam_min < b:
            raise ConfigError(f"lam_min must be from -50 to below the cleanest level's {b:g}, got {lam_min!r}")
        if lam_min > a:
            return (top if a == -math.inf else level_at(schedule, lam_min)), lam_min, b
    if a == -math.inf:
        a = float(schedule.level(len(schedule.alphas_cumprod) - 2).lam) if isinstance(schedule, DiscreteVP) else -b
    return top, a, b


def _ramp(n: int, to_zero: bool) -> list[float]:
    """0..1 over the nodes that a formula places: n of them when sigma = 0 is appended, else n + 1."""
    last = check_steps(n) - (1 if to_zero else 0)
    return [i / last for i in range(last + 1)] if last else [0.0]


def _from_nodes(schedule: NoiseSchedule, n: int, first: Level, inner: list[Level], to_zero: bool) -> Levels:
    """first, inner..., the cleanest trained level (unless `first` is the only node), and sigma = 0 where wanted."""
    nodes = [first, *inner] if to_zero and n == 1 else [first, *inner, schedule.cleanest]
    levels = tuple([*nodes, schedule.clean] if to_zero else nodes)
    for s, t in zip(levels, levels[1:], strict=False):
        if not float(s.lam) < float(t.lam):
            raise ConfigError(f"{n} steps with these options put two nodes on one level ({s}): use fewer steps")
    return levels


# --- optimised --------------------------------------------------------------------------------------------------------


def ays_sd(schedule: NoiseSchedule, n: int, *, to_zero: bool = True) -> Levels:
    """Align Your Steps for Stable Diffusion 1.5 (Sabour et al. 2024, arXiv:2404.14507): the published 10 steps, for
    other n interpolated as the authors do. Only for models with Stable Diffusion's schedule."""
    return _trained(schedule, n, to_zero, "ays-sd", AYS_SD_TIMES)


def ays_sdxl(schedule: NoiseSchedule, n: int, *, to_zero: bool = True) -> Levels:
    """Align Your Steps for SDXL, like `ays_sd`."""
    return _trained(schedule, n, to_zero, "ays-sdxl", AYS_SDXL_TIMES)


def ays_svd(schedule: NoiseSchedule, n: int, *, to_zero: bool = True) -> Levels:
    """Align Your Steps for Stable Video Diffusion, like `ays_sd`, over EDM(sigma_min=0.002, sigma_max=700)."""
    _check_ends(schedule, "ays-svd", AYS_SVD_SIGMAS[0], AYS_SVD_SIGMAS[-1])
    return _optimised(schedule, n, to_zero, [level_at(schedule, -math.log(sigma)) for sigma in AYS_SVD_SIGMAS])


def _trained(schedule: NoiseSchedule, n: int, to_zero: bool, name: str, times: Sequence[int]) -> Levels:
    _check_ends(schedule, name, *SD_ENDS)
    return _optimised(schedule, n, to_zero, [schedule.level(time) for time in times])


def _optimised(schedule: NoiseSchedule, n: int, to_zero: bool, knots: Sequence[Level]) -> Levels:
    """n + 1 places on the published levels, between them linear in lam, that is in log(sigma / alpha). The last place
    is the cleanest level; with to_zero, sigma = 0 takes it (for 10 steps: the 10 published levels, then sigma = 0)."""
    inner = []
    for k, f in places(len(knots), check_steps(n))[1:-1]:
        a, b = float(knots[k].lam), float(knots[k + 1].lam)
        inner.append(level_at(schedule, a + (b - a) * f) if f else knots[k])
    return (schedule.noisiest, *inner, schedule.clean if to_zero else schedule.cleanest)


def _check_ends(schedule: NoiseSchedule, name: str, high: float, low: float) -> None:
    """Levels that were optimised for one schedule are not stretched over another: ConfigError."""
    ends = [math.exp(-float(level.lam)) for level in (schedule.noisiest, schedule.cleanest)]
    if not all(math.isclose(found, wanted, rel_tol=1e-3) for found, wanted in zip(ends, (high, low), strict=True)):
        raise ConfigError(
            f"{name!r} was optimised for models with sigma / alpha from {high:g} to {low:g}; this one has {ends[0]:g} "
            f"to {ends[1]:g}: use 'karras' or 'lambda'"
        )


# --- made in the model's time -----------------------------------------------------------------------------------------


def uniform_time(schedule: NoiseSchedule, n: int, *, to_zero: bool = True, lam_min: float | None = None) -> Levels:
    """Equal steps in the model's time, unrounded."""
    return _in_time(schedule, n, to_zero, lam_min, 1.0)


def quadratic(schedule: NoiseSchedule, n: int, *, to_zero: bool = True, lam_min: float | None = None) -> Levels:
    """Equal steps in sqrt(t): "time_quadratic" of the official DPM-Solver code. t is the model's time; for discrete
    models (time + 1) / N as there, so that t > 0 at the cleanest level."""
    return _in_time(schedule, n, to_zero, lam_min, 2.0)


def _in_time(schedule: NoiseSchedule, n: int, to_zero: bool, lam_min: float | None, power: float) -> Levels:
    """Nodes at equal steps of t^(1/power); the ends are the schedule's own levels."""
    if power != 1.0 and float(schedule.cleanest.time) < 0.0:
        raise ConfigError(f"'quadratic' takes roots of the model's time, negative for {schedule!r}; use 'lambda'")
    zero = 1.0 if isinstance(schedule, DiscreteVP) and power != 1.0 else 0.0
    first, lam, _ = _ends(schedule, lam_min)
    start = float(first.time) if lam_min is None or lam != lam_min else schedule.time_of(lam_min)
    a, b = ((time + zero) ** (1.0 / power) for time in (start, float(schedule.cleanest.time)))
    inner = [schedule.level((a + (b - a) * f) ** power - zero) for f in _ramp(n, to_zero)[1:-1]]
    return _from_nodes(schedule, n, first, inner, to_zero)


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
    numbers = [float(time) for time in times]
    if not numbers:
        raise ConfigError("a grid needs at least one time")
    levels = [schedule.level(time) for time in numbers]
    return check_levels(tuple([*levels, schedule.clean] if to_zero else levels))


def flow(schedule: NoiseSchedule, n: int, *, start: float = 0.999) -> Levels:
    """Flow pipelines' evenly spaced times, 1 - 1/n, ..., 1/n, 0, begun just below pure noise (see grids_flow)."""
    return even_times(schedule, check_steps(n), start)


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
        raise ConfigError(f"its times are whole: at most {total - 1} step{'s' * (total > 2)}, got {n}; use 'time'")
    return total


def _round_half_even(value: float) -> int:
    return round(value)  # numpy's rule, which diffusers uses


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{name} must be a positive number, got {value!r}")


GRIDS: dict[str, Grid] = {
    "lambda": uniform_lambda,
    "karras": karras,
    "time": uniform_time,
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
    "exponential": uniform_lambda,
    "polyexponential": polyexponential,
    "beta": beta,
    "ays-sd": ays_sd,
    "ays-sdxl": ays_sdxl,
    "ays-svd": ays_svd,
    "flow": flow,
}
