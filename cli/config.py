"""``--config FILE``: options from a TOML file; the command line has the last word."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from typing import Any

import typer

from ..errors import ConfigError
from . import checks
from .help import OTHER_NAMES, SectionedCommand, instead_of

MAX_BYTES = 1 << 20
_OUTSIDE = ("config", "debug", "help")  # options about the command itself
# Options that exclude each other: what the command line says removes what the file says.
_EITHER = (
    ("steps", "nfe"), ("prompt", "prompt_file"), ("strength", "table"),
    ("table", "solver"), ("table", "schedule"), ("table", "steps"), ("table", "nfe"),
)  # fmt: skip


def use_config(ctx: typer.Context, value: list[str] | None) -> list[str] | None:
    """For the eager option: its file's values become the defaults of the command."""
    if value and len(value) > 1:
        raise ConfigError(f"--config was given {len(value)} times: options come from one file")
    if value and not ctx.resilient_parsing:
        ctx.default_map = read_config(value[0], {param.name or "": param for param in ctx.command.params})
    return value


class ConfiguredCommand(SectionedCommand):
    """A command with ``--config``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)

        def source(name: str) -> str:
            found = ctx.get_parameter_source(name) if ctx.params.get(name) is not None else None
            return "" if found is None else found.name

        for pair in _EITHER:
            for given, dropped in (pair, pair[::-1]):
                if source(given) == "COMMANDLINE" and source(dropped) == "DEFAULT_MAP":
                    ctx.params[dropped] = None
        if not ctx.params.get("simulate", True) and source("noise_seed") == "DEFAULT_MAP":
            ctx.params["noise_seed"] = 0  # of a file that has simulate = true, with --no-simulate
        return rest


def read_config(file: str, params: dict[str, Any]) -> dict[str, Any]:
    """The values of a TOML file, by the names of a command's parameters. ConfigError for a wrong file, key or value."""
    known = {name: param for name, param in params.items() if name not in _OUTSIDE}
    values: dict[str, Any] = {}
    for key, value in _parsed(file).items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"--config {file!r}: {_unknown(key, known)}")
        if name in values:
            raise ConfigError(f"--config {file!r}: {key} is there twice, once with - and once with _")
        values[name] = _value(value, known[name], f"--config {file!r}: {key}")
    return values


def _parsed(file: str) -> dict[str, Any]:
    raw = checks.content("--config", file, "a TOML file with lines like steps = 8", MAX_BYTES)
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"--config {file!r} is not UTF-8 text: expected TOML, with lines like steps = 8") from None
    except (ValueError, RecursionError) as error:
        why = str(error).splitlines()[0][:200] if isinstance(error, tomllib.TOMLDecodeError) else type(error).__name__
        raise ConfigError(f"--config {file!r} is no TOML: {why}; expected lines like steps = 8, texts quoted") from None


def _unknown(key: str, known: dict[str, Any]) -> str:
    if key.replace("-", "_") in _OUTSIDE:
        return f"{key} can only be given on the command line"
    if f"--{key}" in ("--sampler", "--scheduler"):
        return instead_of(key)
    meant = OTHER_NAMES.get("--" + key.replace("_", "-"), "").removeprefix("--").replace("-", "_")
    close = [meant] if meant in known else get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
    return f"there is no option {key!r}; {hint.replace('_', '-')}"


def _value(value: Any, param: Any, where: str) -> Any:
    """As the command line would have it: texts, which are then read as if typed; true or false for switches."""
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false, got {value!r}")
        return value
    if getattr(param, "multiple", False) or param.nargs == -1:
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in several):
            raise ConfigError(f"{where} must be a text or a list of texts, got {value!r}"[:300])
        return several
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{where} must be a text or a number, got {value!r}"[:300])
    try:
        return value if isinstance(value, str) else repr(value)
    except ValueError:  # a hexadecimal number of more digits than Python prints
        raise ConfigError(f"{where} is too large a number") from None
