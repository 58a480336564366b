"""Operators by name, as the command line takes them: "sr:factor=8", "mask:file=holes.png".

What a name alone means suits 64 pixels as well as 512: sizes that nobody gives grow with the picture, from the field's
at 256 (box of half the side, 70 % of pixels missing, x4, Gaussian of 3 pixels, motion kernel of 61).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any, NamedTuple, get_type_hints

from ...errors import ConfigError
from ...samplers.solver_config import parse_all
from .base import name_of
from .blur import GaussianBlur
from .convolution import KernelBlur
from .denoise import Denoise
from .downsample import Downsample
from .files import kernel_of_file, mask_of_file
from .inpaint import InpaintBox, InpaintMask, InpaintRandom
from .jpeg import JPEG
from .motion import MotionBlur


class Named(NamedTuple):
    """operator: the class.       help: one line for people.       make: what builds it from the keys."""

    operator: type
    help: str
    make: Callable[..., Any]

    @property
    def keys(self) -> dict[str, Any]:
        """Key -> its default; `inspect.Parameter.empty` where it must be given."""
        return {name: parameter.default for name, parameter in inspect.signature(self.make).parameters.items()}

    @property
    def usage(self) -> str:
        """The keys with their defaults, for people: "file=PATH, known=white"."""
        empty = inspect.Parameter.empty
        return ", ".join(f"{key}={'PATH' if value is empty else _written(value)}" for key, value in self.keys.items())


def _plain(operator: type, help: str) -> Named:
    return Named(operator, help, operator)


OPERATORS: dict[str, Named] = {
    "inpaint-box": _plain(InpaintBox, "a box is missing: size and margin as a fraction of the side or in pixels"),
    "inpaint-random": _plain(InpaintRandom, "single pixels are missing"),
    "mask": Named(InpaintMask, "what a picture says is missing: white is known (known=black: black is)", mask_of_file),
    "sr": _plain(Downsample, "super-resolution: the picture is seen smaller by a whole factor; bicubic or average"),
    "blur-gaussian": _plain(
        GaussianBlur, "Gaussian blur; std and size in pixels, by default they grow with the picture"
    ),
    "blur-motion": _plain(MotionBlur, "blur of a shaken camera, its path drawn from the seed"),
    "blur-kernel": Named(KernelBlur, "blur with the kernel in a picture, .npy or .txt", kernel_of_file),
    "denoise": _plain(Denoise, "nothing but noise"),
    "jpeg": _plain(JPEG, "compression with quality 1 to 100"),
}
# What others call them, for the hint alone.
_MEANT = {
    **dict.fromkeys(("super-resolution", "superresolution", "super-res", "superres", "sisr"), "sr"),
    **dict.fromkeys(("upscale", "upscaling", "upsample", "downscale", "downsample", "bicubic", "resize"), "sr"),
    **dict.fromkeys(("blur", "deblur", "deblurring", "gaussian", "gaussian-blur", "gaussian-deblur"), "blur-gaussian"),
    **dict.fromkeys(("motion", "motion-blur", "motion-deblur"), "blur-motion"),
    **dict.fromkeys(("kernel", "kernel-blur"), "blur-kernel"),
    **dict.fromkeys(("noise", "gaussian-noise", "awgn", "denoising", "none", "identity"), "denoise"),
    **dict.fromkeys(("jpg", "compression", "compress"), "jpeg"),
    **dict.fromkeys(("box", "inpaint", "inpainting"), "inpaint-box"),
    **dict.fromkeys(("random", "random-inpaint"), "inpaint-random"),
}


def operator_of(text: str) -> Any:
    """The operator that "NAME" or "NAME:key=value,..." writes. A comma in a path is part of the path.

    Errors: ConfigError for a name, key or value that cannot be, and a file that cannot be read; it says what there is.
    """
    if not isinstance(text, str):
        raise ConfigError(f"an operator must be a text such as 'sr:factor=4', got {text!r}")
    name, _, options = text.partition(":")
    name = name.strip().lower().replace("_", "-").replace(" ", "-")
    if name not in OPERATORS:
        close = difflib.get_close_matches(name, [*OPERATORS, *_MEANT], n=1, cutoff=0.5)
        hint = f"did you mean {_MEANT.get(close[0], close[0])}? There are" if close else "there are"
        raise ConfigError(f"unknown operator {text.strip()!r}: {hint} {', '.join(OPERATORS)}")
    found = OPERATORS[name]
    what, keys = f"operator {name}", found.keys
    path, options = _taken_file(options, what) if "file" in keys else (None, options)
    hints = get_type_hints(found.make)
    types = {key: hints[key] for key in keys}
    _check_keys(options, found, name, types)
    values = parse_all(options, types, what)
    if "file" in keys:
        if not path:
            raise ConfigError(f"{what} needs a file: type {name}:file=PATH ({found.usage})")
        values["file"] = path
    return found.make(**values)


def described(operator: Any) -> str:
    """The text that `operator_of` reads back as an equal operator; keys that the picture's size decides are left out.

    Errors: ConfigError for an operator that has no name, and for masks and kernels that came from no file.
    """
    name = next((name for name, named in OPERATORS.items() if type(operator) is named.operator), None)
    if name is None:
        raise ConfigError(f"{name_of(operator)} has no text: only {', '.join(OPERATORS)} have")
    named = OPERATORS[name]
    if named.make is not named.operator:
        if not operator.text:
            raise ConfigError(f"{name_of(operator)} was given as a tensor, so it has no text: save it, and read it "
                              f"with operator_of('{name}:file=PATH')")  # fmt: skip
        return f"{name}:{operator.text}"
    values = {field.name: getattr(operator, field.name) for field in fields(operator)}
    options = ",".join(f"{key}={_written(value)}" for key, value in values.items() if value is not None)
    return f"{name}:{options}" if options else name


def _written(value: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else repr(value)


def _taken_file(options: str, what: str) -> tuple[str | None, str]:
    """The value of file=, to which parts without "=" after it belong, and the other options."""
    path: list[str] | None = None
    others: list[str] = []
    inside = False
    for part in options.split(",") if options.strip() else []:
        key, equals, value = part.partition("=")
        if equals and key.strip() == "file":
            if path is not None:
                raise ConfigError(f"file is given twice to {what}")
            path, inside = [value], True
        elif inside and not equals and path is not None:
            path.append(part)
        else:
            others.append(part)
            inside = False
    return ",".join(path).strip() if path is not None else None, ",".join(others)


def _check_keys(options: str, named: Named, name: str, types: dict[str, Any]) -> None:
    """ConfigError for a key that there is not, with the nearest, and for a value without a key; with the defaults."""
    has = f"it has {named.usage}" if types else "it has no keys"
    for part in options.split(",") if options.strip() else []:
        key, equals, _ = (piece.strip() for piece in part.partition("="))
        if equals and key not in types:
            close = difflib.get_close_matches(key, types, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"operator {name} has no key {key!r}: {hint}{has}")
        if key and not equals:
            meant = None if key in types else _key_of(key, types)
            hint = f"did you mean {name}:{meant}={key}? " if meant else ""
            raise ConfigError(f"keys of operator {name} are written key=value, got {key!r}: {hint}{has}")


def _key_of(value: str, types: dict[str, Any]) -> str | None:
    """The first key that takes such a value."""
    for key, kind in types.items():
        with suppress(ConfigError):
            parse_all(f"{key}={value}", {key: kind}, "it")
            return key
    return None
