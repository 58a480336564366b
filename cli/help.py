"""Help pages in sections, and usage errors in one line."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand

_INSTEAD = (
    "fewstep has --solver for the update rule ({solvers}) and --schedule for the noise levels ({grids}); "
    "other programs mean either of them by {option}"
)


class SectionedCommand(TyperCommand):
    """A command whose options are listed under the headings given as ``rich_help_panel``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            line = param.get_help_record(ctx)
            if line is not None:
                title = getattr(param, "rich_help_panel", None)
                name, text = line
                sections.setdefault(title or "Other", []).append((name.replace(" <list[str]>", ""), text))
        for title, lines in sections.items():
            with formatter.section(title):
                formatter.write_dl(lines)


def usage_line(error: Any) -> str:
    """What was wrong with the command line, and where the help is."""
    name = getattr(error, "option_name", None)
    if name in ("--sampler", "--scheduler"):
        from ..names import GRID_NAMES, SOLVER_NAMES

        return _INSTEAD.format(solvers=", ".join(SOLVER_NAMES), grids=", ".join(GRID_NAMES), option=name)
    context = getattr(error, "ctx", None)
    page = f"{context.command_path} --help" if context is not None else "fewstep --help"
    return f"{_plain(error, name, context)}; see {page}"


def _plain(error: Any, name: str | None, context: Any) -> str:
    kind = type(error).__name__
    if kind == "NoSuchOption":
        known = [opt for param in context.command.get_params(context) for opt in param.opts] if context else []
        close = get_close_matches(name or "", known, n=1, cutoff=0.7)
        return f"there is no option {name}" + (f"; did you mean {close[0]}?" if close else "")
    text = " ".join(error.format_message().split()).rstrip(".")
    if kind == "BadParameter" and getattr(error, "param", None) is not None:
        text = f"{max(error.param.opts, key=len)}: {error.message}{_source(error.param, context)}"
    return text[:1].lower() + text[1:] if not text.startswith("-") else text


def _source(param: Any, context: Any) -> str:
    """Where a wrong value came from, if nobody typed it."""
    found = context.get_parameter_source(param.name) if context is not None else None
    return " (from --config)" if getattr(found, "name", "") == "DEFAULT_MAP" else ""
