"""Our own files on disk: safetensors with a format mark, a version and strict JSON in the header, capped in size.

Nothing of a file is believed before it was checked: the header's length before it is read, the marks and the shapes of
the entries before a tensor is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..files import write_atomic


@dataclass(frozen=True)
class Kind:
    """what: as in "there is no WHAT".       format, version: the marks in the header.       again: how to make one.

    max_header: bytes that a header may have.
    """

    what: str
    format: str
    version: int
    again: str
    max_header: int = 1 << 20

    @property
    def marks(self) -> dict[str, str]:
        return {"format": self.format, "version": str(self.version)}

    def refuse(self, path: str | PathLike[str], why: str) -> ConfigError:
        """The error for a file that is not usable."""
        return ConfigError(f"{Path(path).name} is not a usable {self.what}: {why}; make it again with {self.again}")

    def write(self, path: str | PathLike[str], data: bytes) -> None:
        """The file appears whole or not at all."""
        try:
            write_atomic(Path(path), data)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ConfigError(f"the {self.what} cannot be written to {Path(path).name}: {error.strerror}") from error

    def read(self, path: Path, check_entries: Callable[[Any], None]) -> tuple[dict[str, str], dict[str, Tensor]]:
        """(metadata, tensors). check_entries(file): raises for names, shapes or types that do not belong there.

        Errors: ConfigError for a file that is none of this kind, IncompatibleError for another version.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise ConfigError(f"there is no {self.what} {path.name}")
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(self.max_header, path.stat().st_size):
            raise self.refuse(path, "its header has no sensible size")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self._check_marks(metadata, path)
                check_entries(file)
                return metadata, {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise self.refuse(path, str(error).splitlines()[0]) from error

    def header(self, text: str, path: Path, describes: str) -> Any:
        """The value of strict JSON.       describes: what it ought to describe, for the error."""

        def refuse_constant(name: str) -> None:
            raise ValueError(name)

        try:
            return json.loads(text, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise self.refuse(path, f"its header does not describe {describes}") from error

    def _check_marks(self, metadata: dict[str, str], path: Path) -> None:
        if metadata.get("format") != self.format:
            raise self.refuse(path, "it is a safetensors file of another kind")
        if metadata.get("version") != str(self.version):
            found = metadata.get("version")
            raise IncompatibleError(f"{path.name} is a {self.what} of version {found!r}, this fewstep reads version "
                                    f"{self.version}; make it again with {self.again}")  # fmt: skip
