"""Checks of a posterior's hyper-parameters."""

from __future__ import annotations

import math
from typing import Any

from ..errors import ConfigError


def check_number(value: Any, name: str, typical: float, *, zero: bool = False) -> None:
    """ConfigError unless value is a finite number above 0, or from 0 where `zero` says so.

    typical: what the message tells to type.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        least = "from 0" if zero else "above 0"
        raise ConfigError(f"{name} must be a finite number {least}, got {value!r}: take one such as {typical:g}")
