"""Launches of `combine`, and of its form for CUDA graphs, for ahead_of_time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.ops import Feed, _stores
from ..samplers import EPS, SOLVERS, DiscreteVP, linspace, trace
from ..samplers.table import Matrix, Weights
from .ahead_of_time_expected import (
    ARCHS,
    FLOAT32,
    LARGE,
    MIDDLE,
    MIXED,
    PRECISIONS,
    SMALL,
    WIDTHS,
    Expected,
    Precision,
    Variant,
    accesses,
    empty,
)
from .ahead_of_time_reached import REACHED

_SCHEDULE = DiscreteVP.scaled_linear()
_TICKS = 10
_STEADY = 5  # a tick where every solver remembers as much as it ever does
_CFG = (-6.5, 7.5)
_CFG_PER_IMAGE = (torch.tensor([-6.5, -4.0]), torch.tensor([7.5, 5.0]))


class Work(NamedTuple):
    """matrix: its columns are [x, network outputs..., carry...].       branches: how many outputs; 0: no feed."""

    name: str
    matrix: Matrix | Tensor
    branches: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images that have a matrix of their own, lines, columns."""
        if isinstance(self.matrix, Tensor):
            images, lines, columns = self.matrix.shape
            return images, lines, columns
        return 1, len(self.matrix), len(self.matrix[0])


def shared() -> Iterator[Variant]:
    """One matrix for all images: every kind of tick, and the largest matrix that is one launch."""
    sized = [_tick("2M, CFG", "2m", _STEADY, _CFG), Work("UniPC-3 that keeps edits, CFG", ((0.5,) * 8,) * 4, 2)]
    works = [
        _tick("first tick, CFG", "2m", 0, _CFG),
        _tick("DDIM, CFG", "ddim", _STEADY, _CFG),
        _tick("2M, no guidance", "2m", _STEADY, (1.0,)),
        _tick("3M, CFG", "3m", _STEADY, _CFG),
        _tick("UniPC-2, CFG", "unipc-2", _STEADY, _CFG),
        _tick("UniPC-3, CFG", "unipc-3", _STEADY, _CFG),
    ]
    for arch, precision, odd, work in product(ARCHS, PRECISIONS, (0, 1), [*sized, *works]):
        sizes = (SMALL, MIDDLE, LARGE) if work in sized and precision in (FLOAT32, MIXED) else (LARGE,)
        for n in sizes:
            fast = precision == MIXED and not odd and n == LARGE and (arch == 90 or work == sized[1])
            fast |= arch == 80 and bool(odd) and n == LARGE and work == sized[0]
            yield _combine(work, precision, n + odd, arch, fast)


def per_image() -> Iterator[Variant]:
    """A matrix for each image."""
    guided = _tick("2M, CFG per image", "2m", _STEADY, _CFG_PER_IMAGE)
    gradients = Work("conjugate gradients per image", torch.full((2, 2, 4), 0.5), 0)
    widest = Work("UniPC-3 that keeps edits, CFG per image", torch.full((2, 4, 8), 0.5), 2)
    for arch, precision, odd, work in product(ARCHS, PRECISIONS, (0, 1), (guided, gradients, widest)):
        if work is not gradients or precision.state == precision.network:  # it has no network
            fast = work is gradients and not odd and arch == 80 and precision == FLOAT32
            fast |= work is guided and arch == 90 and precision == MIXED
            yield _combine(work, precision, LARGE + odd, arch, fast)


def _tick(name: str, solver: str, tick: int, weights: Weights) -> Work:
    table = trace(SOLVERS[solver](), linspace(_SCHEDULE, _TICKS), _SCHEDULE)
    carried = table.rows[tick - 1].carry_out if tick else 0
    return Work(name, table.fold(tick, carried, EPS, weights).matrix, len(weights))


def _combine(work: Work, precision: Precision, n: int, arch: int, fast: bool) -> Variant:
    _, lines, columns = work.shape
    name = f"combine {columns}x{lines}: {work.name}; {precision.name}, n = {n}, sm_{arch}"
    call = partial(_launch, work, precision, n)
    reached = REACHED.get((work.name, precision.name, n, arch))
    return Variant(name, "triton_combine", "combine_kernel", call, _expected, arch, fast, reached)


