"""How much memory a run takes at its peak: the bytes of all tensors that live at once, the model's weights left out.

Counted where torch dispatches operations, so it is the same on every run and machine; what a convolution allocates
inside itself is not seen.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..inverse.posterior import Posterior
from ..samplers.backbones import Backbone
from .restore_measure import code_of
from .restore_problems import TASKS, measurement, seeds
from .restore_rows import METHODS

STEPS = (10, 40)
MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """`peak` and `now`: bytes of the storages that operations inside made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's hook for modes that torch.compile never meets; else the first call imports torch._dynamo

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and id(t.untyped_storage()) not in given:
                self._add(t.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.finalize(storage, self._remove, key, size)
        self._known[key].atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def peak_of(backbone: Backbone, method: Posterior, steps: int) -> int:
    """Bytes at the peak of restoring one picture."""
    y = measurement(TASKS["sr"], "test", 0, 1)
    with LiveBytes() as live:
        replace(method, steps=steps)(backbone, y, seeds=seeds("test", 0, 1))
    return live.peak


def peaks(folder: Path, kind: str, backbone: Backbone | None = None) -> dict[int, int] | None:
    """Steps -> bytes, kept in the cache as long as the code is the same; measured where there is a backbone."""
    path = folder / f"memory-{kind}-{code_of(METHODS[kind])}.npz"
    if not path.is_file():
        if backbone is None:
            return None
        found = [peak_of(backbone, METHODS[kind], steps) for steps in STEPS]
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, peaks=np.array(found, np.int64))
        os.replace(unfinished, path)
    with np.load(path, allow_pickle=False) as data:
        return dict(zip(STEPS, data["peaks"].tolist(), strict=True))
