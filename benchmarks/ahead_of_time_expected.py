"""What ahead_of_time expects of a launch: how wide its accesses are, and how many registers it may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ahead_of_time_reached import Reached

ARCHS = (80, 90)
SMALL, MIDDLE, LARGE = 4 * 64 * 64, 4 * 128 * 128, 16 * 128 * 128  # latents of SD, SDXL and SD3
REGISTERS = 64  # with more, less than half of an A100's or H100's threads are at work

_UNROLLED = 10  # copies of a loop's body: rarely more than 8

WIDTHS = ("128", "64", "32", "16")

Accesses = Mapping[str, int]  # by width in bits


class Expected(NamedTuple):
    """Accesses to global memory: of a whole tile, and of one pass through the tail's loop.

    Only the widths that are named count: coefficients, seeds and sums are scalars of other widths.
    exchange: whether some may go through shared memory: sums, and what begins at an address that is not aligned.
    looped: whether whole tiles are read in a loop. The assembler may unroll any loop.
    """

    loads: Accesses
    stores: Accesses
    tail_loads: Accesses
    tail_stores: Accesses
    exchange: bool = False
    looped: bool = False

    def counted(self, loads: Accesses, stores: Accesses) -> tuple[Accesses, Accesses] | None:
        """What was expected, with the loops unrolled as they were; None where what was found does not fit."""
        for tiles, tails in product(range(1, _UNROLLED) if self.looped else (1,), range(1, _UNROLLED)):
            wanted_loads = _unrolled(self.loads, tiles, self.tail_loads, tails)
            wanted_stores = _unrolled(self.stores, tiles, self.tail_stores, tails)
            if _has(loads, wanted_loads) and _has(stores, wanted_stores):
                return wanted_loads, wanted_stores
        return None


class Precision(NamedTuple):
    name: str
    state: torch.dtype
    network: torch.dtype


FLOAT32 = Precision("fp32", torch.float32, torch.float32)
MIXED = Precision("fp32 + bf16", torch.float32, torch.bfloat16)
BFLOAT16 = Precision("bf16", torch.bfloat16, torch.bfloat16)
FLOAT64 = Precision("fp64", torch.float64, torch.float64)
PRECISIONS = (FLOAT32, MIXED, Precision("fp32 + fp16", torch.float32, torch.float16), BFLOAT16, FLOAT64)


@dataclass(frozen=True)
class Variant:
    """module, kernel: of fewstep.kernels.       call: makes one launch of it.       fast: the fast tests have it.

    reached: the bounds where the goal is not reached; else None.
    """

    name: str
    module: str
    kernel: str
    call: Callable[[Any], object]
    expect: Callable[[Any], Expected]
    arch: int
    fast: bool
    reached: Reached | None = None


def accesses(tensors: list[tuple[Tensor, bool]], elements: int) -> tuple[dict[str, int], dict[str, int]]:
    """Of a whole tile and of the tail's loop. tensors: each with whether 128 bits may be accessed at a time.

    elements: how many of each tensor a thread has in a tile; in the tail it has one.
    """
    tile: Counter[str] = Counter()
    tail: Counter[str] = Counter()
    for tensor, aligned in tensors:
        narrow = str(8 * tensor.dtype.itemsize)
        tail[narrow] += 1
        if aligned:
            tile["128"] += elements * tensor.dtype.itemsize // 16
        else:
            tile[narrow] += elements
    return dict(tile), dict(tail)


def _unrolled(tile: Accesses, tiles: int, tail: Accesses, tails: int) -> Accesses:
    return {width: tiles * tile.get(width, 0) + tails * tail.get(width, 0) for width in tile.keys() | tail.keys()}


def _has(found: Accesses, wanted: Accesses) -> bool:
    return all(found.get(width, 0) == count for width, count in wanted.items())


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory: launchers look at dtypes and shapes only."""
    return torch.empty(shape, dtype=dtype, device="meta")
