"""Numbers on their way from the device to the host, without making the host wait before it must."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """A copy of a small tensor (n,) that begins at once and is waited for in `numbers`."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        values = values.detach()
        if values.device.type == "cuda":
            self._copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._copy.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._copy = values

    def numbers(self) -> tuple[float, ...]:
        """Waits until the copy is there. Every number is read by itself, so that a dispatch mode sees it."""
        if self._event is not None:
            self._event.synchronize()
        return tuple(value.item() for value in self._copy.unbind())
