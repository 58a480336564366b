"""Which host reads depend on which tick's network outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from fewstep.benchmarks.counting import _is_host_read, _tensors


class HostReads(TorchDispatchMode):
    """Inside it every tensor carries the newest tick whose outputs it was computed from.

    `outputs(i, tensors)` begins that chain. reads: per host read (operation, tick that was newest then, tick that the
    value depends on), of values that depend on any. A mark goes on to everything that is computed from a marked
    tensor, views included, and to a tensor that is written in place (not to its other views).
    """

    def __init__(self) -> None:
        super().__init__()
        self.newest = -1
        self.reads: list[tuple[str, int, int]] = []
        self._marks: Any = WeakIdKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def outputs(self, tick: int, tensors: tuple[Tensor, ...]) -> None:
        self.newest = tick
        for tensor in tensors:
            self._marks[tensor] = tick

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(result)
        marks = [self._marks[t] for t in read if t in self._marks]
        if marks:
            if _is_host_read(func._schema.name, read, written):
                self.reads.append((func._schema.name, self.newest, max(marks)))
            for tensor in written:
                self._marks[tensor] = max(marks)
            if func._schema.is_mutable:
                self._marks[read[0]] = max(marks)
        return result
