"""A network at one level per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..kernels import ops
from .engine import Network
from .exponential import Space
from .feeding import batch_of, is_batched
from .levels import Level
from .table import Weights


class PerImage:
    """Guided predictions of some images, each at its own level.

    A network with `forward_batch` and `select` (see UNetNetwork) evaluates them together, any other one by one through
    `rows`. size: images of the whole batch.       calls: how often the network was called.
    """

    def __init__(self, network: Network, branches: tuple[str, ...], weights: Weights, space: Space, size: int) -> None:
        if any(isinstance(w, Tensor) for w in weights):
            raise IncompatibleError("an adaptive solver needs guidance weights that are numbers, not per-image tensors")
        self._network, self._branches, self._space, self._size = network, branches, space, size
        self._weights = [float(w) for w in weights]
        self._together = is_batched(network) and hasattr(type(network), "select")
        self._selected: tuple[list[int], Any] = ([], None)
        self.calls = 0

    def m(self, x: Tensor, levels: list[Level], images: list[int]) -> Tensor:
        """The prediction that the space integrates, of x's shape; x (n, ...) and levels belong to these images."""
        kind = self._network.parametrisation
        row = kind.x0_row if self._space.name == "data" else kind.eps_row
        return self._combined([[row(s)] for s in levels], x, levels, images)[0]

    def x0_eps(self, x: Tensor, levels: list[Level], images: list[int]) -> tuple[Tensor, ...]:
        """x0 and eps."""
        kind = self._network.parametrisation
        return self._combined([[kind.x0_row(s), kind.eps_row(s)] for s in levels], x, levels, images)

    def _combined(self, rows: Any, x: Tensor, levels: list[Level], images: list[int]) -> tuple[Tensor, ...]:
        outputs = self._outputs(x, levels, images)
        C = [[[float(a), *(float(b) * w for w in self._weights)] for a, b in row] for row in rows]
        return ops.combine(torch.tensor(C, dtype=torch.float64, device=x.device), (x, *outputs))

    def _outputs(self, x: Tensor, levels: list[Level], images: list[int]) -> tuple[Tensor, ...]:
        if not self._together:
            return self._one_by_one(x, levels, images)
        if self._selected[0] != images:
            self._selected = (images, self._network.select(torch.tensor(images, device=x.device)))  # type: ignore[attr-defined]
        network, copies = self._selected[1], len(self._branches)
        times = torch.tensor([float(s.time) for s in levels], dtype=torch.float32, device=x.device).repeat(copies)
        self.calls += 1
        return network.forward_batch(batch_of(x, network.dtype, copies), times, self._branches)

    def _one_by_one(self, x: Tensor, levels: list[Level], images: list[int]) -> tuple[Tensor, ...]:
        whole = torch.zeros((self._size, *x.shape[1:]), dtype=x.dtype, device=x.device)
        found = []
        for j, (s, k) in enumerate(zip(levels, images, strict=True)):
            row = None if self._size == 1 else torch.tensor([k], device=x.device)
            whole[k] = x[j]
            outputs = self._network(whole, s, self._branches, row)
            if len(outputs) != len(self._branches) or any(o.shape != x[j : j + 1].shape for o in outputs):
                got, expected = [tuple(o.shape) for o in outputs], tuple(x[j : j + 1].shape)
                raise IncompatibleError(f"the network was asked for one image (rows={[k]}) and returned {got}; an "
                                        f"adaptive solver needs {expected} per branch")  # fmt: skip
            self.calls += 1
            found.append(outputs)
        return tuple(torch.cat(branch) for branch in zip(*found, strict=True))
