"""The Gram matrix of an image in one launch: a reduction in two stages whose result is the same on every GPU.

Stage one. The grid is (images, splits). A program adds up its own contiguous share of one image, one partial sum per
thread and product, and stores the totals. Stage two. The last program of an image to finish adds the totals of all
the image's programs.

The result does not depend on which program finishes last. Each total is made by one program from its own share, in a
fixed order, and stored before that program raises the image's counter (release). Whoever brings the counter to
`splits` has seen all of them (acquire), reads the same numbers from the same places and adds them in the same order.
No floating-point number is ever added atomically. The shares depend on sizes and dtypes only, never on how many
multiprocessors there are.

Loads are 128 bits wide (the narrower of two dtypes: 64) where the images start at multiples of 16 elements: always
for one image, and for a batch when n % 16 = 0. Otherwise each element is loaded by itself: slower, equally right.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import pack, unpack
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_combine import on_device
from .triton_counters import counters

MAX_SPLITS = 1024
"""Programs per image: enough to fill the largest GPU, few enough for one program to add up their totals."""

Matrix = tuple[tuple[float, ...], ...]


@triton.jit
def _columns(x, WIDTH: tl.constexpr):
    """The WIDTH columns of x [LANES, WIDTH], each [LANES]. A thread holds a row, so nothing moves."""
    columns = (x,)
    for level in tl.static_range(4):
        if (WIDTH >> level) > 1:
            halves = ()
            for k in tl.static_range(len(columns)):
                left, right = tl.split(tl.reshape(columns[k], [x.shape[0], WIDTH >> (level + 1), 2]))
                halves = halves + (left, right)
            columns = halves
    flat = ()
    for k in tl.static_range(WIDTH):
        flat = flat + (tl.reshape(columns[k], [x.shape[0]]),)
    return flat


@triton.jit
def _vector(values, column, coefficients, k, PLACES: tl.constexpr, PARTS: tl.constexpr, ACC: tl.constexpr):
    """v_k = sum_n basis[k][n] r_n of one column, rounded to ACC, as [LANES] float64."""
    N: tl.constexpr = len(values)
    v = tl.zeros(values[0][0].shape, ACC)
    for n in tl.static_range(N):
        if PLACES[k * N + n] >= 0:
            c = tl.cast(coefficients[PLACES[k * N + n] * PARTS], ACC)
            for part in tl.static_range(1, PARTS):
                c += tl.cast(coefficients[PLACES[k * N + n] * PARTS + part], ACC)
            v += c * values[n][column].to(ACC)
    return v.to(tl.float64)


@triton.jit
def _add_tile(sums, registers, coefficients, at, mask,
              PLACES: tl.constexpr, PARTS: tl.constexpr, ONES: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Adds a tile to the partial sums [LANES]: the products v_k v_m with m >= k, row by row, then each v_k.

    Column by column: few float64 numbers are alive at a time, and each product is one fused multiply-add.
    """
    WIDTH: tl.constexpr = at.shape[1]
    K: tl.constexpr = len(PLACES) // len(registers)
    values = ()
    for n in tl.static_range(len(registers)):
        if mask is None:
            r = tl.load(registers[n] + at)
        else:
            r = tl.load(registers[n] + at, mask=mask, other=0.0)
        values = values + (_columns(r, WIDTH),)
    for column in tl.static_range(WIDTH):
        v = ()
        for k in tl.static_range(K):
            v = v + (_vector(values, column, coefficients, k, PLACES, PARTS, ACC),)
        new = ()
        for k in tl.static_range(K):
            for m in tl.static_range(k, K):
                new = new + (sums[len(new)] + v[k] * v[m],)
        if ONES:
            for k in tl.static_range(K):
                new = new + (sums[len(new)] + v[k],)
        sums = new
    return sums


@triton.jit
def _add_partials(partials, splits, lanes, P: tl.constexpr):
    """The P totals of an image from what its programs stored, [P, splits]."""
    sums = (tl.zeros(lanes.shape, tl.float64),) * P
    for start in range(0, splits, lanes.shape[0]):
        at = start + lanes
        new = ()
        for p in tl.static_range(P):  # .cg: from L2, where the other programs' stores are
            new = new + (sums[p] + tl.load(partials + p * splits + at, at < splits, 0.0, cache_modifier=".cg"),)
        sums = new
    totals = ()
    for p in tl.static_range(P):
        totals = totals + (tl.sum(sums[p], 0),)
    return totals


