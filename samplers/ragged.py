"""Batches in which some images' solver began again: every image remembers as much as it has seen since then.

What a solver does at a tick depends on how many vectors it remembers, so such images need other rows of the table than
the rest of their batch, until all remember equally much again. Then a tick is one matrix per image.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..kernels.upload import to_device
from .prediction import Parametrisation
from .table import Folded, Row, Table, Weights, numbers_of, weighted

if TYPE_CHECKING:
    from .engine import State


class Ragged(tuple[Tensor, ...]):
    """A carry, newest first, of which image k remembers the first lengths[k] vectors; nobody reads the others."""

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, carry: Sequence[Tensor], lengths: Sequence[int]) -> tuple[Tensor, ...]:
        """A plain tuple where all images remember equally much."""
        longest = max(lengths)
        if min(lengths) == longest:
            return tuple(carry[:longest])
        found = cls(carry[:longest])
        found.lengths = tuple(lengths)
        return found


def lengths_of(state: State) -> tuple[int, ...]:
    """How many vectors each image remembers."""
    carry = state.carry
    return carry.lengths if isinstance(carry, Ragged) else (len(carry),) * state.x.shape[0]


def restart(table: Table, state: State, images: Collection[int]) -> State:
    """`state` with nothing remembered of `images`: their solver begins anew, with order 1, and the others go on.

    Errors: ConfigError for images that are not in the batch; IncompatibleError in the middle of a step, which needs
    what its first evaluations found.
    """
    size = state.x.shape[0]
    if any(not 0 <= k < size for k in images):
        raise ConfigError(f"the batch has the images 0 to {size - 1}, asked to restart {tuple(images)}")
    if not images or not state.carry:
        return state
    if state.tick < len(table) and table.plan.stage[state.tick]:
        raise IncompatibleError(f"tick {state.tick} of {table.solver} is in the middle of a step: a solver can begin "
                                "anew only where a step begins")  # fmt: skip
    lengths = [0 if k in images else n for k, n in enumerate(lengths_of(state))]
    return state._replace(carry=Ragged.of(state.carry, lengths))


def row_of(table: Table, state: State) -> Row:
    """The row of the next tick: what it evaluates and draws if any image needs it."""
    row = table.row(state.tick, len(state.carry))
    if not isinstance(state.carry, Ragged):
        return row
    rows = [table.row(state.tick, n) for n in set(state.carry.lengths)]
    return row._replace(evaluates=any(r.evaluates for r in rows), needs_noise=any(r.needs_noise for r in rows))


def fold_each(table: Table, i: int, carry: Ragged, kind: Parametrisation | None, weights: Weights) -> Folded:
    """Tick i over the registers (x, outputs..., carry..., noise), with a matrix per image.

    kind, weights: as Table.fold; without kind the outputs are x0 and eps.
    """
    numbers = numbers_of(weights)
    found: dict[int, list[list[float]]] = {}
    for n in set(carry.lengths):
        own = table.unfolded(i, n) if kind is None else table.fold(i, n, kind, numbers)
        found[n] = _whole(own, 1 + len(weights), n, len(carry))
    lines, registers = max(map(len, found.values())), 2 + len(weights) + len(carry)
    for own in found.values():
        own += [[0.0] * registers] * (lines - len(own))
    live = tuple(k for k in range(registers) if any(line[k] != 0.0 for own in found.values() for line in own))
    images: Any = [[[line[k] for k in live] for line in found[n]] for n in carry.lengths]
    matrix = to_device(images, carry[0].device, torch.float64)
    return weighted(Folded(live, matrix, tuple((False, m) for m in range(lines))), weights)


def after_tick(table: Table, i: int, carry: Ragged, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The carry that tick i led to. outputs: of which images with fewer have zeros."""
    if not outputs:  # the last tick
        return ()
    return Ragged.of(outputs, [table.row(i, n).carry_out for n in carry.lengths])


def _whole(folded: Folded, before: int, length: int, longest: int) -> list[list[float]]:
    """Every output as a line over the registers of the longest carry; `before` of them come before the carry."""
    lines = []
    for moved, index in folded.sources:
        terms = {index: 1.0} if moved else dict(zip(folded.live, folded.matrix[index], strict=True))
        line = [0.0] * (before + longest + 1)
        for k, value in terms.items():
            line[k if k < before + length else before + longest] = float(value)
        lines.append(line)
    return lines
