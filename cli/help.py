"""Help pages in sections, and usage errors in one line."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand

_INSTEAD = (
    "fewstep has --solver for the update rule ({solvers}) and --schedule for the noise levels ({grids}); "
    "other programs mean either of them by {option}"
)
# What other programs call our options, where the spelling does not suggest it.
OTHER_NAMES = {
    "--cfg": "--guidance-scale", "--cfg-scale": "--guidance-scale", "--scale": "--guidance-scale",
    "--n-iter": "--num-images", "--count": "--num-images", "--image": "--init-image", "--ckpt": "--model",
    "--denoise": "--strength", "--denoising-strength": "--strength", "--out": "--output", "--outdir": "--output",
    "--task": "--operator", "--degradation": "--operator", "--mask": "--operator", "--kernel": "--operator",
    "--sigma": "--noise-std", "--sigma-y": "--noise-std", "--noise": "--noise-std", "--algorithm": "--method",
    "--num-samples": "--samples", "--num-images": "--samples", "--posterior": "--method",
}  # fmt: skip


class SectionedCommand(TyperCommand):
    """A command whose options are listed under the headings given as ``rich_help_panel``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            line = param.get_help_record(ctx)
            if line is not None:
                title = getattr(param, "rich_help_panel", None)
                name, text = line
                name = name.partition(" / --")[0]  # what undoes a switch of --config is in docs/cli.md
                sections.setdefault(title or "Other", []).append((name.replace(" <list[str]>", ""), text))
        for title, lines in sections.items():
            with formatter.section(title):
                formatter.write_dl(lines)


def instead_of(option: str) -> str:
    """What to use for an option of other programs that means two things here."""
    from ..names import ADAPTIVE_NAMES, GRID_NAMES, SOLVER_NAMES

    solvers = ", ".join((*SOLVER_NAMES, *ADAPTIVE_NAMES))
    return _INSTEAD.format(solvers=solvers, grids=", ".join(GRID_NAMES), option=option)


def _of_restore(option: str) -> str:
    return (f"fewstep restore has no {option}: the posterior sampler is --method, its update rule --method "
            "NAME:solver=SOLVER, its noise levels --method NAME:grid=GRID; see fewstep restore --help")  # fmt: skip


def usage_line(error: Any, command: str = "") -> str:
    """What was wrong with the command line, and where the help is.       command: the one that was called."""
    name = getattr(error, "option_name", None)
    if command == "restore" and name in ("--sampler", "--scheduler", "--solver", "--schedule"):
        return _of_restore(name)
    if name in ("--sampler", "--scheduler"):
        return instead_of(name)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else f"fewstep {command}".strip()
    text = _plain(error, name, context)
    return f"{text} See {path} --help" if text.endswith("?") else f"{text}; see {path} --help"


def _plain(error: Any, name: str | None, context: Any) -> str:
    kind = type(error).__name__
    if kind == "NoSuchOption":
        params = context.command.get_params(context) if context else []
        known = [opt for param in params for opt in (*param.opts, *param.secondary_opts)]
        meant = OTHER_NAMES.get(name or "", "")
        close = [meant] if meant in known else get_close_matches(name or "", known, n=1, cutoff=0.7)
        return f"there is no option {name}" + (f"; did you mean {close[0]}?" if close else "")
    text = " ".join(error.format_message().split()).rstrip(".")
    if kind == "BadParameter" and getattr(error, "param", None) is not None:
        text = f"{max(error.param.opts, key=len)}: {error.message}{_source(error.param, context)}"
    return text[:1].lower() + text[1:] if not text.startswith("-") else text


def _source(param: Any, context: Any) -> str:
    """Where a wrong value came from, if nobody typed it."""
    found = context.get_parameter_source(param.name) if context is not None else None
    return " (from --config)" if getattr(found, "name", "") == "DEFAULT_MAP" else ""
