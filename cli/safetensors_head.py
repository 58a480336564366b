"""The header of a .safetensors file, read without torch: 8 bytes of length, then JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError

MAX_HEAD = 100 << 20  # what the format allows


def read_head(path: Path, option: str) -> dict[str, Any]:
    """The entries of the file, without its weights. ConfigError, naming `option`, for a file that is none."""
    length = head_length(path, option)
    with path.open("rb") as stream:
        raw = stream.read(8 + length)[8:]
    try:
        head = json.loads(raw)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or not all(isinstance(entry, dict) for entry in head.values()):
        raise ConfigError(f"{option} {path.name!r} is damaged: its header cannot be read")
    return head


def head_length(path: Path, option: str) -> int:
    """The bytes of the header. ConfigError, naming `option`, for a file that is none, or that ends before it."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        begin = stream.read(9)
    if begin[8:] != b"{":  # where every header begins
        what = "is empty" if size == 0 else "is no .safetensors file, whatever its name says"
        raise ConfigError(f"{option} {path.name!r} {what}")
    length = int.from_bytes(begin[:8], "little")
    if not 2 <= length <= min(size - 8, MAX_HEAD):
        raise ConfigError(f"{option} {path.name!r} is damaged: its header has {length:,} bytes, and the file {size:,}")
    return length
