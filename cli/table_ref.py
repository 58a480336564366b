"""What ``sample --table`` names: a file of ``table --save``, read as far as that needs no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from . import checks
from .safetensors_head import read_head

MAX_BYTES = 256 << 20
_FORMAT = "fewstep-table"


@dataclass(frozen=True)
class TableRef:
    """A saved table.

    digest: of its contents; equal for equal tables, whoever wrote the file.       solver: as `table --save` was told,
    else as the table says.       strength: that it was made for; None for a whole run, or if the file does not say.
    steps: as they were asked for, if the file says so; some solvers join several to one.
    parametrisation: of the model that it was saved for, None if the file does not say.
    """

    name: str
    digest: str
    solver: str
    steps: int
    parametrisation: str | None
    strength: str | None
    location: str = field(compare=False)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "digest": self.digest}


def find_table(location: str) -> TableRef:
    """The table at `location`. ConfigError for what is none; the numbers in it are checked when it is loaded."""
    path = Path(location)
    try:
        if not path.is_file():
            what = checks.not_a_file(location)
            raise ConfigError(f"--table {location!r} {what}: expected a file that fewstep table --save has written")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"--table {path.name!r} is larger than {MAX_BYTES >> 20} MB")
        head, data = read_head(path, "--table"), path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--table {location!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        marks = head["__metadata__"]
        if marks["format"] != _FORMAT:
            raise KeyError("format")
        solver, steps = json.loads(marks["table"])["solver"], 1 + _last_whole(head["step"], data)
        steps = int(marks.get("steps", steps))
        parametrisation = marks.get("parametrisation")
        solver = marks.get("solver", solver)
        if not (isinstance(solver, str) and solver.isprintable() and 1 <= steps <= 10_000):
            raise KeyError("solver")
        strength = marks.get("strength")
        return TableRef(path.name, digest_of(data), solver[:500], steps, parametrisation, strength, location)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise ConfigError(f"--table {path.name!r} is no table: expected a file of fewstep table --save") from None


def digest_of(data: bytes) -> str:
    """16 hexadecimal digits of what a table file says, in an order of our own: safetensors has none."""
    length = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    digest = hashlib.sha256(json.dumps(json.loads(head.pop("__metadata__")["table"]), sort_keys=True).encode())
    for name in sorted(head):
        start, end = head[name]["data_offsets"]
        digest.update(f"\n{name} {head[name]['dtype']} {head[name]['shape']}\n".encode() + body[start:end])
    return digest.hexdigest()[:16]


def _last_whole(entry: dict[str, Any], data: bytes) -> int:
    """The last number of an int64 entry."""
    start, end = entry["data_offsets"]
    base = 8 + int.from_bytes(data[:8], "little")
    if entry["dtype"] != "I64" or not 8 <= end - start <= len(data) - base - start:
        raise ValueError("no whole numbers")
    return int.from_bytes(data[base + end - 8 : base + end], "little", signed=True)
