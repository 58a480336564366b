"""Empirical statistics on disk: safetensors in float64 and a JSON header. Loading gives the same bits or refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..files import write_atomic
from .dpm_v3_statistics import MAX_KNOTS, EmpiricalStatistics
from .levels import NoiseSchedule

FORMAT = "fewstep-statistics"
VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_NUMBERS = 1 << 29  # of one tensor: 4 GiB
NAMES = ("lam", "l", "s", "b")


def save(statistics: EmpiricalStatistics, path: str | PathLike[str]) -> None:
    """Write them. The file appears whole or not at all."""
    from safetensors.torch import save as to_bytes

    schedule = None if statistics.schedule is None else dict(statistics.schedule)
    metadata = {"format": FORMAT, "version": str(VERSION), "schedule": json.dumps(schedule, allow_nan=False)}
    data = to_bytes({name: getattr(statistics, name).contiguous() for name in NAMES}, metadata)
    try:
        write_atomic(Path(path), data)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ConfigError(f"the statistics cannot be written to {Path(path).name}: {error.strerror}") from error


def load(path: str | PathLike[str], schedule: NoiseSchedule | None = None) -> EmpiricalStatistics:
    """Read them. ConfigError for a file that is none, IncompatibleError for another schedule or version."""
    metadata, tensors = _read(Path(path))
    found = _schedule(metadata.get("schedule", ""), path)
    try:
        statistics = EmpiricalStatistics(**tensors, schedule=found)
    except ConfigError as error:
        raise _refuse(path, str(error)) from error
    if schedule is not None:
        statistics.check(schedule)
    return statistics


def _refuse(path: Any, why: str) -> ConfigError:
    return ConfigError(f"{Path(path).name} is not a usable file of statistics: {why}; make it again with "
                       "EmpiricalStatistics.save")  # fmt: skip


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ConfigError(f"there is no file of statistics {path.name}")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= min(MAX_HEADER_BYTES, path.stat().st_size):
        raise _refuse(path, "its header has no sensible size")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_entries(file, metadata, path)
            return metadata, {name: file.get_tensor(name) for name in NAMES}
    except SafetensorError as error:
        raise _refuse(path, str(error).splitlines()[0]) from error


def _check_entries(file: Any, metadata: dict[str, str], path: Path) -> None:
    """The four tensors of this version and nothing else, none too large, before any is read."""
    if metadata.get("format") != FORMAT:
        raise _refuse(path, "it is a safetensors file of another kind")
    if metadata.get("version") != str(VERSION):
        raise IncompatibleError(f"{path.name} has version {metadata.get('version')!r} of the statistics, this fewstep "
                                f"reads version {VERSION}; estimate them again")  # fmt: skip
    if sorted(file.keys()) != sorted(NAMES):
        raise _refuse(path, f"it has the entries {sorted(name[:20] for name in file.keys())[:8]}")
    for name in NAMES:
        entry = file.get_slice(name)
        shape = entry.get_shape()
        if entry.get_dtype() != "F64" or not shape or shape[0] > MAX_KNOTS or math.prod(shape) > MAX_NUMBERS:
            raise _refuse(path, f"its entry {name} has the shape {shape} and the type {entry.get_dtype()}")


def _schedule(text: str, path: Any) -> Mapping[str, Any] | None:
    def refuse_constant(name: str) -> None:
        raise ValueError(name)

    try:
        schedule = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, "its header does not describe a schedule") from error
    plain = isinstance(schedule, dict) and all(isinstance(v, str | int | float) for v in schedule.values())
    if schedule is not None and not (plain and isinstance(schedule.get("kind"), str)):
        raise _refuse(path, "its header does not describe a schedule")
    return schedule
