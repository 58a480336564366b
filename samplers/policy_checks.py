"""What a guidance policy returned, looked at before it is used: what fits nothing is refused with the policy's name.

Only what the host knows is looked at; weights on the device are not read. A policy that never varies is checked once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from .policy import Images, Memory


class UnknownRegister(IncompatibleError, KeyError):
    """A line reads what is not there.       args: the register, the message."""

    def __str__(self) -> str:
        return self.args[1]


def check_branches(found: Any, batch: int, what: str) -> None:
    """found: what `branches` returned.       what: whose it is, for messages."""
    if not isinstance(found, Mapping):
        raise IncompatibleError(f"{what}: branches must be a mapping such as {{'uncond': None, 'cond': (0, 2)}}, got "
                                f"{type(found).__name__}")  # fmt: skip
    for branch, images in found.items():
        if images is None:
            continue
        fits = isinstance(images, tuple) and all(type(k) is int and 0 <= k < batch for k in images)
        if not fits or any(a >= b for a, b in zip(images, images[1:], strict=False)):
            raise ConfigError(f"{what}: the images of the branch {branch!r} must be None (all) or a tuple of ascending "
                              f"numbers from 0 to {batch - 1}, each once, got {images!r}")  # fmt: skip


def check_vectors(vectors: Any, registers: Collection[str], what: str) -> None:
    """vectors: of Statistics."""
    for vector in vectors:
        _check_names(vector, registers, f"{what}: statistics")


def check_line(line: Any, registers: Collection[str], images: Mapping[str, Images], batch: int, what: str) -> None:
    """line: a Line of `weights` or `remember`.       images: which images evaluated each branch of the tick."""
    _check_names(line, registers, what)
    for name, weight in line.items():
        if isinstance(weight, tuple):
            fits = len(weight) == batch and all(map(_is_number, weight))
        else:
            fits = weight.shape == (batch,) if isinstance(weight, Tensor) else _is_number(weight)
        if not fits:
            raise IncompatibleError(f"{what}: the weight of {name!r} must be a number, a tuple of {batch} numbers or a "
                                    f"tensor ({batch},), one per image, got {_in_words(weight)}")  # fmt: skip
        _check_evaluated(name, weight, images.get(name), batch, what)


def _check_evaluated(name: str, weight: Any, images: Images, batch: int, what: str) -> None:
    """A weight on what an image did not evaluate would read memory that nobody wrote."""
    if images is None or isinstance(weight, Tensor):
        return
    each = weight if isinstance(weight, tuple) else (weight,) * batch
    wrong = [k for k, w in enumerate(each) if w != 0.0 and k not in images]
    if wrong:
        raise IncompatibleError(f"{what}: image {wrong[0]} has the weight {each[wrong[0]]:g} of {name!r}, which only "
                                f"the images {images} evaluated: the others need 0 there, in a tuple of one number "
                                "per image")  # fmt: skip


def check_remembered(name: str, branches: Collection[str], what: str) -> None:
    if name == "x" or name in branches:
        raise IncompatibleError(f"{what}: {name!r} is a register of the tick, remember it by another name")


def check_score(score: Any, batch: int, what: str) -> None:
    """score: what `score` returned, not None."""
    if not isinstance(score, Tensor) or score.shape != (batch,):
        raise IncompatibleError(f"{what}: score must be a tensor ({batch},), one number per image, or None, got "
                                f"{_in_words(score)}")  # fmt: skip


def check_memory(memory: Any, what: str) -> Memory:
    """memory: what `begin` or `decide` returned."""
    if not isinstance(memory, Memory):
        raise IncompatibleError(f"{what} must return a Memory, got {_in_words(memory)}: memory._replace(state=...)")
    return memory


def _check_names(line: Any, registers: Collection[str], what: str) -> None:
    if not isinstance(line, Mapping) or not line:
        raise IncompatibleError(f"{what} must be a line, register -> weight, of one register at least, got {line!r}")
    for name in line:
        if name not in registers:
            raise UnknownRegister(name, f"{what} reads {name!r}, which was neither evaluated nor remembered: there are "
                                        f"{', '.join(map(repr, registers))}")  # fmt: skip


def _is_number(weight: Any) -> bool:
    return isinstance(weight, float | int) and not isinstance(weight, bool)


def _in_words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else repr(value)
