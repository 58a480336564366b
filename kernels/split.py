"""`combine` beyond what one launch takes: lines in groups of 4, registers in chunks of 8 whose sums are added up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import library
from .reference import accumulation_dtype

Matrix = tuple[tuple[float, ...], ...]


def combine(
    C: Matrix | Tensor,
    registers: Sequence[Tensor],
    lines: Sequence[int],
    dtypes: Sequence[torch.dtype],
    copies: Sequence[int],
) -> list[Tensor]:
    """See library.combine, for any number of lines and registers. Partial sums stay in the accumulation dtype."""
    from .ops import MAX_LINES

    outputs: dict[int, Tensor] = {}
    used = sorted(set(lines))
    for first in range(0, len(used), MAX_LINES):
        group = used[first : first + MAX_LINES]
        mine = [o for o, line in enumerate(lines) if line in group]
        places = [group.index(lines[o]) for o in mine]
        found = _sum(_rows(C, group), registers, places, [dtypes[o] for o in mine], [copies[o] for o in mine])
        outputs.update(zip(mine, found, strict=True))
    return [outputs[o] for o in range(len(lines))]


def _sum(
    C: Matrix | Tensor, registers: Sequence[Tensor], lines: list[int], dtypes: list[torch.dtype], copies: list[int]
) -> Sequence[Tensor]:
    """At most 4 lines over any number of registers: their own partial sums join the next chunk as registers."""
    from .ops import MAX_REGISTERS

    acc = accumulation_dtype(registers)
    M, pending = len(C) if not isinstance(C, Tensor) else C.shape[1], list(registers)
    while len(pending) > MAX_REGISTERS:
        head, columns = pending[:MAX_REGISTERS], list(range(MAX_REGISTERS))
        partial = library.combine(_columns(C, columns), head, list(range(M)), [acc] * M, [1] * M)
        rest = list(range(MAX_REGISTERS, len(pending)))
        C = _with_identity(_columns(C, rest), M)
        pending = [*partial, *pending[MAX_REGISTERS:]]
    return library.combine(C, pending, lines, dtypes, copies)


def _rows(C: Matrix | Tensor, lines: list[int]) -> Matrix | Tensor:
    return C[:, lines] if isinstance(C, Tensor) else tuple(C[m] for m in lines)


def _columns(C: Matrix | Tensor, columns: list[int]) -> Matrix | Tensor:
    return C[:, :, columns] if isinstance(C, Tensor) else tuple(tuple(line[k] for k in columns) for line in C)


def _with_identity(C: Matrix | Tensor, M: int) -> Matrix | Tensor:
    """C with the columns of M partial sums in front."""
    if isinstance(C, Tensor):
        identity = torch.eye(M, dtype=C.dtype, device=C.device).expand(C.shape[0], M, M)
        return torch.cat([identity, C], dim=2)
    return tuple((*(1.0 if k == m else 0.0 for k in range(M)), *line) for m, line in enumerate(C))
