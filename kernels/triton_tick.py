"""A tick whose matrix, registers and place in the run all lie in device memory, for replay from a CUDA graph.

A captured launch freezes its arguments. So the number of the tick is read from memory, and with it a row of
coefficients and a row of slots: where in the arena the state's registers lie and where the new ones go. What solvers
merely rename stays in its slot and costs nothing. A captured graph then serves every tick of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_combine import launch_options, narrow_tile, on_device, wide_tile


@triton.jit
def begin_kernel(counter, tick, times, time):
    """One program: tick and time become those of the tick that `counter` stands at, and `counter` moves on."""
    i = tl.load(counter)
    tl.store(tick, i)
    tl.store(time, tl.load(times + i))
    tl.store(counter, i + 1)


@triton.jit
def tick_kernel(arena, given, feed, coefficients, slots, tick, n, stride, OUTPUTS: tl.constexpr, NOISE: tl.constexpr,
                CARRY: tl.constexpr, M: tl.constexpr, COPIES: tl.constexpr, COEFFICIENTS: tl.constexpr,
                SLOTS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
                BLOCK: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """`combine` over (x, OUTPUTS of the network, CARRY slots, NOISE) into the feed, COPIES times, and M slots.

    given: the outputs, then the noise.       stride: elements per slot.
    Row of `slots`: x, carries, M outputs (-1: not written), whether to write the feed.
    """
    i = tl.load(tick).to(tl.int64)
    C = coefficients + i * COEFFICIENTS
    row = slots + i * SLOTS
    registers = (arena + tl.load(row).to(tl.int64) * stride,)
    for k in tl.static_range(OUTPUTS):
        registers = registers + (given[k],)
    for k in tl.static_range(CARRY):
        registers = registers + (arena + tl.load(row + 1 + k).to(tl.int64) * stride,)
    for k in tl.static_range(NOISE):
        registers = registers + (given[OUTPUTS + k],)
    N: tl.constexpr = len(registers)
    reads = ()
    for k in tl.static_range(N):
        used = tl.load(C + k) != 0
        for m in tl.static_range(1, M):
            used = used | (tl.load(C + m * N + k) != 0)
        reads = reads + (used.to(tl.int32),)
    outputs = (feed,)
    writes = (tl.load(row + 1 + CARRY + M),)
    for m in tl.static_range(M):
        slot = tl.load(row + 1 + CARRY + m).to(tl.int64)
        writes = writes + ((slot >= 0).to(tl.int32),)
        outputs = outputs + (arena + tl.maximum(slot, 0) * stride,)
    LINES: tl.constexpr = (0, 0, 1, 2, 3)
    TIMES: tl.constexpr = (COPIES, 1, 1, 1, 1)
    base = tl.program_id(0).to(tl.int64) * BLOCK
    total = tl.cast(n, tl.int64)
    EVERY: tl.constexpr = (1 << (M * N)) - 1
    if base + BLOCK <= n:
        if WIDE:
            wide_tile(registers, outputs, C, base, reads, writes, total, LINES, TIMES, EVERY, M, ACC, BLOCK, True, True)
        else:
            at = base + tl.arange(0, BLOCK)
            narrow_tile(registers, outputs, C, at, 0, reads, writes, total,
                        LINES, TIMES, EVERY, M, ACC, True, True, False)  # fmt: skip
    else:
        for start in range(0, BLOCK, TAIL):
            at = base + start + tl.arange(0, TAIL)
            narrow_tile(registers, outputs, C, at, n, reads, writes, total,
                        LINES, TIMES, EVERY, M, ACC, True, True, True)  # fmt: skip


class Memory(NamedTuple):
    """What ticks read and write on the device.

    arena: [slots, stride], the state and what the solver remembers.       feed: (copies * B, ...), the network's batch.
    coefficients: [ticks, lines * registers] of the arena's dtype.       slots: int32 [ticks, 2 + carries + lines].
    counter, tick: int32, one element.       times: float32 [ticks].       time: 0-d float32, of the current tick.
    """

    arena: Tensor
    feed: Tensor
    coefficients: Tensor
    slots: Tensor
    counter: Tensor
    tick: Tensor
    times: Tensor
    time: Tensor


def begin(memory: Memory) -> None:
    """The next tick: sets `tick` and `time`."""
    with on_device(memory.arena.device):
        begin_kernel[(1,)](memory.counter, memory.tick, memory.times, memory.time, num_warps=1, enable_fp_fusion=True)


def advance(memory: Memory, n: int, network: Sequence[Tensor], noise: Sequence[Tensor], carries: int) -> None:
    """The tick that `memory.tick` says, for n = B * elements per image. One launch.

    network, noise: contiguous tensors (B, ...), in the order of the columns.
    """
    arena, feed, slots = memory.arena, memory.feed, memory.slots
    dtypes = [arena.dtype, feed.dtype, *(t.dtype for t in (*network, *noise))]
    wide, block, tail, num_warps = launch_options(dtypes, n)
    given = (*network, *noise) or (feed,)  # a tuple must hold something
    with on_device(arena.device):
        tick_kernel[(-(-n // block),)](
            arena, given, feed, memory.coefficients, slots, memory.tick, n, arena.shape[1],
            OUTPUTS=len(network), NOISE=len(noise), CARRY=carries, M=slots.shape[1] - 2 - carries,
            COPIES=feed.numel() // n, COEFFICIENTS=memory.coefficients.shape[1], SLOTS=slots.shape[1],
            ACC=tl.float64 if torch.float64 in dtypes else tl.float32,
            WIDE=wide, BLOCK=block, TAIL=tail, num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip
