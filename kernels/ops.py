"""The operations every tick is made of. Each has a plain-torch reference: its specification and the CPU path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference


def combine(
    C: tuple[tuple[float, ...], ...] | Tensor,
    registers: Sequence[Tensor],
    out_dtypes: Sequence[torch.dtype] | None = None,
) -> tuple[Tensor, ...]:
    """Y = C R: linear combinations of equally shaped tensors.

    C: [M][N] numbers shared by the batch, or a tensor [B, M, N] with one matrix per image.
    registers: N tensors (B, ...) of any floating dtype.       out_dtypes: M dtypes; default: the accumulation dtype.
    Accumulates in float32 (float64 if a register is). A register whose coefficient is zero is never read, so NaN in it
    stays there.
    """
    return reference.combine(C, registers, out_dtypes)
