"""Plain torch: the specification of every kernel and the path that runs without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Matrix = tuple[tuple[float, ...], ...]
Terms = tuple[tuple[int, float], ...]

_ZERO = torch.zeros((), device="cpu")


def combine(C: Matrix | Tensor, registers: Sequence[Tensor]) -> list[Tensor]:
    """The lines of C R in the accumulation dtype; see ops.combine.

    Scaled adds, not a matrix product: that would read zero columns (0 * NaN) and obey autocast.
    """
    acc = accumulation_dtype(registers)
    if isinstance(C, Tensor):
        return _of_tensor(C, registers, acc)
    merges, lines = _program(C)
    if C:
        check_columns(len(C[0]), registers)
    if merges:
        registers = list(registers)
        for j, k, ratio in merges:
            registers.append(torch.add(_as(registers[j], acc), registers[k], alpha=ratio))
    return [_line(line, registers, acc) for line in lines]


def stored(
    values: Sequence[Tensor], lines: Sequence[int], dtypes: Sequence[torch.dtype], copies: Sequence[int]
) -> list[Tensor]:
    """Line lines[o] in dtypes[o], copies[o] times along the batch, for every output o."""
    outputs = [_as(values[line], dtype) for line, dtype in zip(lines, dtypes, strict=True)]
    return [torch.cat([y] * c) if c > 1 else y for y, c in zip(outputs, copies, strict=True)]


def accumulation_dtype(registers: Sequence[Tensor]) -> torch.dtype:
    for register in registers:  # a loop: any(...) would cost as much as half an addition, at every tick
        if register.dtype == torch.float64:
            return torch.float64
    return torch.float32


def check_columns(columns: int, registers: Sequence[Tensor]) -> None:
    if columns != len(registers):
        raise ValueError(f"C has {columns} columns for {len(registers)} registers")


def _line(terms: Terms, registers: Sequence[Tensor], acc: torch.dtype) -> Tensor:
    out = None
    for k, c in terms:
        if out is None:  # 0 + c x = c x without torch.mul, which makes a tensor of c at every call (4.1 us, this 2.4)
            out = torch.add(_ZERO, _as(registers[k], acc), alpha=c)
        else:
            out.add_(registers[k], alpha=c)
    return torch.zeros_like(registers[0], dtype=acc) if out is None else out


def _of_tensor(C: Tensor, registers: Sequence[Tensor], acc: torch.dtype) -> list[Tensor]:
    """One matrix [M, N] for all images, or [B or 1, M, N]. An image whose column n is zero does not read register n."""
    C = C if C.dim() == 3 else C.unsqueeze(0)
    check_columns(C.shape[2], registers)
    device, ones = registers[0].device, [1] * (registers[0].dim() - 1)
    images = registers[0].shape[0] if registers[0].dim() else 1
    if C.shape[0] not in (1, images):
        raise ValueError(f"C has matrices for {C.shape[0]} images, the registers have {images}")
    C = C.to(device=device, dtype=acc)
    used = (C != 0).any(dim=1)
    # masked before the product: neither 0 * NaN nor its gradient
    read = [torch.where(used[:, n].view(-1, *ones), r, 0.0).to(acc) for n, r in enumerate(registers)]
    lines = []
    for m in range(C.shape[1]):
        out = torch.zeros_like(registers[0], dtype=acc)
        for n, r in enumerate(read):
            out = out + C[:, m, n].view(-1, *ones) * r
        lines.append(out)
    return lines


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


@lru_cache(maxsize=65536)
def _program(C: Matrix) -> tuple[tuple[tuple[int, int, float], ...], tuple[Terms, ...]]:
    """C as (merges, lines). Two columns that every line reads in the same ratio (the branches of CFG) are added up
    once: (j, k, ratio) appends register j + ratio * register k, and the lines then read that."""
    columns = list(zip(*C, strict=True)) if C else []
    merges: list[tuple[int, int, float]] = []
    alive = list(range(len(columns)))
    if len(C) > 1:
        for a, j in enumerate(alive):
            for k in alive[a + 1 :]:
                ratio = _ratio(columns[j], columns[k])
                if ratio is not None:
                    merges.append((j, k, ratio))
                    alive = [n for n in alive if n not in (j, k)] + [len(columns)]
                    columns.append(columns[j])
                    break
            if merges:
                break
    order = sorted(alive)
    lines = (tuple((n, columns[n][m]) for n in order if columns[n][m] != 0.0) for m in range(len(C)))
    return tuple(merges), tuple(lines)


def _ratio(u: Sequence[float], c: Sequence[float]) -> float | None:
    """c / u where that is one number (to rounding) over at least two lines, else None."""
    pairs = [(a, b) for a, b in zip(u, c, strict=True) if a != 0.0 or b != 0.0]
    if len(pairs) < 2 or any(a == 0.0 or b == 0.0 for a, b in pairs):
        return None
    ratio = pairs[0][1] / pairs[0][0]
    return ratio if all(abs(b - ratio * a) <= 1e-15 * abs(b) for a, b in pairs) else None