def _launch(work: Work, precision: Precision, n: int, module: Any) -> None:
    images, lines, columns = work.shape
    outputs = range(1, 1 + work.branches)
    registers = [empty(images, n, dtype=precision.network if k in outputs else precision.state) for k in range(columns)]
    feed = Feed(0, precision.network, work.branches) if work.branches else None
    module.launch(work.matrix, registers, *_stores(lines, precision.state, [precision.state] * lines, feed))


def _expected(launch: Any) -> Expected:
    """A whole tile is read and written 128 bits at a time, as far as the addresses are multiples of 16 bytes.

    They are not for a second copy behind one of odd size, nor for images of odd size: there it is element by element.
    """
    given = launch.arguments
    outputs = zip(given["outputs"], given["COPIES"], strict=True)
    written = [(output, copy) for output, copies in outputs for copy in range(copies)]
    return _of_tiles(launch, given["registers"], written, bool(given["EACH"]))


def _of_tiles(launch: Any, registers: Sequence[Tensor], written: Sequence[tuple[Tensor, int]], each: bool) -> Expected:
    """written: outputs, each with the number of its copy.       each: whether the grid has a row per image."""
    elements = launch.arguments["BLOCK"] // launch.threads
    even = launch.arguments["n"] % 16 == 0
    loads, tail_loads = accesses([(register, even or not each) for register in registers], elements)
    stores, tail_stores = accesses([(output, even or not (each or copy)) for output, copy in written], elements)
    # Coefficients are loads of 32 and 64 bits, so of those nothing can be said.
    return Expected(_only(loads, ("128", "16")), _only(stores), _only(tail_loads, ("128", "16")), tail_stores, not even)


def _only(found: dict[str, int], widths: Sequence[str] = WIDTHS) -> dict[str, int]:
    return {width: found.get(width, 0) for width in widths}


# --- for CUDA graphs ------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of tick: computed lines, remembered registers, branches, and whether it draws noise."""

    name: str
    lines: int
    carries: int
    branches: int
    noise: int


def graph() -> Iterator[Variant]:
    """Ticks that find their matrix and registers in device memory."""
    kinds = (Kind("2M, CFG", 2, 1, 2, 0), Kind("SDE 2M, CFG", 2, 1, 2, 1), Kind("UniPC-3, CFG", 3, 4, 2, 0))
    precisions = [precision for precision in PRECISIONS if precision.state.itemsize >= 4]  # `solve` has no other states
    for arch, precision, odd, kind in product(ARCHS, precisions, (0, 1), kinds):
        columns = 1 + kind.branches + kind.carries + kind.noise
        n = LARGE + odd
        name = f"graph tick {columns}x{kind.lines}: {kind.name}; {precision.name}, n = {n}, sm_{arch}"
        fast = precision == MIXED and (arch, odd) in ((90, 0), (80, 1)) and kind is kinds[0]
        reached = REACHED.get((f"graph tick of {kind.name}", precision.name, n, arch))
        call = partial(_launch_tick, kind, precision, n)
        yield Variant(name, "triton_tick", "tick_kernel", call, _expected_of_tick, arch, fast, reached)


def _launch_tick(kind: Kind, precision: Precision, n: int, module: Any) -> None:
    state = precision.state
    columns = 1 + kind.branches + kind.carries + kind.noise
    whole = empty(1, dtype=torch.int32)
    memory = module.Memory(
        arena=empty(8, -(-n // 16) * 16, dtype=state),
        feed=empty(kind.branches * n, dtype=precision.network),
        coefficients=empty(_TICKS, kind.lines * columns, dtype=state),
        slots=empty(_TICKS, 2 + kind.carries + kind.lines, dtype=torch.int32),
        counter=whole, tick=whole, times=empty(_TICKS), time=empty(),
    )  # fmt: skip
    network = [empty(n, dtype=precision.network)] * kind.branches
    module.advance(memory, n, network, [empty(n, dtype=state)] * kind.noise, kind.carries)


def _expected_of_tick(launch: Any) -> Expected:
    given = launch.arguments
    arena = given["arena"]
    registers = [arena, *given["given"], *(arena for _ in range(given["CARRY"]))]
    written = [(given["feed"], copy) for copy in range(given["COPIES"])] + [(arena, 0)] * given["M"]
    return _of_tiles(launch, registers, written, False)
