"""The Gram matrix in plain torch: the specification of the kernel and the path that runs without a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference

CHUNK = 1 << 16
"""Elements of an image that are held in float64 at a time."""

SMALL = 1 << 12
"""Up to so many elements images on the CPU are taken together: their number costs little then. Each is still summed on
its own, in the same order in any batch, because torch does not share out sums as short as these."""

Matrix = tuple[tuple[float, ...], ...]


def gram(registers: Sequence[Tensor], basis: Matrix, ones: bool) -> Tensor:
    """See ops_gram.gram. An image gives the same numbers in any batch.

    float64 products are left alone by autocast, and row k of V V^T reads nothing but v_k: NaN stays in its own row.
    """
    images, side = registers[0].shape[0], len(basis) + ones
    if registers[0].numel() == 0:
        return torch.zeros((images, side, side), dtype=torch.float64, device=registers[0].device)
    rows = [r.reshape(images, -1) for r in registers]
    if rows[0].shape[1] <= SMALL and rows[0].device.type == "cpu":
        return _together(rows, basis, ones)
    return torch.stack([_one_image([row[b] for row in rows], basis, ones) for b in range(images)])


def _together(rows: Sequence[Tensor], basis: Matrix, ones: bool) -> Tensor:
    vectors = [v.double() for v in reference.combine(basis, rows)]
    if ones:
        vectors.append(torch.ones_like(vectors[0]))
    pairs = {(i, j): (u * v).sum(1) for i, u in enumerate(vectors) for j, v in enumerate(vectors[: i + 1])}
    side = range(len(vectors))
    return torch.stack([torch.stack([pairs[max(i, j), min(i, j)] for j in side], 1) for i in side], 1)


def _one_image(rows: Sequence[Tensor], basis: Matrix, ones: bool) -> Tensor:
    total = None
    for start in range(0, rows[0].shape[0], CHUNK):
        chunk = [row[start : start + CHUNK] for row in rows]
        vectors = [v.double() for v in reference.combine(basis, chunk)]
        if ones:
            vectors.append(torch.ones_like(vectors[0]))
        V = torch.stack(vectors)
        product = V @ V.T
        total = product if total is None else total + product
    assert total is not None
    lower = total.tril()
    return lower + total.tril(-1).T
