"""Empirical statistics on disk: safetensors in float64 and a JSON header. Loading gives the same bits or refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .dpm_v3_statistics import MAX_KNOTS, EmpiricalStatistics
from .levels import NoiseSchedule
from .safe_file import Kind

KIND = Kind("file of statistics", "fewstep-statistics", 1, "EmpiricalStatistics.save")
MAX_NUMBERS = 1 << 29  # of one tensor: 4 GiB
NAMES = ("lam", "l", "s", "b")


def save(statistics: EmpiricalStatistics, path: str | PathLike[str]) -> None:
    """Write them. The file appears whole or not at all."""
    from safetensors.torch import save as to_bytes

    schedule = None if statistics.schedule is None else dict(statistics.schedule)
    metadata = {**KIND.marks, "schedule": json.dumps(schedule, allow_nan=False)}
    KIND.write(path, to_bytes({name: getattr(statistics, name).contiguous() for name in NAMES}, metadata))


def load(path: str | PathLike[str], schedule: NoiseSchedule | None = None) -> EmpiricalStatistics:
    """Read them. ConfigError for a file that is none, IncompatibleError for another schedule or version."""
    metadata, tensors = KIND.read(Path(path), lambda file: _check_entries(file, path))
    found = _schedule(metadata.get("schedule", ""), Path(path))
    try:
        statistics = EmpiricalStatistics(**tensors, schedule=found)
    except ConfigError as error:
        raise KIND.refuse(path, str(error)) from error
    if schedule is not None:
        statistics.check(schedule)
    return statistics


def _check_entries(file: Any, path: Any) -> None:
    """The four tensors and nothing else, none too large."""
    if sorted(file.keys()) != sorted(NAMES):
        raise KIND.refuse(path, f"it has the entries {sorted(name[:20] for name in file.keys())[:8]}")
    for name in NAMES:
        entry = file.get_slice(name)
        shape = entry.get_shape()
        if entry.get_dtype() != "F64" or not shape or shape[0] > MAX_KNOTS or math.prod(shape) > MAX_NUMBERS:
            raise KIND.refuse(path, f"its entry {name} has the shape {shape} and the type {entry.get_dtype()}")


def _schedule(text: str, path: Path) -> Mapping[str, Any] | None:
    schedule = KIND.header(text, path, "a schedule")
    plain = isinstance(schedule, dict) and all(isinstance(v, str | int | float) for v in schedule.values())
    if schedule is not None and not (plain and isinstance(schedule.get("kind"), str)):
        raise KIND.refuse(path, "its header does not describe a schedule")
    return schedule
