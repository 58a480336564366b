"""`gram` as an operator of torch: what torch.compile, autograd and dispatch modes see of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import choice, ops, reference_gram

Matrix = tuple[tuple[float, ...], ...]

NAME = "fewstep::gram"
_library = torch.library.Library("fewstep", "FRAGMENT")
_library.define("gram(Tensor[] registers, float[] basis, bool ones) -> Tensor")


def rows_of(basis: Sequence[float], columns: int) -> Matrix:
    """The flat basis of the operator as rows."""
    return tuple(tuple(basis[k : k + columns]) for k in range(0, len(basis), columns))


def _gram(registers: list[Tensor], basis: list[float], ones: bool) -> Tensor:
    rows = rows_of(basis, len(registers))
    if choice.use_triton(registers[0]):
        from . import triton_gram

        return triton_gram.launch(registers, rows, ones)
    return reference_gram.gram(registers, rows, ones)


def _fake(registers: list[Tensor], basis: list[float], ones: bool) -> Tensor:
    side = len(basis) // len(registers) + ones
    return registers[0].new_empty((registers[0].shape[0], side, side), dtype=torch.float64)


def _setup(ctx: Any, inputs: tuple[list[Tensor], list[float], bool], output: Tensor) -> None:
    registers, basis, ctx.ones = inputs
    ctx.rows = rows_of(basis, len(registers))
    ctx.save_for_backward(*registers)


def _backward(ctx: Any, S: Tensor) -> tuple[list[Tensor], None, None]:
    """dL/dr_n = sum_m [basis^T (S + S^T) basis]_nm r_m + sum_k basis_kn (S + S^T)_k,ones; S = dL/dG, [B, K', K']."""
    registers = ctx.saved_tensors
    K = len(ctx.rows)
    basis = S.new_zeros((K, len(registers)))  # filled on the device: a copy from the host could not be captured
    for k, row in enumerate(ctx.rows):
        for n, c in enumerate(row):
            basis[k, n].fill_(c)
    both = S + S.mT
    gradients = ops.combine(basis.T @ both[:, :K, :K] @ basis, registers)
    if ctx.ones:
        constants = both[:, K, :K] @ basis
        shape = (-1, *[1] * (registers[0].dim() - 1))
        gradients = [g + constants[:, n].view(shape).to(g.dtype) for n, g in enumerate(gradients)]
    return [g.to(r.dtype) for g, r in zip(gradients, registers, strict=True)], None, None


_library.impl("gram", _gram, "CompositeExplicitAutograd")
torch.library.register_fake(NAME, _fake, lib=_library)
torch.library.register_autograd(NAME, _backward, setup_context=_setup, lib=_library)
