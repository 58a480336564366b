"""The header of a .safetensors file, read without torch: 8 bytes of length, then JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError

MAX_HEAD = 100 << 20  # what the format allows


def read_head(path: Path, option: str) -> dict[str, Any]:
    """The entries of the file, without its weights. ConfigError, naming `option`, for a file that is none."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length) if 2 <= length <= min(size - 8, MAX_HEAD) else b""
    try:
        head = json.loads(raw)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or not all(isinstance(entry, dict) for entry in head.values()):
        raise ConfigError(f"{option} {path.name!r} is damaged: its {size:,} bytes are no .safetensors file")
    return head
