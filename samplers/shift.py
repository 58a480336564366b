r"""Time shifts of flow models: larger images need more of the run at high noise.

    t' = s t / (1 + (s - 1) t),    that is    lam' = lam - log s,    since lam = log((1 - t) / t).

So a shift moves every level by the same distance in lam, two shifts multiply, t = 0 and t = 1 stay, and every solver
that sees lam alone takes steps of the same length as before. A shift is applied once, to the finished grid: its end
points are shifted like all others. (diffusers' FlowMatchEulerDiscreteScheduler, given no sigmas, shifts its last time
twice.) Times stay real numbers, time = time_scale t.

Source: Esser et al. 2024, arXiv:2403.03206, equation 23.
"""

from __future__ import annotations

import math
from numbers import Integral

from ..errors import ConfigError
from .grids import Levels
from .levels import Level, NoiseSchedule, RectifiedFlow


def shift_levels(schedule: NoiseSchedule, levels: Levels, shift: float) -> Levels:
    """`levels` of a RectifiedFlow with every time t replaced by s t / (1 + (s - 1) t), that is lam by lam - log s.

    shift: s > 0; 1 changes nothing.       Errors: ConfigError for another number or schedule.
    """
    _check_number("shift", shift)
    if shift == 1.0:
        return levels
    if not isinstance(schedule, RectifiedFlow):
        raise ConfigError(f"a time shift is defined for flow models only, not for {schedule!r}")
    moved = []
    for level in levels:
        t = float(level.time) / schedule.time_scale
        t = shift * t / (shift * t + (1.0 - t))  # so written, t = 1 stays 1 to the last bit, and none exceeds it
        moved.append(schedule.level(schedule.time_scale * t))
    return tuple(moved)


def dynamic_mu(
    tokens: int, *, base_shift: float = 0.5, max_shift: float = 1.15, base_tokens: int = 256, max_tokens: int = 4096
) -> float:
    """mu of an image of `tokens` latent tokens: the line through (base_tokens, base_shift) and (max_tokens, max_shift).

    tokens: what the transformer sees, for Flux and SD3 (height / 16) (width / 16): 4096 at 1024x1024. Beyond max_tokens
    the line goes on, as in diffusers' pipelines. The defaults are Flux's.
    """
    for name, value in (("tokens", tokens), ("base_tokens", base_tokens), ("max_tokens", max_tokens)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ConfigError(f"{name} must be a whole number from 1 up, got {value!r}")
    if base_tokens == max_tokens:
        raise ConfigError(f"base_tokens and max_tokens must differ, got {base_tokens} twice")
    return base_shift + (tokens - base_tokens) * ((max_shift - base_shift) / (max_tokens - base_tokens))


def shift_of_mu(mu: float, kind: str = "exponential") -> float:
    """The constant shift s that a dynamic shift amounts to: e^mu for kind "exponential", mu itself for "linear".

    diffusers computes t' = c / (c + (1 / t - 1)) with c = e^mu or c = mu: that is the shift above with s = c.
    Errors: ConfigError for another kind, or where s would not be a positive number.
    """
    if kind not in ("exponential", "linear"):
        raise ConfigError(f"kind must be 'exponential' or 'linear', got {kind!r}")
    if isinstance(mu, bool) or not isinstance(mu, int | float) or not abs(mu) < 700.0:
        raise ConfigError(f"mu must be a number between -700 and 700, got {mu!r}")
    if kind == "linear":
        _check_number("mu of a linear shift", mu)
        return float(mu)
    return math.exp(mu)


def stretch_to_terminal(levels: Levels, terminal: float) -> Levels:
    """Flow levels with 1 - t scaled so that the last node before sigma = 0 has t = `terminal` (LTX-Video's
    "shift_terminal"): 1 - t' = (1 - t) (1 - terminal) / (1 - t_last).

    t = 1 and an end at sigma = 0 stay. A run of one node stays as it is: its only node is where x already is (in
    general pure noise), no last node that could be moved; the formula is 0 / 0 at t = 1.
    levels: of a RectifiedFlow, falling.       terminal: in (0, 1).
    Errors: ConfigError for other levels, or for a run of more nodes that ends at t = 1.
    """
    if not 0.0 < terminal < 1.0:
        raise ConfigError(f"terminal must be a number between 0 and 1, got {terminal!r}")
    nodes = [level for level in levels if float(level.sigma) > 0.0]
    if any(abs(float(level.alpha) + float(level.sigma) - 1.0) > 1e-9 for level in levels):
        raise ConfigError("stretch_to_terminal is defined for flow models, where alpha + sigma = 1")
    if len(nodes) <= 1:
        return levels
    t_last = float(nodes[-1].sigma)
    if not t_last < 1.0:
        raise ConfigError("the last node of a run must lie below t = 1; it cannot be stretched to any terminal")
    ratio = (1.0 - terminal) / (1.0 - t_last)
    scale = float(nodes[0].time) / float(nodes[0].sigma)
    return tuple(level if float(level.sigma) == 0.0 else _stretched(level, ratio, scale) for level in levels)


def _stretched(level: Level, ratio: float, scale: float) -> Level:
    alpha = float(level.alpha) * ratio
    return Level(scale * (1.0 - alpha), alpha, 1.0 - alpha)


def _check_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{name} must be a positive number, got {value!r}")
