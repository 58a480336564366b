"""What ``--lora`` names: small sets of weights that are added to a model's, checked without loading them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingDependencyError
from . import checks
from .model_ref import PICKLES
from .safetensors_head import read_head

MAX_LORAS = 16
MAX_WEIGHT = 100.0
_MARKS = ("lora", "hada", "lokr")  # in the names of such weights: LoRA, LoHa, LoKr


@dataclass(frozen=True)
class LoraRef:
    """A LoRA before it is loaded, and how strongly it is applied: 1 is as trained, 0 not at all."""

    name: str
    sha256: str
    weight: float
    location: str = field(compare=False)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "weight": self.weight}


def find_loras(texts: Sequence[str] | None) -> tuple[LoraRef, ...]:
    """The LoRAs of ``--lora``. ConfigError for what cannot be one; MissingDependencyError without peft."""
    if texts and len(texts) > MAX_LORAS:
        raise ConfigError(f"--lora was given {len(texts)} times: at most {MAX_LORAS} can be added")
    found = tuple(_find(text) for text in texts or ())
    twice = [ref.name for k, ref in enumerate(found) if ref.sha256 in {other.sha256 for other in found[:k]}]
    if twice:
        raise ConfigError(f"--lora {twice[0]!r} was given twice: give it once, with the sum of the weights")
    if found:
        check_peft()
    return found


def check_peft() -> None:
    """diffusers applies LoRAs through peft, which is not installed with fewstep."""
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise MissingDependencyError("--lora needs the package peft: pip install peft")


def split(text: str) -> tuple[str, float]:
    r"""(path, weight) of "PATH[:WEIGHT]". A number after the last colon is the weight; "C:\x" begins with a drive."""
    path, colon, tail = text.rpartition(":")
    if not colon or re.search(r"[\\/]", tail) or len(path) < 2:
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        if Path(text).suffix.lower() == ".safetensors":
            return text, 1.0  # a colon in the name
        raise ConfigError(f"--lora {text!r}: the weight {tail!r} is no number; expected PATH or PATH:WEIGHT") from None
    if not (math.isfinite(weight) and abs(weight) <= MAX_WEIGHT):
        raise ConfigError(f"--lora {text!r}: the weight must be a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    return path, weight


def _find(text: str) -> LoraRef:
    location, weight = split(text)
    path = Path(location)
    try:
        if not path.is_file():
            raise ConfigError(f"--lora {location!r} {checks.not_a_file(location)}: expected a .safetensors file")
        suffix = path.suffix.lower()
        if suffix in PICKLES:
            raise ConfigError(
                f"--lora {path.name!r} is a pickled file, which can run code when opened: convert it to .safetensors "
                "where you trust it"
            )
        if suffix != ".safetensors":
            raise ConfigError(f"--lora {path.name!r} is no LoRA: expected a .safetensors file")
        head = read_head(path, "--lora")
        if not any(mark in key.lower() for key in head for mark in _MARKS if key != "__metadata__"):
            raise ConfigError(f"--lora {path.name!r} is no LoRA: none of its {len(head)} entries has a LoRA's name")
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--lora {location!r} cannot be read: {reason}") from None
    return LoraRef(path.name, digest, weight, location)
