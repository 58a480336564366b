"""The launches that ahead_of_time inspects: of `combine`, `gram` and `philox_normal`.

A variant calls the kernel's own launcher with tensors on the meta device; dtypes, tile and warps are the launcher's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .ahead_of_time_combine import graph, per_image, shared
from .ahead_of_time_expected import (
    ARCHS,
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    LARGE,
    MIXED,
    Expected,
    Precision,
    Variant,
    accesses,
    empty,
)
from .ahead_of_time_reached import REACHED

_IMAGES_AND_ODD = ((2, 0), (1, 1), (2, 1))


def variants() -> list[Variant]:
    """Every variant, each with a name of its own."""
    return [*shared(), *per_image(), *graph(), *_gram(), *_philox()]


# --- gram -----------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """basis: [vectors][registers], of which the first is a state and the others are network outputs."""

    name: str
    basis: tuple[tuple[float, ...], ...]


def _gram() -> Iterator[Variant]:
    direction = Sums("u and c - u", ((1.0, 0.0), (-1.0, 1.0)))
    four, six = Sums("4 registers", _identity(4)), Sums("6 registers", _identity(6))
    works = [(direction, precision) for precision in (FLOAT32, MIXED, BFLOAT16, FLOAT64)]
    works += [(four, FLOAT32), (four, MIXED), (six, MIXED)]
    for arch, (images, odd), (work, precision) in product(ARCHS, _IMAGES_AND_ODD, works):
        n = LARGE + odd
        name = f"gram {len(work.basis)}: {work.name}; {precision.name}, {_batch(images)}, n = {n}, sm_{arch}"
        fast = work is direction and (precision, images, odd, arch) in (
            (BFLOAT16, 2, 0, 80), (BFLOAT16, 2, 0, 90), (BFLOAT16, 1, 1, 90), (FLOAT32, 2, 0, 80),
        )  # fmt: skip
        reached = REACHED.get((f"gram of {work.name}, {_batch(images)}", precision.name, n, arch))
        call = partial(_launch_gram, work, precision, images, n)
        yield Variant(name, "triton_gram", "gram_kernel", call, _expected_of_gram, arch, fast, reached)


def _launch_gram(work: Sums, precision: Precision, images: int, n: int, module: Any) -> None:
    dtypes = [precision.state if k == 0 else precision.network for k in range(len(work.basis))]
    module.launch([empty(images, n, dtype=dtype) for dtype in dtypes], work.basis, True)


def _expected_of_gram(launch: Any) -> Expected:
    """Whole tiles as wide as the widest dtype fills 128 bits with; the tail too where its size is a multiple of 16.

    Totals are 64 bits, so are the loads of the narrower of two dtypes: neither is counted.
    """
    given = launch.arguments
    even = given["n"] % 16 == 0
    aligned = even or given["stride"] == 0
    tile: dict[str, int] = {"128": 0, "32": 0, "16": 0}
    tail = dict(tile)
    for register in given["registers"]:
        bits = 8 * register.dtype.itemsize
        for found, wide in ((tile, aligned), (tail, even)):
            width, count = (bits * given["WIDTH"], 1) if wide else (bits, given["WIDTH"])
            if str(width) in found:
                found[str(width)] += count
    return Expected(tile, {}, tail, {}, exchange=True, looped=True)


def _identity(n: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(k == m) for m in range(n)) for k in range(n))


# --- philox_normal --------------------------------------------------------------------------------------------------


def _philox() -> Iterator[Variant]:
    for arch, (images, odd) in product(ARCHS, _IMAGES_AND_ODD):
        name = f"philox_normal: {_batch(images)}, n = {LARGE + odd}, sm_{arch}"
        fast = (arch, images, odd) in ((80, 2, 0), (90, 1, 1))
        call = partial(_launch_philox, images, LARGE + odd)
        yield Variant(name, "triton_philox", "normal_kernel", call, _expected_of_philox, arch, fast)


def _launch_philox(images: int, n: int, module: Any) -> None:
    module.normal(empty(images, dtype=torch.int64), empty(dtype=torch.int64), empty(images, n))


def _expected_of_philox(launch: Any) -> Expected:
    """A thread's four numbers are one store, except in images of odd size, and in the last block of an odd one."""
    given = launch.arguments
    out: Tensor = given["out"]
    elements = given["BLOCK"] // launch.threads
    even = given["n"] % 16 == 0
    tile, _ = accesses([(out, even or given["stride"] == 0)], elements)
    tail, _ = accesses([(out, even)], elements)
    nothing: dict[str, int] = {"128": 0, "16": 0}  # seed and tick are 64 and 32 bits
    return Expected(nothing, tile, nothing, tail, exchange=not even)


def _batch(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"
