"""Where a policy search stands, and the file that lets it go on after an interruption."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..samplers.safe_file import Kind
from .searched import Choice, check_choices

KIND = Kind("checkpoint of a search", "fewstep-search", 1, "fewstep search, after you have removed it")
MAX_NUMBERS = 1 << 31  # of one tensor
_NAMES = ("apart", "logits", "first", "second", "losses")
_WANTED = re.compile(r"wanted\.(\d{1,6})")


class Progress(NamedTuple):
    """Every stage goes on from here to the same end, bit for bit.

    wanted, apart: of every batch whose baseline is there (see search_loss).
    logits, first, second: [steps, candidates] float64, and Adam's two moments.
    losses: one per iteration.       relaxed: whether the descent has ended.
    choices: the best discrete policy so far, () before there is one.
    tried: discrete policies compared with it or its forerunners; cursor: how many of them with it.
    seconds: spent.
    """

    logits: Tensor
    first: Tensor
    second: Tensor
    wanted: tuple[Tensor, ...] = ()
    apart: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    relaxed: bool = False
    choices: tuple[Choice, ...] = ()
    tried: int = 0
    cursor: int = 0
    seconds: float = 0.0

    @classmethod
    def beginning(cls, steps: int, candidates: int) -> Progress:
        """All candidates alike."""
        zero = torch.zeros(steps, candidates, dtype=torch.float64)
        return cls(zero, zero, zero)


def save(progress: Progress, path: Path, key: str) -> None:
    """The file appears whole or not at all.       key: what a search must have in common with it to go on from it."""
    from safetensors.torch import save as to_bytes

    tensors = {f"wanted.{k}": wanted.cpu().contiguous().clone() for k, wanted in enumerate(progress.wanted)}
    for name in _NAMES:
        value = getattr(progress, name)
        tensors[name] = value.clone() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    numbers = {name: getattr(progress, name) for name in ("relaxed", "choices", "tried", "cursor", "seconds")}
    KIND.write(path, to_bytes(tensors, {**KIND.marks, "key": key, "progress": json.dumps(numbers, allow_nan=False)}))


def load(path: Path, key: str, steps: int, candidates: int) -> Progress | None:
    """What `save` wrote; None if it was for another key. ConfigError for a file that is none."""
    metadata, tensors = KIND.read(path, lambda file: _check_entries(file, path))
    if metadata.get("key") != key:
        return None
    found = KIND.header(metadata.get("progress", ""), path, "a search")
    try:
        wanted = tuple(tensors[f"wanted.{k}"] for k in range(len(tensors) - len(_NAMES)))
        progress = Progress(
            tensors["logits"], tensors["first"], tensors["second"], wanted,
            _numbers(tensors["apart"]), _numbers(tensors["losses"]),
            bool(found["relaxed"]), check_choices(found["choices"]) if found["choices"] else (),
            int(found["tried"]), int(found["cursor"]), float(found["seconds"]),
        )  # fmt: skip
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise KIND.refuse(path, "it is not complete") from error
    moments = (progress.logits, progress.first, progress.second)
    fits = all(t.shape == (steps, candidates) and t.dtype == torch.float64 for t in moments)
    finite = all(bool(t.isfinite().all()) for t in (*moments, *wanted)) and math.isfinite(progress.seconds)
    if not (fits and finite and len(progress.apart) == len(wanted) and len(progress.choices) in (0, steps)):
        raise KIND.refuse(path, "its numbers are none of this search")
    return progress


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    return tuple(tensor.reshape(-1).tolist())


def _check_entries(file: Any, path: Path) -> None:
    for name in file.keys():
        if name not in _NAMES and not _WANTED.fullmatch(name):
            raise KIND.refuse(path, f"it has an entry {name[:40]!r}")
        shape = file.get_slice(name).get_shape()
        if math.prod(shape) > MAX_NUMBERS:
            raise KIND.refuse(path, f"its entry {name} has the shape {shape}")
