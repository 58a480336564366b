"""`gram`: inner products of tensors, image by image, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isfinite

import torch
from torch import Tensor

from ..errors import ConfigError
from . import choice, reference_gram
from .library import wants_dispatcher

MAX_REGISTERS = 6
MAX_VECTORS = 6

Matrix = tuple[tuple[float, ...], ...]


def gram(registers: Sequence[Tensor], basis: Sequence[Sequence[float]] | None = None, ones: bool = False) -> Tensor:
    """The Gram matrix G of each image, [B, K', K'] float64: G[k, m] = <v_k, v_m> over all elements of the image.

    registers: N equally shaped tensors (B, ...) of any floating dtypes, on one device.
    basis: K rows of N numbers, v_k = sum_n basis[k][n] r_n; default: the registers themselves. The v_k are formed
    element by element in float32 (float64 where a register is), products and sums are float64: for c and u close
    together ask for ((0, 1), (-1, 1)), u and c - u, and |c - u|^2 is right to 1e-7. From the products of c and u it
    would be lost.
    ones: one more row of ones, so that G[K] holds the sums of the v_k and then the number of elements.

    G is exactly symmetric. A zero coefficient is no term: a register that no row reads may hold NaN, and NaN stays in
    its image and in the rows that read it. Gradients flow to the registers that are read.
    Errors: ConfigError for registers or a basis that do not fit together. On the Triton path up to 6 registers and 6
    rows are one launch; more are split (see split_gram), and a register that is not contiguous is copied first.
    """
    rows = _identity(len(registers)) if basis is None else tuple(tuple(map(float, row)) for row in basis)
    _check(registers, rows)
    used, rows = _read(rows)
    registers = [registers[n] for n in used]
    if not choice.use_triton(registers[0]):
        return reference_gram.gram(registers, rows, ones)
    if len(registers) > MAX_REGISTERS or len(rows) > MAX_VECTORS:
        from . import split_gram

        return split_gram.gram(registers, rows, ones)
    registers = [r if r.is_contiguous() else r.contiguous() for r in registers]
    if wants_dispatcher(registers):
        from . import library_gram  # noqa: F401  defines the operator

        return torch.ops.fewstep.gram(registers, [c for row in rows for c in row], ones)
    from . import triton_gram

    return triton_gram.launch(registers, rows, ones)


def _check(registers: Sequence[Tensor], rows: Matrix) -> None:
    if not registers or not rows:
        raise ConfigError(f"gram needs a register and a row at least, got {len(registers)} and {len(rows)}")
    first = registers[0]
    for r in registers:
        if r.shape != first.shape or r.device != first.device or r.dim() == 0:
            got = ", ".join(f"{tuple(r.shape)} on {r.device}" for r in registers)
            raise ConfigError(f"gram needs registers of one shape (B, ...) on one device, got {got}")
        if not r.dtype.is_floating_point:
            raise ConfigError(f"gram needs registers of floating dtypes, got {r.dtype}")
    for row in rows:
        if len(row) != len(registers):
            raise ConfigError(f"a row of the basis has {len(row)} numbers for {len(registers)} registers")
        if not all(map(isfinite, row)):
            raise ConfigError(f"the basis must be finite, got the row {row}")


@lru_cache(maxsize=64)
def _identity(n: int) -> Matrix:
    return tuple(tuple(float(k == m) for m in range(n)) for k in range(n))


@lru_cache(maxsize=4096)
def _read(rows: Matrix) -> tuple[tuple[int, ...], Matrix]:
    """The registers that some row reads, and the rows over these alone."""
    used = tuple(n for n, column in enumerate(zip(*rows, strict=True)) if any(column))
    if not used:
        raise ConfigError("every number of the basis is zero: gram would read nothing")
    return used, tuple(tuple(row[n] for n in used) for row in rows)
