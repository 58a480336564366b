"""`philox_normal` as an operation of torch's library, opaque to torch.compile. No input is a float: no gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import choice, reference_philox

_LIBRARY = torch.library.Library("fewstep", "FRAGMENT")
_LIBRARY.define("philox_normal(Tensor seeds, Tensor tick, SymInt[] shape, ScalarType dtype) -> Tensor")


def philox_normal(seeds: Tensor, tick: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """(B, *shape) standard normal, computed in float32 and rounded to dtype.

    seeds: int64 [B].       tick: one integer, on the same device. It is read when the kernel runs, never by the host.
    """
    n = math.prod(shape)
    if choice.use_triton(seeds):
        from . import triton_philox

        out = torch.empty((seeds.shape[0], n), dtype=torch.float32, device=seeds.device)
        triton_philox.normal(seeds.contiguous(), tick, out)
    else:
        out = reference_philox.normal(seeds, tick, n)
    return out.view(seeds.shape[0], *shape).to(dtype)


def _fake(seeds: Tensor, tick: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return seeds.new_empty((seeds.shape[0], *shape), dtype=dtype)


_LIBRARY.impl("philox_normal", philox_normal, "CompositeExplicitAutograd")
torch.library.register_fake("fewstep::philox_normal", _fake, lib=_LIBRARY)
