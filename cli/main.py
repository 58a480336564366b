"""The ``fewstep`` command: what it is made of, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated

import typer

from ..errors import ConfigError, FewstepError, IncompatibleError
from . import calibrate, inspect, restore, sample, search, table
from .config import ConfiguredCommand
from .console import complain, emit, explain_os_error, printable, silence_stdout
from .help import SectionedCommand, usage_line

COMMANDS = ("sample", "restore", "table", "calibrate", "search", "inspect")
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_EXAMPLES = """\b
Try:
  fewstep sample "a red circle above a blue square"
  fewstep restore photo.png --operator sr:factor=4 --simulate
  fewstep table --solver unipc-3 --steps 8
  fewstep sample "a green star" --guidance adaptive
  fewstep calibrate --target-nfe 15 -o policy.safetensors
  fewstep search --steps 20 --target-nfe 26 -o searched.safetensors
  fewstep inspect outputs/*.png

\b
Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 some pictures failed, 130 interrupted.
"""

app = typer.Typer(
    name="fewstep",
    help="Pictures from diffusion and flow models with fewer network evaluations, and pictures restored with them.",
    epilog=_EXAMPLES,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        emit(f"fewstep {version('fewstep')}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of no command."""


app.command("sample", cls=ConfiguredCommand, epilog=sample.EXAMPLES)(sample.sample)
app.command("restore", cls=ConfiguredCommand, epilog=restore.EXAMPLES)(restore.restore)
app.command("table", cls=SectionedCommand, epilog=table.EXAMPLES)(table.table)
app.command("calibrate", cls=SectionedCommand, epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.command("search", cls=SectionedCommand, epilog=search.EXAMPLES)(search.search)
app.command("inspect", cls=SectionedCommand, epilog=inspect.EXAMPLES)(inspect.inspect)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; by default with the arguments of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in (words[: words.index("--")] if "--" in words else words)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may have bytes that are no text
    try:
        code = typer.main.get_command(app).main(args=words, prog_name="fewstep", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        code, line = _explain(error, words[0] if words[0] in COMMANDS else "")
        complain(line)
    try:
        sys.stdout.flush()
    except OSError:
        silence_stdout()
    return code if isinstance(code, int) else OK


def _explain(error: Exception, command: str) -> tuple[int, str]:
    """(exit code, one line) for whatever went wrong."""
    if isinstance(error, FewstepError):
        bad_input = isinstance(error, ConfigError | IncompatibleError)
        return (USAGE if bad_input else FAILED), _one_line(error)
    if hasattr(error, "format_message"):  # typer's errors; their module differs between its versions
        return USAGE, usage_line(error, command)
    if isinstance(error, typer.Abort):
        return INTERRUPTED, "interrupted"
    if isinstance(error, OSError):
        return FAILED, explain_os_error(error)
    return FAILED, f"{type(error).__name__}: {_one_line(error)} (unexpected; --debug shows where)"


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))
