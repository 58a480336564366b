"""A command line that can be pasted into a shell, whatever characters its words have."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from .console import printable


def join(words: Sequence[str]) -> str:
    """The exact command, for programs: POSIX quoting, or that of Windows."""
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)


def shown(words: Sequence[str]) -> str:
    """The command as a terminal may show it. Pasted into bash, zsh or ksh, it gives the words exactly.

    Windows has no such quoting: there a character that is not printable is shown as an escape (`exact` is false).
    """
    return printable(join(words)) if os.name == "nt" else " ".join(map(_word, words))


def exact(words: Sequence[str]) -> bool:
    """Whether `shown` gives the words exactly."""
    return os.name != "nt" or printable(join(words)) == join(words)


def _word(word: str) -> str:
    return shlex.quote(word) if printable(word) == word else "$'" + "".join(map(_character, word)) + "'"


def _character(c: str) -> str:
    """Bytes and not \\u, which old versions of bash lack and which depends on the locale; always two digits each."""
    if c.isprintable() and c not in "'\\!":
        return c
    return "".join(f"\\x{byte:02x}" for byte in c.encode())
