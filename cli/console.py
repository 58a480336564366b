"""What people see: data on stdout; our own lines and the progress bar on stderr; other libraries only if asked."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def emit(text: str) -> None:
    """A line of data. If nobody reads stdout any more (``| head``) the rest is dropped without a word."""
    try:
        print(text, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EINVAL):  # Windows says EINVAL
            raise
        silence_stdout()


def complain(text: str) -> None:
    """An error, on standard error."""
    print(f"error: {text}", file=sys.stderr, flush=True)


def explain_os_error(error: OSError) -> str:
    """A failed write, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space, and the same command goes on where it stopped"
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"


def silence_stdout() -> None:
    """Send stdout to nowhere, so that Python's last flush does not complain about a closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def printable(text: object) -> str:
    """Text from a file, safe for a terminal: control characters and the like are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@dataclass(frozen=True)
class Console:
    """quiet: errors only.       verbose: also details, and what other libraries say."""

    quiet: bool = False
    verbose: bool = False

    def note(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def progress(self, total: int) -> tqdm:
        """A bar over `total` network evaluations; only on a terminal."""
        from tqdm import tqdm

        form = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {elapsed} gone, {remaining} left"
        return tqdm(total=total, disable=True if self.quiet else None, leave=False, file=sys.stderr, bar_format=form)

    @contextmanager
    def hushed(self) -> Iterator[None]:
        """Warnings and loading bars of other libraries are not shown inside, unless verbose."""
        if self.verbose:
            yield
            return
        for name, value in _QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # read by the libraries when they are imported
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    def hush_loaded(self) -> None:
        """The same for libraries that are imported by now."""
        if self.verbose:
            return
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

        for library in (of_diffusers, of_transformers):
            library.set_verbosity_error()
            library.disable_progress_bar()


_QUIET_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
