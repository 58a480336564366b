"""Policies by name, as the command line and `guidance="..."` take them: "adaptive", "interval:stop=0.5", or a file."""

from __future__ import annotations

import difflib
from dataclasses import fields
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..samplers import Policy
    from .made_for import MadeFor

# Name -> module and class of the policy.
NAMES: dict[str, tuple[str, str]] = {
    "cfg": ("cfg", "CFG"),
    "adaptive": ("adaptive", "AdaptiveGuidance"),
    "interval": ("interval", "Interval"),
    "delta-reuse": ("delta_reuse", "DeltaReuse"),
}
ALIASES = {"ag": "adaptive", "adaptive-guidance": "adaptive", "delta": "delta-reuse", "classifier-free": "cfg"}
SUFFIX = ".safetensors"
OF_A_FILE = {
    "linear": "fewstep calibrate --policy linear",
    "linear-ag": "fewstep calibrate --policy linear",
    "searched": "fewstep search",
    "search": "fewstep search",
}
SPACES = ("x0", "raw", "eps", "v")  # of guidance.space, which needs torch
_IN_PYTHON = ("sigma",)  # two numbers
_ONE_NUMBER = ("scale", "gain")  # may be one per step, in Python


def canonical(text: str) -> str:
    """ "name:key=value,..." with our name and without spaces; values are not looked at, nor is torch imported.

    Errors: ConfigError for a name that is unknown.
    """
    name, _, options = text.partition(":")
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = ALIASES.get(key, key)
    if key in OF_A_FILE:
        raise ConfigError(f"{text.strip()} belongs to one run of one model and needs a file: {OF_A_FILE[key]} -o FILE, "
                          f"then name that file, which ends in {SUFFIX}")  # fmt: skip
    if key not in NAMES:
        close = difflib.get_close_matches(key, (*NAMES, *ALIASES), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? There are" if close else "there are"
        raise ConfigError(f"unknown guidance {text.strip()!r}: {hint} {', '.join(NAMES)}, or the file of a policy, "
                          f"whose name ends in {SUFFIX}")  # fmt: skip
    parts = [part.strip() for part in options.split(",")] if options.strip() else []
    pairs = ("=".join(piece.strip() for piece in part.split("=", 1)) for part in parts)
    return ":".join((key, ",".join(pairs))) if parts else key


def is_file(text: str) -> bool:
    """Whether a text means the file of a policy and not a name."""
    return text.lower().endswith(SUFFIX) or "/" in text or "\\" in text


def policy_named(text: str) -> Policy:
    """The policy of a name, perhaps with hyper-parameters: "adaptive:threshold=0.998,space=v".

    Errors: ConfigError for an unknown name or key and for a value that cannot be.
    """
    from ..samplers.solver_config import parse_all

    name, _, options = canonical(text).partition(":")
    module, cls = NAMES[name]
    found: Any = getattr(import_module(f".{module}", __package__), cls)
    hints = get_type_hints(found)
    types = {f.name: float if f.name in _ONE_NUMBER else hints[f.name]
             for f in fields(found) if f.name not in _IN_PYTHON}  # fmt: skip
    return found(**parse_all(options, types, f"guidance {name}"))


def policy_of(guidance: Policy | str | PathLike[str]) -> tuple[Policy, MadeFor | None]:
    """The policy that `guidance` is, names, or is the file of; and of a file, what it was calibrated for.

    Whoever runs it then calls `made_for.check(policy, made_for, here)`.
    Errors: ConfigError for a name that is unknown, a file that is none, and anything else that is no policy.
    """
    from ..samplers import Policy
    from .policy_file import load

    if isinstance(guidance, PathLike) or (isinstance(guidance, str) and is_file(guidance)):
        return load(Path(guidance))
    if isinstance(guidance, str):
        return policy_named(guidance), None
    if not isinstance(guidance, Policy):
        raise ConfigError(f"guidance must be a policy such as AdaptiveGuidance(), a name ({', '.join(NAMES)}) or the "
                          f"file of a policy, got {guidance!r}")  # fmt: skip
    return guidance, None