@triton.jit
def _store_matrix(out, totals, n, K: tl.constexpr, ONES: tl.constexpr):
    """Both halves of a [K', K'] matrix from its sums; with ONES the last row is (sums, n)."""
    SIDE: tl.constexpr = K + ONES
    P: tl.constexpr = K * (K + 1) // 2
    for k in tl.static_range(K):
        for m in tl.static_range(k, K):
            total = totals[k * K - k * (k - 1) // 2 + m - k]
            tl.store(out + k * SIDE + m, total)
            tl.store(out + m * SIDE + k, total)
        if ONES:
            tl.store(out + k * SIDE + K, totals[P + k])
            tl.store(out + K * SIDE + k, totals[P + k])
    if ONES:
        tl.store(out + K * SIDE + K, tl.cast(n, tl.float64))  # an n of 1 is a constexpr


@triton.jit(do_not_specialize=["splits", "tiles"])
def gram_kernel(
    registers,  # N pointers to (B, n)
    coefficients,  # floats, PARTS per term
    partials,  # float64 [B, P, splits]
    counters,  # int32 [B], zeros; zeros again when the kernel ends
    out,  # float64 [B, K', K']
    n,
    stride,  # from image to image: n, or 0 for a single image, whose base then counts as aligned
    splits,
    tiles,
    PLACES: tl.constexpr,  # [K * N]: where the coefficient is, or -1 for no term
    PARTS: tl.constexpr,
    ONES: tl.constexpr,
    ACC: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    K: tl.constexpr = len(PLACES) // len(registers)
    P: tl.constexpr = K * (K + 1) // 2 + K * ONES
    image = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    lanes = tl.arange(0, LANES)
    tile = lanes[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    first = split.to(tl.int64) * tiles * (LANES * WIDTH)
    end = tl.minimum(first + tiles * (LANES * WIDTH), n)
    base = image * stride + first
    count = (end - first).to(tl.int32)
    full = count // (LANES * WIDTH)

    sums = (tl.zeros([LANES], tl.float64),) * P
    for i in range(full):
        at = base + i * (LANES * WIDTH) + tile
        sums = _add_tile(sums, registers, coefficients, at, None, PLACES, PARTS, ONES, ACC)
    if full * (LANES * WIDTH) < count:
        inside = full * (LANES * WIDTH) + tile
        sums = _add_tile(sums, registers, coefficients, base + inside, inside < count, PLACES, PARTS, ONES, ACC)
    mine = partials + image * P * splits
    for p in tl.static_range(P):
        tl.store(mine + p * splits + split, tl.sum(sums[p], 0))

    tl.debug_barrier()  # every thread's stores come before the counter goes up
    if tl.atomic_add(counters + image, 1, sem="acq_rel", scope="gpu") == splits - 1:
        totals = _add_partials(mine, splits, lanes, P)
        _store_matrix(out + image * (K + ONES) * (K + ONES), totals, n, K, ONES)
        tl.store(counters + image, 0)


class LaunchOptions(NamedTuple):
    """splits: programs per image. tiles: how many tiles each of them reads, the last one perhaps fewer.
    LANES, WIDTH: a tile is one lane per thread and WIDTH neighbouring elements per lane."""

    splits: int
    tiles: int
    LANES: int
    WIDTH: int
    num_warps: int


def launch_options(n: int, itemsize: int) -> LaunchOptions:
    """For images of n elements and registers of at most `itemsize` bytes an element: 16 bytes of those are one load."""
    num_warps = 4
    lanes, width = 32 * num_warps, 16 // itemsize
    tiles = -(-n // (lanes * width))
    tiles_each = -(-tiles // MAX_SPLITS)
    return LaunchOptions(-(-tiles // tiles_each), tiles_each, lanes, width, num_warps)


def launch(registers: Sequence[Tensor], basis: Matrix, ones: bool) -> Tensor:
    """[B, K', K'] float64. registers: contiguous, equally shaped (B, ...), each in some row of the basis."""
    first = registers[0]
    images, side = first.shape[0], len(basis) + ones
    if first.numel() == 0:
        return torch.zeros((images, side, side), dtype=torch.float64, device=first.device)
    n = first.numel() // images
    acc, itemsize = torch.float32, 0
    for register in registers:
        itemsize = max(itemsize, register.dtype.itemsize)
        if register.dtype == torch.float64:
            acc = torch.float64
    places, coefficients = _program(basis, acc)
    splits, tiles, lanes, width, num_warps = launch_options(n, itemsize)
    sums = side * (side + 1) // 2 - ones  # the number of elements, last in the last row, needs no sum
    out = torch.empty((images, side, side), dtype=torch.float64, device=first.device)
    partials = torch.empty((images, sums, splits), dtype=torch.float64, device=first.device)
    with on_device(first.device):
        gram_kernel[(images, splits)](
            tuple(registers), coefficients, partials, counters(images, first.device), out,
            n, n if images > 1 else 0, splits, tiles,
            PLACES=places, PARTS=parts_of(acc), ONES=int(ones), ACC=tl.float64 if acc == torch.float64 else tl.float32,
            LANES=lanes, WIDTH=width, num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def parts_of(acc: torch.dtype) -> int:
    """How many floats hold one coefficient. Triton's float arguments are float32: three add up to any float64."""
    return 3 if acc == torch.float64 else 1


@lru_cache(maxsize=4096)
def _program(basis: Matrix, acc: torch.dtype) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """PLACES and coefficients of a basis: only what is not zero is passed on."""
    places: list[int] = []
    coefficients: list[float] = []
    for c in (c for row in basis for c in row):
        places.append(-1 if c == 0.0 else len(coefficients) // parts_of(acc))
        for _ in range(parts_of(acc) if c != 0.0 else 0):
            coefficients.append(unpack("f", pack("f", c))[0])
            c -= coefficients[-1]
    return tuple(places), tuple(coefficients)
