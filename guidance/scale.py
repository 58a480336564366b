"""Guidance scales: one number, or one per step, or the caller's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConfigError
from ..samplers.policy import Line, Run, Weight

Scale = float | tuple[float, ...] | None
"""diffusers' w, 1 for no guidance; one for every step of the run; None for the caller's."""


def check_scale(scale: Any) -> float:
    """`scale` as a float if it is finite and not negative, else ConfigError."""
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not (number and math.isfinite(scale) and scale >= 0.0):
        raise ConfigError(f"the guidance scale must be a finite number >= 0 (1 = no guidance), got {scale!r}")
    return float(scale)


def check_scales(scale: Scale | Sequence[float]) -> Scale:
    """`scale` as a policy keeps it."""
    if scale is None or isinstance(scale, int | float):
        return None if scale is None else check_scale(scale)
    scales = tuple(check_scale(w) for w in scale)
    if not scales:
        raise ConfigError("a guidance scale per step needs one number at least, got none")
    return scales


def check_run(scale: Scale, run: Run, policy: str) -> None:
    """ConfigError where a run has no scale at all, or another number of steps than there are scales."""
    if scale is None and not run.caller_scales:
        raise ConfigError(f"{policy} has no guidance scale: give it one, {policy}(scale=7.5, ...), or pass "
                          "guidance_scale to what calls it")  # fmt: skip
    if isinstance(scale, tuple) and len(scale) != run.steps:
        raise ConfigError(f"{policy} has {len(scale)} guidance scales, one per step, and the run has {run.steps} steps")


def scale_at(scale: Scale, i: int, run: Run) -> float | None:
    """w of tick i; None where the caller multiplies."""
    return scale[run.step[i]] if isinstance(scale, tuple) else scale


def towards(scale: float | None, uncond: Line, cond: str = "cond") -> Line:
    """The line u^ + w (c - u^) = w c + (1 - w) u^ for a line u^ of numbers; u^ itself if w is None."""
    if scale is None:
        return uncond
    line: dict[str, Weight] = {name: (1.0 - scale) * _number(weight) for name, weight in uncond.items()}
    line[cond] = scale + _number(line.get(cond, 0.0))
    return {name: weight for name, weight in line.items() if weight != 0.0}


def _number(weight: Weight) -> float:
    assert isinstance(weight, float)
    return weight


def with_scale(policy: Any, scale: float | None) -> Any:
    """`policy` with the scale that was given beside it. ConfigError for two explicit ones that differ."""
    if scale is None:
        return policy
    own = getattr(policy, "scale", None)
    if own is None and hasattr(policy, "scale"):
        return replace(policy, scale=check_scale(scale))
    if own != scale:
        has = f"scale {own!r}" if hasattr(policy, "scale") else "its scales in its table"
        raise ConfigError(f"guidance_scale={scale:g} was given, and {type(policy).__name__} has {has}: give one")
    return policy
