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
_HOST_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"}


class Counts(NamedTuple):
    """latent, scalar: dispatcher calls on latent-sized and on smaller tensors, views included.

    host_reads: calls that bring a value to the host (`item`, `float(tensor)`, a copy from another device to the CPU).
    bytes: read and written by the latent-sized calls, each operand counted once; views and allocations move none.
    """

    latent: int = 0
    scalar: int = 0
    host_reads: int = 0
    bytes: int = 0

    @property
    def calls(self) -> int:
        return self.latent + self.scalar

    def since(self, earlier: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, earlier, strict=True)))


class DispatchCounter(TorchDispatchMode):
    """Counts dispatcher calls inside ``with DispatchCounter(latent=x.numel()) as counter``.

    latent: a call belongs to the latents when its largest tensor has at least this many elements.
    `counts` are the totals so far, `names` says which operations they were. `paused()` leaves code out, for instance
    the network.
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
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
            read, written = _tensors((args, kwargs)), _tensors(result)
            latent = max((t.numel() for t in (*read, *written)), default=0) >= self._threshold
            name = func._schema.name
            self.names[name] += 1
            self.counts = Counts(
                self.counts.latent + latent,
                self.counts.scalar + (not latent),
                self.counts.host_reads + _is_host_read(name, read, written),
                self.counts.bytes + (_bytes_moved(func, read, written) if latent else 0),
            )
        return result


def per_tick(snapshots: Sequence[Counts], first: int, last: int) -> dict[str, float]:
    """Means over the ticks first + 1 .. last of counts that were noted after every tick."""
    total = snapshots[last].since(snapshots[first])
    return {name: value / (last - first) for name, value in zip(Counts._fields, total, strict=True)}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_host_read(name: str, read: Iterable[Tensor], written: Iterable[Tensor]) -> bool:
    to_cpu = any(t.device.type == "cpu" for t in written) and any(t.device.type != "cpu" for t in read)
    return name in _HOST_READS or (to_cpu and name in ("aten::_to_copy", "aten::copy_"))


def _bytes_moved(func: Any, read: Sequence[Tensor], written: Sequence[Tensor]) -> int:
    if func.is_view or "empty" in func._schema.name:
        return 0
    return sum(t.numel() * t.element_size() for t in (*read, *written))
