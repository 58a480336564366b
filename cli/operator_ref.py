"""What ``--operator`` and ``--method`` name, and the lists that "help" in their place prints."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FewstepError
from . import checks

MAX_BYTES = 1 << 28
_FILE = re.compile(r"file=(?P<path>.*?)(?=,known=|,padding=|$)", re.DOTALL)
# Of the whole command, not of the method's own keys.
_OURS = ("steps", "guidance_scale")


@dataclass(frozen=True)
class OperatorRef:
    """text: with every key; a file by its name, never by its path.       sha256: of that file.
    operator: the object.       location: of the file."""

    text: str
    sha256: str | None = None
    operator: Any = field(default=None, compare=False)
    location: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.text.partition(":")[0]

    def identity(self) -> dict[str, str]:
        return {"name": self.text} | ({} if self.sha256 is None else {"sha256": self.sha256})


def find_operator(text: str | None) -> OperatorRef:
    """The operator of ``--operator``. ConfigError for an unknown name or key, and a value or file that cannot be."""
    if text is None:
        from ..inverse.named import OPERATOR_NAMES

        raise ConfigError(f"there is no --operator, what was done to the picture: one of {', '.join(OPERATOR_NAMES)}, "
                          "as in --operator sr:factor=4 (--operator help lists their keys)")  # fmt: skip
    from ..inverse.operators.named import described, operator_of

    try:
        operator = operator_of(text)
        told = described(operator)
    except FewstepError as error:
        raise type(error)(f"--operator: {error}") from None
    found = _FILE.search(told) if told.startswith(("mask:", "blur-kernel:")) else None
    if found is None:
        return OperatorRef(told, None, operator)
    path = found["path"]
    data = checks.content("--operator", path, "a picture or a file of numbers", MAX_BYTES)
    told = told[: found.start("path")] + Path(path).name + told[found.end("path") :]
    return OperatorRef(told, hashlib.sha256(data).hexdigest(), operator, path)


@dataclass(frozen=True)
class MethodRef:
    """name: of inverse.named.METHODS.       values: every hyper-parameter, see inverse.named.fields_of.
    method: the posterior."""

    name: str
    values: dict[str, Any]
    method: Any = field(default=None, compare=False)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, **self.values}


def find_method(text: str, steps: int | None, scale: float | None) -> MethodRef:
    """The posterior of ``--method`` with ``--steps`` and ``--guidance-scale``. ConfigError for what cannot be."""
    from dataclasses import replace

    from ..inverse.named import canonical, fields_of, method_of

    if steps is not None:
        checks.whole("--steps", steps, 1, checks.MAX_STEPS)
    checks.scale(scale)
    try:
        name, _, options = canonical(text).partition(":")
        _refuse_twice(options, name, {"steps": steps, "guidance_scale": scale})
        method = method_of(text)
        given = {key: value for key, value in zip(_OURS, (steps, scale), strict=True) if value is not None}
        method = replace(method, **given) if given else method
        values = fields_of(method)
        checks.whole("steps", method.steps, 1, checks.MAX_STEPS)
        checks.scale(method.guidance_scale, "guidance_scale")
    except ModuleNotFoundError as error:
        raise ConfigError(f"--method {text}: there is no such method in this version ({error})") from None
    except ConfigError as error:
        raise ConfigError(f"--method: {error}") from None
    return MethodRef(name, values, method)


def _refuse_twice(options: str, name: str, ours: dict[str, Any]) -> None:
    given = [part.partition("=")[0] for part in options.split(",")]
    for key, value in ours.items():
        if value is not None and key in given:
            raise ConfigError(f"{name} has {key} of its own here, and --{key.replace('_', '-')} {value:g} was given: "
                              "leave one of the two out")  # fmt: skip


def operators_listed() -> list[str]:
    """A line for each operator, and below it its keys with their defaults."""
    from ..inverse.operators.named import OPERATORS

    lines = []
    for name, named in OPERATORS.items():
        lines += [f"{name:<15} {named.help}", *([f"{'':<15}   {named.usage}"] if named.usage else [])]
    return lines


def methods_listed() -> list[str]:
    """A line for each method, and below it its keys with their defaults."""
    from ..inverse.named import METHODS, fields_of, method_of, written

    lines, wide = [], max(map(len, METHODS))
    for name, (_, _, help) in METHODS.items():
        try:
            keys = written("", fields_of(method_of(name))).lstrip(":").replace(",", ", ")
        except ModuleNotFoundError:
            continue
        lines += [f"{name:<{wide}} {help}", f"{'':<{wide}}   {keys}"]
    return lines
