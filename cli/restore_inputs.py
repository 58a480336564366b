"""The pictures that ``fewstep restore`` is given: files, and folders of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError
from . import checks, output, png
from .init_image import InitImage, find_image

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
    ".pgm", ".pnm", ".jp2", ".tga", ".ico", ".qoi",
)  # fmt: skip
MARK = "fewstep-restore"  # the text chunk of pictures that were made from restored ones


class Inputs(NamedTuple):
    """pictures: what can be read.       broken: (name, why) of what cannot.       passed_over: how many pictures of
    folders were made by fewstep restore."""

    pictures: tuple[InitImage, ...]
    broken: tuple[tuple[str, str], ...]
    passed_over: int


def find_inputs(given: Sequence[str] | None, apart: str | None = None) -> Inputs:
    """The pictures that INPUT... means. A folder gives its pictures by name, not those of folders in it.

    apart: a file that is no input wherever it lies (a mask).       A folder without pictures counts as one that cannot
    be read.       Errors: ConfigError if nothing can be read.
    """
    if not given:
        raise ConfigError("there is no INPUT: give a picture, as in fewstep restore photo.png --operator sr:factor=4, "
                          "or a folder of pictures")  # fmt: skip
    locations, broken, passed_over = _found(given, apart)
    if len(locations) > checks.MAX_IMAGES:
        raise ConfigError(f"{len(locations):,} pictures were given: at most {checks.MAX_IMAGES:,} in one run")
    pictures = []
    for location in dict.fromkeys(locations):
        try:
            pictures.append(find_image(location, "INPUT"))
        except ConfigError as error:
            if len(locations) + len(broken) == 1:
                raise
            broken.append((Path(location).name, str(error)))
    if not pictures:
        raise ConfigError(f"none of the {len(broken)} INPUTs can be read; the first: {broken[0][1]}")
    return Inputs(tuple(pictures), tuple(broken), passed_over)


def _found(given: Sequence[str], apart: str | None) -> tuple[list[str], list[tuple[str, str]], int]:
    """(files, (name, why) of folders that give none, how many pictures are passed over)."""
    files: list[str] = []
    broken: list[tuple[str, str]] = []
    passed_over = 0
    for one in dict.fromkeys(given):
        if not _is_folder(one):
            files.append(one)
            continue
        try:
            found, ours = _in_folder(one, apart)
        except ConfigError as error:
            if len(set(given)) == 1:
                raise
            broken.append((Path(one).name or one, str(error)))
            continue
        files += found
        passed_over += ours
    return files, broken, passed_over


def _is_folder(location: str) -> bool:
    try:
        return bool(location) and Path(location).is_dir()
    except (OSError, ValueError):  # a NUL in it, a name that is too long: reading it says so
        return False


def _in_folder(location: str, apart: str | None) -> tuple[list[str], int]:
    """(pictures by name, how many were left out because fewstep restore made them)."""
    try:
        files = sorted(path for path in Path(location).iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"INPUT {location!r} cannot be read: {error.strerror or error}") from None
    seen = [path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    seen = [path for path in seen if apart is None or not path.samefile(apart)]
    logged = _logged(Path(location))
    found = [str(path) for path in seen if not _is_ours(path, logged)]
    if not found:
        what = f"{len(seen)} pictures, all of them made by fewstep restore" if seen else "no picture"
        raise ConfigError(f"INPUT {location!r} is a folder with {what} in it (folders in it are not looked into)")
    return found, len(seen) - len(found)


def _logged(folder: Path) -> dict[str, str]:
    """File -> digest of the restored pictures that the folder's log has: those of --no-metadata say nothing of it."""
    with suppress(OSError):
        lines = output.read_log(folder / output.LOG)
        return {line["file"]: str(line.get("sha256")) for line in lines if line.get("command") == "restore"}
    return {}


def _is_ours(path: Path, logged: Mapping[str, str]) -> bool:
    """Whether it is what a restoration made: a second run on the same folder must not restore that."""
    if path.suffix.lower() != ".png":
        return False
    with suppress(ConfigError):
        texts = png.read_text(path).texts
        if MARK in texts or '"command": "restore"' in texts.get("fewstep", ""):
            return True
    with suppress(OSError):
        return path.name in logged and hashlib.sha256(path.read_bytes()).hexdigest() == logged[path.name]
    return False
