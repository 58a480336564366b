"""How the loop calls a network: with the batch that the sampler's launch wrote for it, where the network takes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..kernels import ops
from ..kernels.upload import to_device
from .guided import Asked
from .policy import Images
from .table import Table


class Evaluation:
    """A network in a run of `table`. batch: what the last launch wrote for the next call, or None."""

    def __init__(self, network: Any, table: Table, x: Tensor) -> None:
        self._network, self._nodes = network, table.plan.nodes
        self._batched = is_batched(network)
        self._times = times_of(table, x.device).unbind() if self._batched else None
        self._checked: tuple[str, ...] | None = None
        self._rows: tuple[tuple[Images, ...], list[Tensor | None]] = ((), [])
        self.batch: Tensor | None = None

    def wanted(self, asked: Asked) -> tuple[torch.dtype, int] | None:
        """The feed for the next tick. Where images differ the batch is gathered when it is needed."""
        if not (self._batched and asked.branches and asked.uniform):
            return None
        return self._network.dtype, len(asked.branches)

    def __call__(self, i: int, x: Tensor, asked: Asked) -> tuple[Tensor, ...]:
        """One tensor (B, ...) per branch."""
        if not asked.uniform:
            return self._some(i, x, asked)
        outputs = self._network(x, self._nodes[i], asked.branches) if self._times is None else self._all(i, x, asked)
        if asked.branches != self._checked:
            check_outputs(outputs, asked.branches, x)
            self._checked = asked.branches
        return outputs

    def _all(self, i: int, x: Tensor, asked: Asked) -> tuple[Tensor, ...]:
        batch = self.batch
        if batch is None:
            batch = batch_of(x, self._network.dtype, len(asked.branches))
        version = version_of(batch)
        outputs = self._network.forward_batch(batch, self._times[i], asked.branches)  # type: ignore[index]
        if version_of(batch) != version:
            raise IncompatibleError(f"{type(self._network).__name__}.forward_batch wrote to its input, which may be x")
        return outputs

    def _some(self, i: int, x: Tensor, asked: Asked) -> tuple[Tensor, ...]:
        """One call for the rows that are needed, or one for each set of branches that images ask for."""
        if self._times is None or not hasattr(type(self._network), "forward_rows"):
            return _by_sets(self._network, self._nodes[i], x, asked)
        if self._rows[0] != asked.images:
            found = [None if v is None else to_device(v, x.device, torch.int64) for v in asked.images]
            self._rows = asked.images, found
        rows = self._rows[1]
        batch = torch.cat([x if r is None else x[r] for r in rows]).to(self._network.dtype)
        found = self._network.forward_rows(batch, self._times[i], asked.branches, asked.images)
        check_outputs(found, asked.branches, x, [x.shape[0] if r is None else len(r) for r in rows])
        return tuple(scattered(x, out, r) for out, r in zip(found, rows, strict=True))


def _by_sets(network: Any, node: Any, x: Tensor, asked: Asked) -> tuple[Tensor, ...]:
    sets: dict[tuple[str, ...], list[int]] = {}
    for image in range(x.shape[0]):
        sets.setdefault(asked.of_image(image), []).append(image)
    whole = {branch: unfilled(x) for branch in asked.branches}
    for branches, images in sets.items():
        if branches:
            rows = to_device(images, x.device, torch.int64)
            outputs = network(x, node, branches, rows)
            check_outputs(outputs, branches, x, [len(images)] * len(branches))
            for branch, out in zip(branches, outputs, strict=True):
                whole[branch] = whole[branch].to(out.dtype).index_copy(0, rows, out)
    return tuple(whole.values())


def check_outputs(tensors: Any, branches: Sequence[str], x: Tensor, rows: Sequence[int] | None = None) -> None:
    """A network that returns a bare tensor would be unpacked over the batch, and other shapes would broadcast.

    rows: how many images each branch was to be evaluated for, where that is not all of x (B, ...).
    """
    if not isinstance(tensors, tuple) or len(tensors) != len(branches):
        got = f"{len(tensors)} tensors" if isinstance(tensors, tuple) else type(tensors).__name__
        raise IncompatibleError(f"the network must return a tuple of one tensor per branch {branches}, got {got}")
    for tensor, count in zip(tensors, rows or [x.shape[0]] * len(branches), strict=True):
        if tensor.shape == (count, *x.shape[1:]):
            continue
        if rows is None:
            raise IncompatibleError(f"the network returned shape {tuple(tensor.shape)} for x of {tuple(x.shape)}")
        raise IncompatibleError(f"the network was asked for {count} of {x.shape[0]} images (rows=) and returned shape "
                                f"{tuple(tensor.shape)}, expected {(count, *x.shape[1:])}. A guidance policy that "
                                'decides for all images alike (batch="all") needs no rows')  # fmt: skip


def scattered(like: Tensor, part: Tensor, rows: Tensor | None) -> Tensor:
    """`part`, the outputs of some images, as a tensor for all of them; nobody may read the other images."""
    return part if rows is None else unfilled(like).to(part.dtype).index_copy_(0, rows, part)


def unfilled(like: Tensor) -> Tensor:
    """Memory for outputs of which some are never evaluated, and never read."""
    return torch.empty_like(like)


def is_batched(network: Any) -> bool:
    """Whether the class has `forward_batch`; a wrapper that passes attributes on does not count, its call does."""
    return hasattr(type(network), "forward_batch")


def batch_of(x: Tensor, dtype: torch.dtype, copies: int) -> Tensor:
    """x (B, ...) as a batched network reads it: (copies * B, ...) in dtype."""
    if copies == 1 and x.dtype == dtype:
        return x
    return ops.combine(((1.0,),), (x,), (dtype,), ops.Feed(0, dtype, copies))[-1]


def times_of(table: Table, device: torch.device) -> Tensor:
    """The times that the network is fed, one per tick: float32, uploaded once."""
    return to_device([float(n.time) for n in table.plan.nodes], device, torch.float32)


def version_of(tensor: Tensor) -> int:
    """How often the tensor was written to; inference tensors do not count, they always give 0."""
    return 0 if tensor.is_inference() else tensor._version
