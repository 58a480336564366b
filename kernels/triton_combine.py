"""`combine` as one Triton launch: every register is read once, every output written once.

A thread owns 8 consecutive elements where a 16-bit dtype takes part, handled as two groups of 4: 16-bit registers are
then read and written 128 bits at a time and 32-bit ones too, without a detour through shared memory (a tile in one
piece would need one, because the two dtypes would be laid out differently). Without 16-bit dtypes it owns 4.
Tiles that lie wholly inside take an unmasked branch: a mask would turn 128-bit accesses into 2-byte ones wherever the
size is not a multiple of 16. The tail is done in small masked pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .upload import uploaded

Matrix = tuple[tuple[float, ...], ...]


@triton.jit
def _halves(x, T: tl.constexpr):
    """[T, 8] as two [T, 4] of neighbours; every thread keeps what it has."""
    return tl.split(tl.permute(tl.reshape(x, [T, 2, 4]), (0, 2, 1)))


@triton.jit
def _whole(a, b, T: tl.constexpr):
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), [T, 8])


@triton.jit
def _lines(values, C, PATTERN: tl.constexpr, M: tl.constexpr, ACC: tl.constexpr):
    """M sums over the registers; bit m * N + k of PATTERN says whether C[m, k] can be nonzero."""
    N: tl.constexpr = len(values)
    sums = (tl.zeros(values[0].shape, ACC),) * M
    for k in tl.static_range(N):
        r = values[k].to(ACC)
        added = ()
        for m in tl.static_range(M):
            if (PATTERN >> (m * N + k)) & 1:
                added = added + (sums[m] + r * tl.load(C + m * N + k),)
            else:
                added = added + (sums[m],)
        sums = added
    return sums


@triton.jit
def _rounded(y, element: tl.constexpr):
    """As torch rounds float64 to 16 bits: by way of float32."""
    if element.primitive_bitwidth == 16 and y.dtype != element:
        return y.to(tl.float32).to(element)
    else:
        return y.to(element)


@triton.jit
def _load(pointer, flag, FLAGGED: tl.constexpr):
    """flag: a whole number for the tile, zero where it is not to be read. As constant as this it keeps 128 bits."""
    if FLAGGED:
        return tl.load(pointer, mask=(tl.zeros(pointer.shape, tl.int32) + flag) != 0, other=0.0)
    else:
        return tl.load(pointer)


@triton.jit
def _store(pointer, y, flag, total, COPIES: tl.constexpr, FLAGGED: tl.constexpr):
    """y at `pointer` and at every multiple of `total` elements behind it."""
    y = _rounded(y, pointer.dtype.element_ty)
    for copy in tl.static_range(COPIES):
        if FLAGGED:
            tl.store(pointer + copy * total, y, mask=(tl.zeros(pointer.shape, tl.int32) + flag) != 0)
        else:
            tl.store(pointer + copy * total, y)


@triton.jit
def narrow_tile(registers, outputs, C, at, end, reads, writes, total, LINES: tl.constexpr, COPIES: tl.constexpr,
                PATTERN: tl.constexpr, M: tl.constexpr, ACC: tl.constexpr,
                READS: tl.constexpr, WRITES: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """One tile with a single layout. reads, writes: whole numbers for registers and outputs, where READS, WRITES."""
    values = ()
    for k in tl.static_range(len(registers)):
        flag = (at < end).to(tl.int32) if MASKED else 1
        if READS:
            flag = flag * reads[k]
        values = values + (_load(registers[k] + at, flag, READS or MASKED),)
    sums = _lines(values, C, PATTERN, M, ACC)
    for o in tl.static_range(len(outputs)):
        flag = (at < end).to(tl.int32) if MASKED else 1
        if WRITES:
            flag = flag * writes[o]
        _store(outputs[o] + at, sums[LINES[o]], flag, total, COPIES[o], WRITES or MASKED)


@triton.jit
def wide_tile(registers, outputs, C, base, reads, writes, total, LINES: tl.constexpr, COPIES: tl.constexpr,
              PATTERN: tl.constexpr, M: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
              READS: tl.constexpr, WRITES: tl.constexpr):  # fmt: skip
    """One whole tile of mixed widths: 16-bit accesses of 8 elements a thread, the others twice 4."""
    T: tl.constexpr = BLOCK // 8
    eight = base + tl.arange(0, T)[:, None] * 8 + tl.arange(0, 8)[None, :]
    four = base + tl.arange(0, T)[:, None] * 8 + tl.arange(0, 4)[None, :]
    values = ()
    kept = ()  # second halves of the 16-bit registers
    for k in tl.static_range(len(registers)):
        flag = reads[k] if READS else 1
        if registers[k].dtype.element_ty.primitive_bitwidth == 16:
            a, b = _halves(_load(registers[k] + eight, flag, READS), T)
            values = values + (a,)
            kept = kept + (b,)
        else:
            values = values + (_load(registers[k] + four, flag, READS),)
            kept = kept + (0,)
    first = _lines(values, C, PATTERN, M, ACC)
    for o in tl.static_range(len(outputs)):
        if outputs[o].dtype.element_ty.primitive_bitwidth != 16:
            flag = writes[o] if WRITES else 1
            _store(outputs[o] + four, first[LINES[o]], flag, total, COPIES[o], WRITES)
    if M * len(registers) > 16:
        tl.debug_barrier()  # else the coefficients of both halves and everything read would be alive at once
    values = ()
    for k in tl.static_range(len(registers)):
        if registers[k].dtype.element_ty.primitive_bitwidth == 16:
            values = values + (kept[k],)
        else:
            flag = reads[k] if READS else 1
            values = values + (_load(registers[k] + four + 4, flag, READS),)
    second = _lines(values, C, PATTERN, M, ACC)
    for o in tl.static_range(len(outputs)):
        flag = writes[o] if WRITES else 1
        if outputs[o].dtype.element_ty.primitive_bitwidth == 16:
            element = outputs[o].dtype.element_ty
            y = _whole(_rounded(first[LINES[o]], element), _rounded(second[LINES[o]], element), T)
            _store(outputs[o] + eight, y, flag, total, COPIES[o], WRITES)
        else:
            _store(outputs[o] + four + 4, second[LINES[o]], flag, total, COPIES[o], WRITES)


@triton.jit
def combine_kernel(registers, outputs, C, n, LINES: tl.constexpr, COPIES: tl.constexpr, PATTERN: tl.constexpr,
                   M: tl.constexpr, EACH: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
                   BLOCK: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """Outputs o = (C registers)[LINES[o]], COPIES[o] times one behind the other.

    n: elements of an image, or of the batch where one C serves all. Grid: (tiles, images). EACH: C is [images, M, N].
    """
    N: tl.constexpr = len(registers)
    tile = tl.program_id(0).to(tl.int64) * BLOCK
    origin, total = tile, tl.cast(n, tl.int64)
    reads = ()
    if EACH:
        image = tl.program_id(1).to(tl.int64)
        origin += image * n
        total *= tl.num_programs(1)
        C += image * M * N
        for k in tl.static_range(N):
            used = tl.load(C + k) != 0
            for m in tl.static_range(1, M):
                used = used | (tl.load(C + m * N + k) != 0)
            reads = reads + (used.to(tl.int32),)
    if tile + BLOCK <= n:
        if WIDE:
            wide_tile(registers, outputs, C, origin, reads, (), total,
                      LINES, COPIES, PATTERN, M, ACC, BLOCK, EACH, False)  # fmt: skip
        else:
            at = origin + tl.arange(0, BLOCK)
            narrow_tile(registers, outputs, C, at, 0, reads, (), total,
                        LINES, COPIES, PATTERN, M, ACC, EACH, False, False)  # fmt: skip
    else:
        for start in range(0, BLOCK, TAIL):
            at = origin + start + tl.arange(0, TAIL)
            narrow_tile(registers, outputs, C, at, origin + (n - tile), reads, (), total,
                        LINES, COPIES, PATTERN, M, ACC, EACH, False, True)  # fmt: skip


class Options(NamedTuple):
    """What a launch is specialised on besides the matrix; the ahead-of-time check compiles with the same."""

    wide: bool
    block: int
    tail: int
    num_warps: int


def launch_options(dtypes: Sequence[torch.dtype], n: int) -> Options:
    """For registers and outputs of these dtypes and n elements a row of the grid. Small latents get small tiles."""
    wide = any(dtype.itemsize == 2 for dtype in dtypes)
    num_warps = 1 if n < 1 << 15 else 2 if n < 1 << 18 else 4
    threads = 32 * num_warps
    return Options(wide, (8 if wide else 4) * threads, threads, num_warps)


def launch(
    C: Matrix | Tensor,
    registers: Sequence[Tensor],
    lines: Sequence[int],
    dtypes: Sequence[torch.dtype],
    copies: Sequence[int],
) -> list[Tensor]:
    """Output o is line lines[o] of C R in dtypes[o], copies[o] times along the batch: (copies[o] * B, ...).

    registers: at most 8, contiguous, equally shaped.       C: at most 4 lines; a tensor is [B or 1, M, N].
    """
    first = registers[0]
    shape = first.shape
    outputs = [
        torch.empty((c * shape[0], *shape[1:]) if c != 1 else shape, dtype=dtype, device=first.device)
        for dtype, c in zip(dtypes, copies, strict=True)
    ]
    n = first.numel()
    if n == 0:
        return outputs
    acc = torch.float64 if any(r.dtype == torch.float64 for r in registers) else torch.float32
    if isinstance(C, Tensor):
        images, M, N = C.shape
        matrix = C.to(device=first.device, dtype=acc).contiguous()
        pattern, each = (1 << (M * N)) - 1, True
    else:
        images, M, each = 1, len(C), False
        matrix, pattern = uploaded(C, first.device, acc), _pattern(C)
    n //= images
    wide, block, tail, num_warps = launch_options([*(r.dtype for r in registers), *dtypes], n)
    with on_device(first.device):
        combine_kernel[(-(-n // block), images)](
            tuple(registers), tuple(outputs), matrix, n,
            LINES=tuple(lines), COPIES=tuple(copies), PATTERN=pattern, M=M, EACH=each,
            ACC=tl.float64 if acc == torch.float64 else tl.float32,
            WIDE=wide, BLOCK=block, TAIL=tail, num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip
    return outputs


_NOWHERE = nullcontext()


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device; make it that of the tensors."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _NOWHERE
    return torch.cuda.device(device)


@lru_cache(maxsize=4096)
def _pattern(C: Matrix) -> int:
    return sum(1 << k for k, c in enumerate(c for line in C for c in line) if c != 0.0)
