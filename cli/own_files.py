"""A file of our own that a command writes: where it may be, checked before the work, and writing it after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError


def writable(option: str, given: str, what: str, find: Callable[[str], object]) -> Path:
    """Where an option such as ``--save`` points. ConfigError unless a file of this kind may be written there.

    what: the kind, "table".       find: reads one, ConfigError for what is none. An old one is replaced, since that is
    what naming it asks for; any other file is not.
    """
    path = Path(given)
    if path.suffix.lower() != ".safetensors" or "\0" in given:
        raise ConfigError(f"{option} {given!r}: a {what} is a .safetensors file; expected a name that ends so")
    try:
        if path.is_dir() or not path.parent.is_dir():
            problem = "it is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
            raise ConfigError(f"{option} {given!r} cannot be written: {problem}")
        taken = path.exists()
    except OSError as error:
        raise ConfigError(f"{option} {given[:80]!r} cannot be written: {error.strerror or error}") from None
    if taken:
        _refuse_others(path, option, what, find)
    return path


def _refuse_others(path: Path, option: str, what: str, find: Callable[[str], object]) -> None:
    try:
        find(str(path))
    except ConfigError:
        raise ConfigError(f"{path} is in the way: it is no {what}; move it, or choose another {option}") from None


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Within, ConfigError where the file system refuses."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} {str(path)!r} cannot be written: {error.strerror or error}") from None
