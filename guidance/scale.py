"""Guidance scales: one number, or one per step, or the caller's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..samplers.policy import Line, Policy, Run, Weight

Scale = float | tuple[float, ...] | None
"""diffusers' w, 1 for no guidance; one for every step of the run; None for the caller's."""


def number_of(value: Any) -> float | None:
    """`value` as a float if it is a real number, of Python, numpy or torch (0-d), and no bool; else None."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex() and value.dtype != torch.bool:
        return float(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float if it is a number from low to high, else ConfigError that calls it `name`."""
    number = number_of(value)
    if number is None or not low <= number <= high:
        among = "a number" if low == -math.inf else f"a number from {low:g} to {high:g}"
        raise ConfigError(f"{name} must be {among}, got {value!r}")
    return number


def check_scale(scale: Any) -> float:
    """`scale` as a float if it is finite and not negative, else ConfigError."""
    number = number_of(scale)
    if number is None or not (math.isfinite(number) and number >= 0.0):
        raise ConfigError(f"the guidance scale must be a finite number >= 0 (1 = no guidance), got {scale!r}")
    return number


def check_scales(scale: Scale | Sequence[float]) -> Scale:
    """`scale` as a policy keeps it."""
    if scale is None:
        return None
    if isinstance(scale, str | bytes) or not isinstance(scale, Iterable) or number_of(scale) is not None:
        return check_scale(scale)
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


def own_scale(policy: Policy) -> Scale:
    """The policy's `scale`; None if it takes the caller's, or has no one scale (`owns_scale` tells which)."""
    return getattr(policy, "scale", None)


def owns_scale(policy: Policy) -> bool:
    """Whether the policy gives the guided prediction; else its line is u^ until it gets the caller's scale.

    ConfigError for one that does not say.
    """
    if policy.has_scales:
        return True
    if not hasattr(policy, "scale"):
        name = type(policy).__name__
        raise ConfigError(f"{name} does not say whose guidance scale it takes: give it a field scale (None for the "
                          "caller's), or has_scales = True if its weights are the guided prediction as they "
                          "are")  # fmt: skip
    return own_scale(policy) is not None


def scale_in_words(policy: Policy) -> str:
    """What a policy that owns its scale has, for messages."""
    own = own_scale(policy)
    return "its own scales" if own is None else f"scale {own!r}"


def with_scale(policy: Any, scale: float | None) -> Any:
    """`policy` with the scale that was given beside it. ConfigError for two explicit ones that differ."""
    if scale is None:
        return policy
    scale = check_scale(scale)
    if not owns_scale(policy):
        return replace(policy, scale=scale)
    if own_scale(policy) != scale:
        raise ConfigError(f"guidance_scale={scale:g} was given, and {type(policy).__name__} has "
                          f"{scale_in_words(policy)}: give one")  # fmt: skip
    return policy
