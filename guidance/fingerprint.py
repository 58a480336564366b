"""Which network it is: its parameters by name and shape, and a few of their numbers.

Equal for a model on disk and the same one loaded in any of float32, float16 and bfloat16, whoever saved it. A LoRA or
an adapter makes it another network.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

NUMBERS = 64  # at most so many are kept
_RELATIVE, _ABSOLUTE = 2.0**-7, 1e-6  # two roundings to bfloat16; float16's smallest numbers


class Fingerprint(NamedTuple):
    """digest: of names and shapes.       numbers: of weights in fixed places; none where they cannot be read."""

    digest: str
    numbers: tuple[float, ...]

    def same(self, other: Fingerprint) -> bool:
        """Whether both are of one network, as far as both have numbers."""
        if self.digest != other.digest:
            return False
        pairs = zip(self.numbers, other.numbers, strict=False)
        return all(math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) for a, b in pairs)


def of_module(module: Any) -> Fingerprint:
    """The fingerprint of a loaded torch.nn.Module; without numbers where the weights are on the meta device."""
    found = {name.removeprefix("_orig_mod."): p for name, p in module.named_parameters()}
    if any(p.is_meta for p in found.values()):
        return _fingerprint({name: tuple(p.shape) for name, p in found.items()}, None)
    shapes = {name: tuple(p.shape) for name, p in found.items()}
    return _fingerprint(shapes, lambda name, row: float(found[name].detach()[row].flatten()[0]))


def of_folder(folder: Path) -> Fingerprint | None:
    """The fingerprint of the weights of one part of a diffusers folder; None where it is not clear which they are."""
    from safetensors import SafetensorError, safe_open

    files = [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]
    if not files or (len(files) > 1 and not all("-of-" in path.name for path in files)):
        return None
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
            home = {name: file for file in opened for name in file.keys()}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in home.items()}
            return _fingerprint(shapes, lambda name, row: _number(home[name].get_slice(name)[row : row + 1]))
    except (OSError, SafetensorError):
        return None  # whoever loads the model says what is wrong


def of_pipeline(pipe: Any) -> Fingerprint | None:
    """The fingerprint of a pipeline's denoiser; None where it has none that we know."""
    module = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    return of_module(module) if isinstance(module, torch.nn.Module) else None


def _number(row: torch.Tensor) -> float:
    return float(row.flatten()[0])


def _fingerprint(shapes: dict[str, tuple[int, ...]], number: Callable[[str, int], float] | None) -> Fingerprint:
    """number(name, row): the first element of a row; only parameters of two dimensions or more are asked for."""
    text = "\n".join(f"{name} {list(shapes[name])}" for name in sorted(shapes))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    if number is None:
        return Fingerprint(digest, ())
    names = [name for name in sorted(shapes) if len(shapes[name]) >= 2 and math.prod(shapes[name])]
    return Fingerprint(digest, tuple(number(name, shapes[name][0] // 2) for name in _spread(names)))


def _spread(names: list[str]) -> Iterable[str]:
    count = min(NUMBERS, len(names))
    return [names[k * len(names) // count] for k in range(count)]
