"""Where the pictures of a run go, which of them are there already, and the log beside them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..files import write_atomic
from . import png, record
from .record_check import is_whole, refuse_constant
from .settings import Item, Settings

if TYPE_CHECKING:
    from .restore_settings import Job

DEFAULT = "outputs"
LOG = "run.jsonl"
_MAX_LOG = 1 << 30
_MAX_LINE = 8 << 20
_OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl")


@dataclass(frozen=True)
class Target:
    """A folder, or one named file in it.

    In a folder the name of a picture is RUN-INDEX-seedSEED.png, where RUN names the settings: the pictures of other
    commands lie beside them, and the same command finds its own.
    """

    folder: Path
    file: Path | None
    run: str

    def path(self, item: Item) -> Path:
        return self.file or self.folder / f"{self.run}-{item.index:04d}-seed{item.seed}.png"

    @property
    def grid(self) -> Path:
        return self.folder / f"{self.run}-grid.png"

    @property
    def log(self) -> Path | None:
        """A single named file has none: the picture says everything."""
        return None if self.file else self.folder / LOG


def find_target(output: str | None, run: str, items: Sequence[Item], grid: bool = False) -> Target:
    """Where ``--output`` points for these pictures. ConfigError for what cannot be written; nothing is created."""
    output = DEFAULT if output is None else output
    if output in ("", "-") or "\0" in output:
        raise ConfigError(f"--output {output!r} cannot be used: expected a folder, or a file that ends in .png")
    try:
        return _find_target(Path(output), output, run, items, grid)
    except (OSError, UnicodeError) as error:  # a name that is too long, a folder that may not be looked into
        raise _explained(output, error) from None


def _find_target(path: Path, output: str, run: str, items: Sequence[Item], grid: bool) -> Target:
    suffix = (path.suffix or path.name).lower()  # ".png" has a name and no suffix
    if path.is_dir() or (suffix != ".png" and not path.exists()):
        if suffix in _OTHER_PICTURES and not path.is_dir():
            raise ConfigError(f"--output {output!r}: pictures are PNG; expected a folder, or a file that ends in .png")
        target = Target(path, None, run)
    elif suffix == ".png":
        if len(items) > 1 or grid:
            what = "--grid needs" if grid else f"{len(items):,} pictures need"
            raise ConfigError(f"--output {output!r} names one file, and {what} a folder")
        if path.name.lower() == suffix:
            raise ConfigError(f"--output {output!r} has no name before .png: expected one, as in picture.png")
        target = Target(path.parent, path, run)
    else:
        raise ConfigError(f"--output {output!r} is a file: expected a folder, or a file that ends in .png")
    _check_writable(target, items[-1], output)
    return target


def _check_writable(target: Target, last: Item, output: str) -> None:
    """The nearest folder that exists must be one, and writable. OSError for a name that is too long for it."""
    nearest = target.folder
    while not nearest.exists():
        nearest = nearest.parent
    path = target.path(last)
    temporary = path.with_name(f".{path.name}.01234567.part")  # as write_atomic would call it
    for new in (temporary, *(nearest / part for part in temporary.parts[len(nearest.parts) :])):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(new)
    if not nearest.is_dir():
        raise ConfigError(f"--output {output!r} cannot be written: {str(nearest)!r} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {output!r} cannot be written: no permission in {str(nearest)!r}")


def _explained(output: str, error: OSError | UnicodeError) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    shown = repr(output if len(output) <= 80 else output[:77] + "...")
    return ConfigError(f"--output {shown} cannot be written: {reason}")


def probe(folder: Path, output: str) -> None:
    """Write and remove a file, and every folder made for it: what permissions say is not always true."""
    made: list[Path] = []
    try:
        for parent in [*reversed(folder.parents), folder]:
            if not parent.exists():
                parent.mkdir()
                made.append(parent)
        test = folder / f".fewstep-{secrets.token_hex(4)}"
        write_atomic(test, b"")
        test.unlink()
    except OSError as error:
        raise _explained(output, error) from None
    finally:
        for parent in reversed(made):
            with suppress(OSError):  # another run has begun to use it
                parent.rmdir()


def finished(target: Target, settings: Settings | Job) -> dict[int, dict[str, Any]]:
    """Index -> log line of the pictures that are there. ConfigError if another file is in the way."""
    lines = {line["file"]: line for line in read_log(target.log)} if target.log else {}
    found = {}
    for item in settings.items:
        path = target.path(item)
        if path.exists() or path.is_symlink():
            line = _recognise(path, settings, item, lines.get(path.name), target.file is not None)
            if line is not None:
                found[item.index] = line
    return found


def _recognise(
    path: Path, settings: Settings | Job, item: Item, line: dict[str, Any] | None, named: bool
) -> dict[str, Any] | None:
    """The log line of a picture as this command makes it; None for one of ours that it makes again.

    A picture says itself what it is; one without metadata is in the log, with its digest. In a folder the command makes
    its own pictures again that have metadata where it writes none, or none where it does. A single file that was named
    may be any picture of ours.       Errors: ConfigError for every other file.
    """
    fields, expected = _record_of(path), settings.expected(item)
    logged = line is not None and is_whole(line.get("nfe"), 1, 1 << 53) and line.get("sha256") == _digest(path)
    told = fields if fields is not None else line if logged else None
    if told is None:
        raise in_the_way(path, "fewstep")
    same = expected.items() <= told.items()
    if same and (fields is not None) == settings.metadata:
        return told if fields is None else log_line(path, fields)
    if not (named or same):
        raise in_the_way(path, "this command")
    return None


def _record_of(path: Path) -> dict[str, Any] | None:
    try:
        text = png.read_text(path).texts.get(record.KEY)
        return None if text is None else record.parse(text, path.name)
    except ConfigError:
        return None


def in_the_way(path: Path, maker: str) -> ConfigError:
    return ConfigError(f"{path} is in the way: it was not made by {maker}; move it, or choose another --output")


def check_grid(target: Target) -> None:
    """ConfigError if the name of the grid is taken by a file that is no grid of ours."""
    if target.grid.exists() and "fewstep-grid" not in png.read_text(target.grid).texts:
        raise in_the_way(target.grid, "this command")


def log_line(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    return {"file": path.name, "sha256": _digest(path), **fields}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a run.jsonl; a line that a crash cut off, or that is not ours, is passed over."""
    if not path.is_file() or path.stat().st_size > _MAX_LOG:
        return []
    lines = []
    for raw in path.read_bytes().splitlines():
        try:
            line = json.loads(raw, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("file"), str):
            lines.append(line)
    return lines


def append_log(path: Path, line: dict[str, Any]) -> None:
    """One line in one write, so that runs in the same folder do not mix. A line that a crash cut off is removed first,
    and one that does not fit on the disk is taken back."""
    data = json.dumps(line, sort_keys=True, allow_nan=False).encode() + b"\n"
    with path.open("ab+", buffering=0) as stream:
        end = _cut_torn_line(stream)
        try:
            if stream.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(stream.fileno())
        except BaseException:
            stream.truncate(end)
            raise


def _cut_torn_line(stream: Any) -> int:
    """The size of the file, after removing what follows the last line end."""
    end = stream.seek(0, os.SEEK_END)
    start = max(0, end - _MAX_LINE)
    stream.seek(start)
    tail = stream.read(end - start)
    if tail.endswith(b"\n") or not tail:
        return end
    return stream.truncate(start + tail.rfind(b"\n") + 1)
