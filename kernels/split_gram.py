"""`gram` beyond what one launch takes: vectors in groups of 3, one launch for each two groups."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from . import ops

Matrix = tuple[tuple[float, ...], ...]

GROUP = 3


def gram(registers: Sequence[Tensor], rows: Matrix, ones: bool) -> Tensor:
    """See ops_gram.gram, for any number of registers and rows. Vectors that are no register are formed first."""
    vectors = [_vector(row, registers) for row in rows]
    groups = [vectors[k : k + GROUP] for k in range(0, len(vectors), GROUP)]
    if len(groups) <= 2:
        return ops.gram(vectors, None, ones)
    blocks: dict[tuple[int, int], Tensor] = {}
    sums: dict[int, Tensor] = {}
    for a, b in combinations(range(len(groups)), 2):
        pair, n = [*groups[a], *groups[b]], len(groups[a])
        G = ops.gram(pair, None, ones)
        size = len(pair)
        blocks[a, a], blocks[b, b] = G[:, :n, :n], G[:, n:size, n:size]
        blocks[a, b], blocks[b, a] = G[:, :n, n:size], G[:, n:size, :n]
        if ones:
            sums[a], sums[b] = G[:, size:, :n], G[:, size:, n:size]
            total = G[:, size:, size:]
    lines = [torch.cat([blocks[a, b] for b in range(len(groups))], dim=2) for a in range(len(groups))]
    whole = torch.cat(lines, dim=1)
    if not ones:
        return whole
    last = torch.cat([sums[a] for a in range(len(groups))], dim=2)
    return torch.cat([torch.cat([whole, last.mT], dim=2), torch.cat([last, total], dim=2)], dim=1)


def _vector(row: tuple[float, ...], registers: Sequence[Tensor]) -> Tensor:
    read = [n for n, number in enumerate(row) if number]
    if len(read) == 1 and row[read[0]] == 1.0:
        return registers[read[0]]
    return ops.combine((tuple(row[n] for n in read),), [registers[n] for n in read])[0]
