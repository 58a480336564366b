"""A run as numbers in memory: what a CUDA graph needs, in which nothing on the host may differ from tick to tick.

Every tick becomes a row of coefficients and a row of slots. Slots hold the state and what the solver remembers. A
tick's new vectors go to slots that nobody holds, a renamed vector stays where it is. All ticks of the same branches
have rows of the same layout, padded with zero columns, which are never read, and with outputs that are never written:
one graph serves them all.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import IncompatibleError
from ..kernels.ops import MAX_LINES, MAX_REGISTERS
from .guided import known, static
from .policy import Policy, Run
from .prediction import Parametrisation
from .table import Folded, Table

Line = dict[int, float]  # register -> coefficient


Branches = tuple[str, ...]


class Step(NamedTuple):
    """One tick.       coefficients: rows of (x, branches, carries, noise), padded.       slots: see triton_tick."""

    branches: Branches
    coefficients: tuple[tuple[float, ...], ...]
    slots: tuple[int, ...]


class Lowered(NamedTuple):
    """A run from `first_tick`. steps: one per tick of the table, None before the first.

    carries, lines: how many remembered registers and outputs every row has room for; noisy: whether for noise.
    slots: size of the arena; x begins in slot 0 and ends in slot `result`.
    copies: how often the feed stands along the batch.
    """

    first_tick: int
    steps: tuple[Step | None, ...]
    carries: int
    lines: int
    noisy: bool
    slots: int
    result: int
    copies: int


class _Tick(NamedTuple):
    """Before the padding: which slots are read and written by which line."""

    branches: Branches
    x: int
    carries: tuple[tuple[int, int], ...]  # (register, slot) of those that are read
    lines: tuple[tuple[tuple[float, ...], int], ...]  # coefficients over all registers, slot


def lower(table: Table, parametrisation: Parametrisation, guidance: Policy | None, first_tick: int = 0) -> Lowered:
    """Errors: IncompatibleError for weights that are tensors, and for ticks beyond 8 registers and 4 outputs."""
    state, ticks = [0], []
    plan = table.plan
    guided = static(guidance, Run(1, plan.nodes, plan.step, plan.stage, parametrisation, first=first_tick))
    for i in range(first_tick, len(table)):
        row = table.row(i, len(state) - 1)
        branches, weights = known(guided, i) if row.evaluates else ((), ())
        folded = table.fold(i, len(state) - 1, parametrisation, weights)
        if not isinstance(folded.matrix, tuple):
            raise IncompatibleError("graph=True needs weights that are numbers, the same for every image")
        tick, state = _assign(folded, branches, state)
        ticks.append(tick)
    carries, lines = max(len(t.carries) for t in ticks), max(len(t.lines) for t in ticks)
    noisy = any(line[-1] != 0.0 for t in ticks for line, _ in t.lines)
    copies = max(1, *(len(t.branches) for t in ticks))
    widest = 1 + carries + copies + noisy
    if widest > MAX_REGISTERS or lines > MAX_LINES:
        raise IncompatibleError(
            f"graph=True takes ticks of at most {MAX_REGISTERS} registers and {MAX_LINES} outputs; "
            f"{table.solver} has {widest} and {lines}"
        )
    steps = tuple(_padded(t, carries, lines, noisy, last=t is ticks[-1]) for t in ticks)
    used = 1 + max(slot for t in ticks for slot in (t.x, *(s for _, s in t.lines)))
    return Lowered(first_tick, (None,) * first_tick + steps, carries, lines, noisy, used, state[0], copies)


def _assign(folded: Folded, branches: Branches, state: list[int]) -> tuple[_Tick, list[int]]:
    """Slots for a tick's outputs, and the slots of the state after it. x always moves: the feed is written with it."""
    count = len(branches)
    slot_of = {0: state[0], **{1 + count + k: slot for k, slot in enumerate(state[1:])}}
    registers = 2 + count + len(state) - 1
    held = set(state)
    after, lines = [], []
    for k, (moved, index) in enumerate(folded.sources):
        if moved and k > 0 and index in slot_of:  # noise that is remembered has no slot yet
            after.append(slot_of[index])
            continue
        line = {index: 1.0} if moved else dict(zip(folded.live, folded.matrix[index], strict=True))
        slot = next(s for s in range(len(held) + 1) if s not in held)
        held.add(slot)
        after.append(slot)
        lines.append((tuple(float(line.get(r, 0.0)) for r in range(registers)), slot))
    read = {r for line, _ in lines for r, c in enumerate(line) if c != 0.0}
    carries = tuple((r, slot) for r, slot in slot_of.items() if r in read and r != 0)
    return _Tick(branches, state[0], carries, tuple(lines)), after


def _padded(tick: _Tick, carries: int, lines: int, noisy: bool, *, last: bool) -> Step:
    count = len(tick.branches)
    order = [*range(1 + count), *(r for r, _ in tick.carries)]
    blank = (0.0,) * (carries - len(tick.carries))
    rows = [tuple(line[r] for r in order) + blank + ((line[-1],) if noisy else ()) for line, _ in tick.lines]
    rows += [(0.0,) * len(rows[0])] * (lines - len(rows))
    slots = [tick.x, *(slot for _, slot in tick.carries), *(tick.x for _ in blank)]
    written = [slot for _, slot in tick.lines] + [-1] * (lines - len(tick.lines))
    return Step(tick.branches, tuple(rows), (*slots, *written, 0 if last else 1))
