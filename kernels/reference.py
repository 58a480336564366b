"""Plain torch: the specification of every kernel and the path that runs without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Matrix = tuple[tuple[float, ...], ...]
Terms = tuple[tuple[int, float], ...]

_ZERO = torch.zeros((), device="cpu")


def combine(
    C: Matrix | Tensor, registers: Sequence[Tensor], out_dtypes: Sequence[torch.dtype] | None = None
) -> tuple[Tensor, ...]:
    """See ops.combine. Scaled adds, not a matrix product: that would read zero columns (0 * NaN) and obey autocast."""
    acc = torch.float32
    for register in registers:  # a loop: any(...) would cost as much as half an addition, at every tick
        if register.dtype == torch.float64:
            acc = torch.float64
    if isinstance(C, Tensor):
        outputs = _per_image(C, registers, acc)
    else:
        merges, lines = _program(C)
        if C and len(C[0]) != len(registers):
            raise ValueError(f"C has {len(C[0])} columns for {len(registers)} registers")
        if merges:
            registers = list(registers)
            for j, k, ratio in merges:
                registers.append(torch.add(_as(registers[j], acc), registers[k], alpha=ratio))
        outputs = [_line(line, registers, acc) for line in lines]
    if out_dtypes is not None:
        outputs = [y.to(dtype) for y, dtype in zip(outputs, out_dtypes, strict=True)]
    return tuple(outputs)


def _line(terms: Terms, registers: Sequence[Tensor], acc: torch.dtype) -> Tensor:
    out = None
    for k, c in terms:
        if out is None:  # 0 + c x = c x without torch.mul, which makes a tensor of c at every call (4.1 us, this 2.4)
            out = torch.add(_ZERO, _as(registers[k], acc), alpha=c)
        else:
            out.add_(registers[k], alpha=c)
    return torch.zeros_like(registers[0], dtype=acc) if out is None else out


def _per_image(C: Tensor, registers: Sequence[Tensor], acc: torch.dtype) -> list[Tensor]:
    B, M, N = C.shape
    outputs = []
    if len(registers) != N:
        raise ValueError(f"C has {N} columns for {len(registers)} registers")
    for m in range(M):
        out = torch.zeros_like(registers[0], dtype=acc)
        for n in range(N):
            c = C[:, m, n].to(device=out.device, dtype=acc).view(B, *[1] * (out.dim() - 1))
            out = out + c * torch.where(c != 0, registers[n], 0.0)  # masked first: neither 0 * NaN nor its gradient
        outputs.append(out)
    return outputs


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
