"""What an option of the command line is: its section of the help page, how its value is read, what completes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

WHAT, HOW, MODEL, OUT, TALK = "What to make", "How to sample", "Model", "Output", "What is printed"


def whole(text: str | int) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, got {text!r}") from None


def real(text: str | float) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, got {text!r}") from None


def argument(section: str, metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help, show_default=False, rich_help_panel=section)


def option(
    section: str,
    *names: str,
    help: str,
    metavar: str | None = None,
    among: Sequence[str] = (),
    shown: bool = True,
    parser: Callable[[str], Any] | None = None,
    callback: Callable[..., Any] | None = None,
) -> Any:
    """callback: called first, before the other options are read.
    among: what shell completion offers.       shown: whether the help page shows the default."""

    def matches(incomplete: str) -> list[str]:
        return [name for name in among if name.startswith(incomplete)]

    return typer.Option(
        *names,
        help=help,
        metavar=metavar,
        autocompletion=matches if among else None,
        show_default=shown,
        parser=parser,
        callback=callback,
        is_eager=callback is not None,
        rich_help_panel=section,
    )
