"""Counters for kernels whose last program does something: zeros that every launch leaves as zeros."""

from __future__ import annotations

import torch
from torch import Tensor

RESERVE = 1 << 16
_SMALLEST = 1 << 10
_ALIGNED = 4  # counters in 16 bytes: Triton compiles anew for an address that is no multiple, which no capture allows

_by_stream: dict[tuple[torch.device, int], Tensor] = {}
_reserves: dict[torch.device, list[Tensor]] = {}  # per device one tensor: what no graph has taken yet


def counters(count: int, device: torch.device) -> Tensor:
    """[>= count] int32 zeros that no other launch uses at the same time. The kernel must leave them as zeros.

    Launches on one stream follow one another and share a buffer; each stream has its own. A launch captured into a
    CUDA graph runs at every replay, beside other graphs and on any stream, so it takes counters for good from a
    reserve of 65,536 a device, which the device's first launch outside a capture makes. Without them (none made, or
    all taken) they are zeroed inside the graph: right too, but one node more.
    """
    if device.type != "cuda":
        return _shared((device, 0), count)
    if torch.cuda.is_current_stream_capturing():
        return _taken(count, device)
    if device not in _reserves:
        _reserves[device] = [_zeros(RESERVE, device)]
    return _shared((device, torch.cuda.current_stream(device).cuda_stream), count)


def _shared(key: tuple[torch.device, int], count: int) -> Tensor:
    buffer = _by_stream.get(key)
    if buffer is None or buffer.shape[0] < count:  # the old one's memory stays with its stream until its launches ran
        buffer = _by_stream[key] = _zeros(max(_SMALLEST, 2 * count), key[0])
    return buffer


def _taken(count: int, device: torch.device) -> Tensor:
    reserve = _reserves.get(device)
    if reserve is None or reserve[0].shape[0] < count:
        return _zeros(count, device)
    places = -(-count // _ALIGNED) * _ALIGNED
    taken, reserve[0] = reserve[0][:count], reserve[0][places:]
    return taken


def _zeros(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)
