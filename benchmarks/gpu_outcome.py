"""What a check on a device says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch


class Outcome(NamedTuple):
    """measured, allowed: an error and its bound, or a number and what it must be; None where there is none."""

    name: str
    passed: bool
    measured: float | None = None
    allowed: float | None = None
    note: str = ""


class Skipped(Exception):
    """The rest of a check cannot be done here; the message says why."""


Check = Callable[[torch.device], Iterator[Outcome]]


def at_most(name: str, measured: float, allowed: float, note: str = "") -> Outcome:
    """NaN is never at most anything."""
    return Outcome(name, measured <= allowed, measured if math.isfinite(measured) else None, allowed, note)


def equals(name: str, measured: float, wanted: float) -> Outcome:
    return Outcome(name, measured == wanted, measured, wanted)


def holds(name: str, condition: object, note: str = "") -> Outcome:
    return Outcome(name, bool(condition), note=note)


def needs_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise Skipped("needs CUDA")
