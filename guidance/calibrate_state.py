"""What a calibration has measured so far, in memory and, if it is to survive an interruption, in a file."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FewstepError
from ..samplers.safe_file import Kind

KIND = Kind("checkpoint of a calibration", "fewstep-calibration", 1, "fewstep calibrate", max_header=32 << 20)
SAVE_EVERY = 10.0  # seconds
_NAME = re.compile(r"[0-9a-z]{1,32}\.\d{1,6}\.[a-z]{1,16}")
_MAX_BYTES = 16 << 30


class Kept:
    """Measurements by name, "PASS.NUMBER.WHAT".

    key: of everything that determines them. A file with another key, or none that can be read, is left aside, and
    `note` says so.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, hashlib.sha256(key.encode()).hexdigest()
        self._found: dict[str, Tensor] = {}
        self._saved = time.monotonic()
        self._dirty = False
        self.note: str | None = None
        if path is not None and path.exists():
            self._read(path)

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Tensor:
        return self._found[name]

    def add(self, found: dict[str, Tensor]) -> None:
        """Measurements that belong together; they are on disk some seconds later."""
        self._found |= {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
        self._dirty = True
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Now. The file appears whole or stays what it was."""
        from safetensors.torch import save as to_bytes

        if self._path is not None and self._dirty:
            KIND.write(self._path, to_bytes(self._found, {**KIND.marks, "key": self._key}))
            self._saved, self._dirty = time.monotonic(), False

    def remove(self) -> None:
        """The work is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        try:
            metadata, tensors = KIND.read(path, lambda file: _check_entries(file, path))
        except FewstepError as error:
            self.note = f"{path.name} is left aside and everything is measured anew: {error}"
            return
        if metadata.get("key") != self._key:
            self.note = f"{path.name} is of a calibration with other settings: everything is measured anew"
            return
        self._found = tensors
        self.note = f"going on where {path.name} ends"


def _check_entries(file: Any, path: Path) -> None:
    if path.stat().st_size > _MAX_BYTES or not all(_NAME.fullmatch(name) for name in file.keys()):
        raise KIND.refuse(path, "its entries are not those of a calibration")
