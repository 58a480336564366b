"""Posteriors by name, as the command line takes them: "stsl", "stsl:K=2,zeta=0.2". Names alone need no torch."""

from __future__ import annotations

import difflib
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_type_hints

from ..errors import ConfigError

if TYPE_CHECKING:
    from .posterior import Posterior

# Name -> module, class, and one line for people.
METHODS: dict[str, tuple[str, str, str]] = {
    "stsl": ("stsl", "STSL", "50 steps, each with K steps along the data loss and a second-order term"),
    "ldps": ("ldps", "LDPS", "one step along the data loss at each of 1,000 steps"),
    "psld": ("psld", "PSLD", "LDPS that also asks for latents which the autoencoder leaves as they are"),
    "p2l": ("p2l", "P2L", "LDPS that also tunes the prompt's embedding, and projects now and then"),
    "dps": ("dps", "DPS", "diffusion posterior sampling, made for pixels; on latent models LDPS with ancestral steps"),
    "dps-gaussian": ("dps", "DPSGaussian", "DPS with the likelihood's own weight"),
    "pigdm": ("pigdm", "PiGDM", "only models of pixels and linear operators: guidance by the pseudo-inverse"),
    "tmpd": ("tmpd", "TMPD", "only models of pixels and linear operators: PiGDM with the network's own covariance"),
}
# What operators.named.OPERATORS has, for help pages and completion.
OPERATOR_NAMES = (
    "inpaint-box", "inpaint-random", "mask", "sr", "blur-gaussian", "blur-motion", "blur-kernel", "denoise", "jpeg",
)  # fmt: skip
ALIASES = {"pi-gdm": "pigdm", "pgdm": "pigdm", "latent-dps": "ldps"}
_PLAIN = (str, int, float, bool, type(None))


def canonical(text: str) -> str:
    """ "name:key=value,..." with our name and without spaces; keys and values are not looked at.

    Errors: ConfigError for a name that is unknown.
    """
    name, _, options = text.partition(":")
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = ALIASES.get(key, key)
    if key not in METHODS:
        close = difflib.get_close_matches(key, (*METHODS, *ALIASES), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? There are" if close else "there are"
        raise ConfigError(f"unknown method {text.strip()!r}: {hint} {', '.join(METHODS)}")
    parts = [part.strip() for part in options.split(",")] if options.strip() else []
    pairs = ("=".join(piece.strip() for piece in part.split("=", 1)) for part in parts)
    return ":".join((key, ",".join(pairs))) if parts else key


def method_class(name: str) -> type[Posterior]:
    """The class of a name of METHODS."""
    module, cls, _ = METHODS[name]
    return getattr(import_module(f".{module}", __package__), cls)


def method_of(text: str) -> Posterior:
    """The posterior that "name:key=value,..." writes; a key is a field of its class, `solver` takes a solver's name.

    A solver's name that names a grid too ("DPM++ 2M Karras") chooses that, unless `grid` is there.
    Errors: ConfigError for an unknown name or key and for a value that cannot be.
    """
    from ..samplers.solver_config import parse_all, solver_and_grid

    name, _, options = canonical(text).partition(":")
    cls = method_class(name)
    hints = get_type_hints(cls)
    types: dict[str, Any] = {f.name: str if f.name == "solver" else hints[f.name] for f in fields(cls)}
    _check_keys(options, name, list(types))
    values = parse_all(options, types, f"method {name}")
    if "solver" in values:
        values["solver"], grid = solver_and_grid(values["solver"])
        if grid is not None:
            values.setdefault("grid", grid)
    return cls(**values)


def fields_of(method: Posterior) -> dict[str, Any]:
    """The hyper-parameters as JSON has them: numbers, texts, and of a solver its name as `method_of` reads it.

    Errors: ConfigError for a solver or a value that has no such text.
    """
    found = {}
    for f in fields(method):
        value = getattr(method, f.name)
        if f.name == "solver":
            value = _solver_text(value)
        elif not isinstance(value, _PLAIN):
            raise ConfigError(f"{f.name} of {type(method).__name__} cannot be written as text: {value!r}")
        found[f.name] = value
    return found


def written(name: str, values: dict[str, Any]) -> str:
    """The text that `method_of` reads: of a name and what `fields_of` gave."""
    options = ",".join(f"{key}={_text(value)}" for key, value in values.items())
    return f"{name}:{options}" if options else name


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def _solver_text(solver: Any) -> str:
    """The shortest text of a solver: the name here that is nearest to it, with the hyper-parameter that it changes."""
    from ..samplers import SOLVERS
    from ..samplers.solver_config import solver_config

    config = solver_config(solver)
    config.pop("name")
    alike = {name: made for name, make in SOLVERS.items() if type(made := make()) is type(solver)}
    changes = [(name, {key: value for key, value in config.items() if getattr(made, key) != value})
               for name, made in alike.items()]  # fmt: skip
    name, changed = min(changes, key=lambda one: len(one[1]), default=("", {}))
    if not name or len(changed) > 1 or not all(isinstance(value, _PLAIN) for value in changed.values()):
        raise ConfigError(f"{solver!r} cannot be written as a name with one key=value, which is what a method's solver "
                          "may be here: give it in Python")  # fmt: skip
    return name + "".join(f":{key}={_text(value)}" for key, value in changed.items())


def _check_keys(options: str, name: str, known: list[str]) -> None:
    """ConfigError for a key that there is not, with the nearest."""
    for part in options.split(",") if options.strip() else []:
        key = part.partition("=")[0].strip()
        if "=" in part and key not in known:
            close = difflib.get_close_matches(key.lower(), [*known, *map(str.lower, known)], n=1, cutoff=0.5)
            meant = next((k for k in known if close and k.lower() == close[0].lower()), None)
            hint = f"did you mean {meant}? " if meant else ""
            raise ConfigError(f"method {name} has no key {key!r}: {hint}it has {', '.join(known)}")
