"""How the loop calls a network: with the batch that the sampler's launch wrote for it, where the network takes one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..kernels import ops
from ..kernels.upload import to_device
from .table import Table


class Evaluation:
    """A network in a run of `table`. batch: what the last launch wrote for the next call, or None."""

    def __init__(self, network: Any, table: Table, x: Tensor) -> None:
        self._network, self._nodes = network, table.plan.nodes
        self._batched = is_batched(network)
        self._times = times_of(table, x.device).unbind() if self._batched else None
        self.batch: Tensor | None = None

    def wanted(self, branches: tuple[str, ...]) -> tuple[torch.dtype, int] | None:
        return (self._network.dtype, len(branches)) if self._batched and branches else None

    def __call__(self, i: int, x: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]:
        if self._times is None:
            return self._network(x, self._nodes[i], branches)
        batch = self.batch
        if batch is None:
            batch = batch_of(x, self._network.dtype, len(branches))
        version = version_of(batch)
        outputs = self._network.forward_batch(batch, self._times[i], branches)
        if version_of(batch) != version:
            raise IncompatibleError(f"{type(self._network).__name__}.forward_batch wrote to its input, which may be x")
        return outputs


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
