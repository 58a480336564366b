"""Small constants on their way to a device: once each, and without making the host wait."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Matrix = tuple[tuple[float, ...], ...]


def uploaded(C: Matrix, device: torch.device, dtype: torch.dtype) -> Tensor:
    """C as a tensor [M, N]; kept, so nobody may write to it."""
    if torch._C._len_torch_dispatch_stack() > 0:  # a mode may make tensors of its own kind, which must not be kept
        return to_device(C, device, dtype)
    return lasting(_kept(C, device, dtype))


_for_graphs: dict[int, Tensor] = {}


def lasting(tensor: Tensor) -> Tensor:
    """`tensor`, which a CUDA graph that is being captured may hold on to: what is kept must then stay for good."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        _for_graphs[tensor.data_ptr()] = tensor
    return tensor


@lru_cache(maxsize=4096)
def _kept(C: Matrix, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return to_device(C, device, dtype)


def to_device(values: Sequence, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers as a tensor. A copy that blocks would wait for everything that the stream has still to do."""
    return torch.tensor(values, dtype=dtype, device="cpu").to(device, non_blocking=True)
