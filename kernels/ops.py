"""The operations every run is made of. Each has a plain-torch reference, its specification, and a Triton kernel.

Which of the two runs: see choice. On the Triton path one call is one launch, except where it says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import choice, reference
from .ops_gram import gram
from .ops_philox import philox_normal

__all__ = ["Feed", "combine", "gram", "philox_normal"]

MAX_REGISTERS = 8
MAX_LINES = 4
MAX_IMAGES = 65_535  # the second axis of a grid

Matrix = tuple[tuple[float, ...], ...]


class Feed(NamedTuple):
    """What the network reads next: line `line` of the result in `dtype`, `copies` times along the batch."""

    line: int
    dtype: torch.dtype
    copies: int = 1


class Stores(NamedTuple):
    """What is written: per output the line of C R, its dtype, and how often it stands along the batch."""

    lines: list[int]
    dtypes: list[torch.dtype]
    copies: list[int]


def combine(
    C: Matrix | Tensor,
    registers: Sequence[Tensor],
    out_dtypes: Sequence[torch.dtype] | None = None,
    feed: Feed | None = None,
) -> tuple[Tensor, ...]:
    """Y = C R: linear combinations of equally shaped tensors.

    C: [M][N] numbers shared by the batch; or a tensor, [M, N] for all images or [B, M, N] with a matrix per image.
    registers: N tensors (B, ...) of any floating dtypes.       out_dtypes: M dtypes; default: the accumulation dtype.
    feed: one more output (copies * B, ...), written by the same launch. On the Triton path a line of the same dtype is
    then a view of it, so neither may be written to.
    Returns M tensors (B, ...), and the feed behind them where one is asked for.

    Accumulates in float32 (float64 if a register is). A register whose column of C is zero, for an image where C is
    per image, is never read: NaN in it stays there. Of numbers every zero counts: the line does without the register.
    Gradients flow to the registers and to a tensor C; coefficients of a register that was not read get zero.
    Errors: ValueError where the number of columns, registers, lines or dtypes does not fit.
    Up to 8 registers and 4 lines are one launch. More are split, and a register that is not contiguous is copied first.
    """
    if not choice.use_triton(registers[0]):
        lines = reference.combine(C, registers)
        if out_dtypes is None and feed is None:
            return tuple(lines)
        M, dtypes = len(lines), _dtypes(len(lines), lines[0].dtype, out_dtypes)
        if feed is None:
            return tuple(reference.stored(lines, range(M), dtypes, [1] * M))
        _check_feed(feed, M)
        stored = reference.stored(lines, [*range(M), feed.line], [*dtypes, feed.dtype], [*[1] * M, feed.copies])
        return tuple(stored)
    from . import library, split

    M, N = (C.shape[-2], C.shape[-1]) if isinstance(C, Tensor) else (len(C), len(C[0]))
    reference.check_columns(N, registers)
    _check_alike(registers, C)
    stores = _stores(M, reference.accumulation_dtype(registers), out_dtypes, feed)
    registers = [r if r.is_contiguous() else r.contiguous() for r in registers]
    if isinstance(C, Tensor) and C.dim() == 2:
        C = C.unsqueeze(0)
    run = library.combine if N <= MAX_REGISTERS and M <= MAX_LINES else split.combine
    return _in_order(run(C, registers, *stores), M, stores, feed)


def _check_alike(registers: Sequence[Tensor], C: Matrix | Tensor) -> None:
    """A kernel reads as many elements of every register as the first one has."""
    first = registers[0]
    for r in registers:
        if r.shape != first.shape or r.device != first.device:
            raise ValueError(
                f"registers must be alike: {tuple(first.shape)} on {first.device}, {tuple(r.shape)} on {r.device}"
            )
    images = first.shape[0] if first.dim() else 1
    if isinstance(C, Tensor) and C.dim() == 3:
        if C.shape[0] not in (1, images):
            raise ValueError(f"C has matrices for {C.shape[0]} images, the registers have {images}")
        if C.shape[0] > MAX_IMAGES:
            raise ValueError(f"a launch takes matrices for at most {MAX_IMAGES} images, C has {C.shape[0]}")


def _stores(lines: int, default: torch.dtype, out_dtypes: Sequence[torch.dtype] | None, feed: Feed | None) -> Stores:
    """The feed first, then the lines that it does not already hold in the dtype that is wanted."""
    dtypes = _dtypes(lines, default, out_dtypes)
    if feed is None:
        return Stores(list(range(lines)), dtypes, [1] * lines)
    _check_feed(feed, lines)
    own = [m for m in range(lines) if (m, dtypes[m]) != (feed.line, feed.dtype)]
    return Stores([feed.line, *own], [feed.dtype, *(dtypes[m] for m in own)], [feed.copies, *(1 for _ in own)])


def _dtypes(lines: int, default: torch.dtype, wanted: Sequence[torch.dtype] | None) -> list[torch.dtype]:
    dtypes = [default] * lines if wanted is None else list(wanted)
    if len(dtypes) != lines:
        raise ValueError(f"{len(dtypes)} output dtypes for {lines} lines of C")
    return dtypes


def _check_feed(feed: Feed, lines: int) -> None:
    if not (0 <= feed.line < lines and feed.copies >= 1):
        raise ValueError(f"{feed} does not fit {lines} lines of C")


def _in_order(written: Sequence[Tensor], lines: int, stores: Stores, feed: Feed | None) -> tuple[Tensor, ...]:
    """One tensor per line, then the feed."""
    if feed is None:
        return tuple(written)
    fed = written[0]
    outputs = dict(zip(stores.lines[1:], written[1:], strict=True))
    if len(outputs) < lines:
        outputs[feed.line] = fed if feed.copies == 1 else fed[: fed.shape[0] // feed.copies]
    return (*(outputs[m] for m in range(lines)), fed)
