"""The arguments and outputs of a denoiser's forward, cut to some rows of its batch.

Which arguments carry the batch is data (attach_layouts.SIGNATURES); what is not known there is refused, never guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..kernels.upload import to_device
from ..samplers import feeding
from ..samplers.guided import Asked
from .attach_layouts import Signature, signature_of


class Rows(NamedTuple):
    """Some rows of a batch of `total`. index: ascending; a slice where they are neighbours."""

    index: Tensor | slice
    total: int

    def take(self, tensor: Tensor) -> Tensor:
        return tensor[self.index]

    def put(self, part: Tensor) -> Tensor:
        """`part` as rows of the whole batch; nobody may read the others."""
        index = self.index
        whole = feeding.unfilled(part[:1].expand(self.total, *part.shape[1:]))  # of its shape, without its memory
        whole[index] = part
        return whole


def rows_of(asked: Asked, order: Sequence[str], batch: int, device: torch.device) -> Rows | None:
    """The rows of [order[0], order[1]] that are asked for; None for all."""
    images = dict(zip(asked.branches, asked.images, strict=True))
    found: list[int] = []
    for place, branch in enumerate(order):
        wanted = images.get(branch, ())
        found += [place * batch + k for k in (range(batch) if wanted is None else wanted)]
    total = batch * len(order)
    if len(found) == total:
        return None
    if found == list(range(found[0], found[-1] + 1)):
        return Rows(slice(found[0], found[-1] + 1), total)
    return Rows(to_device(found, device, torch.int64), total)


class Arguments:
    """The arguments of a module's forward, by name."""

    def __init__(self, module: Any) -> None:
        self.kind = type(getattr(module, "_orig_mod", module))
        self.signature: Signature = signature_of(module)

    def named(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        named = {**dict(zip(_names(self.kind), args, strict=False)), **kwargs}
        missing = {self.signature.sample, self.signature.time} - set(named)
        if missing:
            raise IncompatibleError(f"{self.kind.__name__} was called without {min(missing)}: its forward is not the "
                                    "one that is known, or something without its signature wraps it")  # fmt: skip
        return named

    def taken(self, rows: Rows, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments for some rows. Errors: IncompatibleError for one that is not known to have the batch or not."""
        names = _names(self.kind)
        placed = tuple(self._one(rows, name, value) for name, value in zip(names, args, strict=False))
        return placed, {name: self._one(rows, name, value) for name, value in kwargs.items()}

    def _one(self, rows: Rows, name: str, value: Any) -> Any:
        known = self.signature
        if name == known.time:
            single = not isinstance(value, Tensor) or value.dim() == 0 or tuple(value.shape) == (1,)
            return value if single else self._rows(rows, name, value)
        if name == known.sample or name in known.rows:
            return self._rows(rows, name, value)
        if name in known.nested and value is not None:
            return {key: self._rows(rows, f"{name}[{key!r}]", v) if key in known.nested[name] else
                    self._without(f"{name}[{key!r}]", v) for key, v in value.items()}  # fmt: skip
        return value if name in known.whole else self._without(name, value)

    def _rows(self, rows: Rows, name: str, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list | tuple):
            return type(value)(self._rows(rows, name, v) for v in value)
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != rows.total:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise IncompatibleError(f"{self.kind.__name__} got {name} of {got}, expected {rows.total} rows, as the "
                                    "sample has: a policy cannot evaluate some of them")  # fmt: skip
        return rows.take(value)

    def _without(self, name: str, value: Any) -> Any:
        if _holds_tensor(value):
            raise IncompatibleError(f"{self.kind.__name__} was called with the tensor argument {name}, and whether it "
                                    "has one row per image is not known here, so a policy cannot evaluate some of "
                                    "them; leave it out, or detach() for such calls")  # fmt: skip
        return value


@lru_cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]  # type: ignore[attr-defined]


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def tensor_of(out: Any) -> Tensor:
    if isinstance(out, tuple) and len(out) != 1:
        raise IncompatibleError(f"the denoiser returned {len(out)} values, expected one tensor")
    return out[0]


def like_output(out: Any, tensor: Tensor) -> Any:
    """`tensor` in the place of the output `out`, a tuple or a ModelOutput."""
    return (tensor,) if isinstance(out, tuple) else type(out)(sample=tensor)
