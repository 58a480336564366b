"""What a piece of code asks torch to do, counted instead of timed: equal on every machine, so tests can assert it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result the host must wait for. `tolist` and `numpy` on a CPU tensor never reach the dispatcher.
_ALLOCATIONS = {f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
_HOST_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}


class Counts(NamedTuple):
    """latent, scalar: dispatcher calls on latent-sized and on smaller tensors, views included.

    launches: the latent-sized calls that do something: neither views nor allocations.
    host_reads: calls that bring a value to the host (`item`, `float(tensor)`, a copy from another device to the CPU).
    bytes: read and written by the launches, each latent-sized operand counted once.
    """

    latent: int = 0
    scalar: int = 0
    host_reads: int = 0
    bytes: int = 0
    launches: int = 0

    @property
    def calls(self) -> int:
        return self.latent + self.scalar

    def since(self, earlier: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, earlier, strict=True)))


class DispatchCounter(TorchDispatchMode):
    """Counts dispatcher calls inside ``with DispatchCounter(latent=x.numel()) as counter``.

    latent: a tensor is latent-sized when it has at least this many elements.       strict: raise at a host read.
    `counts` are the totals so far, `names` says which operations they were. `paused()` leaves code out, for instance
    the network.
    """

    def __init__(self, latent: int, *, strict: bool = False) -> None:
        super().__init__()
        self._strict = strict
        self.counts = Counts()
        self.names: Counter[str] = Counter()
        self._threshold = latent
        self._paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's hook for modes that torch.compile never meets; else the first call imports torch._dynamo

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            self._count(func, _tensors((args, kwargs)), _tensors(result))
        return result

    def _count(self, func: Any, read: list[Tensor], written: list[Tensor]) -> None:
        name = func._schema.name
        large = [t for t in (*read, *written) if t.numel() >= self._threshold]
        launch = bool(large) and not (func.is_view or name in _ALLOCATIONS)
        host_read = _is_host_read(name, read, written)
        if host_read and self._strict:
            raise AssertionError(f"the host waits for {name}")
        self.names[name] += 1
        self.counts = Counts(
            self.counts.latent + bool(large),
            self.counts.scalar + (not large),
            self.counts.host_reads + host_read,
            self.counts.bytes + (sum(t.numel() * t.element_size() for t in large) if launch else 0),
            self.counts.launches + launch,
        )


def per_tick(snapshots: Sequence[Counts], first: int, last: int) -> dict[str, float]:
    """Means over the ticks first + 1 .. last of counts that were noted after every tick."""
    total = snapshots[last].since(snapshots[first])
    return {name: value / (last - first) for name, value in zip(Counts._fields, total, strict=True)}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_host_read(name: str, read: Iterable[Tensor], written: Iterable[Tensor]) -> bool:
    to_cpu = any(t.device.type == "cpu" for t in written) and any(t.device.type != "cpu" for t in read)
    return name in _HOST_READS or (to_cpu and name in ("aten::_to_copy", "aten::copy_"))
