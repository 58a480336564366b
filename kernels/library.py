"""`combine` as an operation of torch's library: opaque to torch.compile, with shapes for its tracing and gradients.

Registered at the lowest level, since the convenient decorators cost several times a launch. Where nothing needs the
dispatcher (no gradient, no tracing, no dispatch mode that counts) the launcher is called directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import IncompatibleError
from . import choice, reference

Matrix = tuple[tuple[float, ...], ...]

_REST = "Tensor[] registers, int[] lines, ScalarType[] dtypes, int[] copies) -> Tensor[]"
_LIBRARY = torch.library.Library("fewstep", "FRAGMENT")
_LIBRARY.define(f"combine(float[] C, {_REST}")  # M * N numbers, row by row
_LIBRARY.define(f"combine_each(Tensor C, {_REST}")  # [B or 1, M, N]


def combine(
    C: Matrix | Tensor,
    registers: Sequence[Tensor],
    lines: Sequence[int],
    dtypes: Sequence[torch.dtype],
    copies: Sequence[int],
) -> Sequence[Tensor]:
    """Output o: line lines[o] of C R, in dtypes[o], copies[o] times along the batch. One launch.

    C: [M][N] numbers or a tensor [B or 1, M, N], M <= 4, N <= 8.       registers: contiguous, equally shaped.
    """
    if not wants_dispatcher(registers, C):
        return _run(C, registers, lines, dtypes, copies)
    if isinstance(C, Tensor):
        return torch.ops.fewstep.combine_each.default(C, registers, lines, dtypes, copies)
    flat = [c for line in C for c in line]
    return torch.ops.fewstep.combine.default(flat, registers, lines, dtypes, copies)


def wants_dispatcher(tensors: Sequence[Tensor], C: Any = None) -> bool:
    """Whether somebody besides the kernel must see the call: autograd, torch.compile, a dispatch mode."""
    if forward_ad._current_level >= 0:
        _refuse_tangents((*tensors, C) if isinstance(C, Tensor) else tensors)
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    if not torch.is_grad_enabled():
        return False
    return any(t.requires_grad for t in tensors) or (isinstance(C, Tensor) and C.requires_grad)


def _refuse_tangents(tensors: Sequence[Tensor]) -> None:
    """A launch would drop the derivative in silence."""
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise IncompatibleError(
            f"the Triton kernels have no forward-mode derivative: use reverse mode, or {choice.VARIABLE}=torch"
        )


def _run(C: Matrix | Tensor, registers: Sequence[Tensor], lines: Any, dtypes: Any, copies: Any) -> list[Tensor]:
    if choice.use_triton(registers[0]):
        from . import triton_combine

        return triton_combine.launch(C, registers, lines, dtypes, copies)
    return reference.stored(reference.combine(C, registers), lines, dtypes, copies)


def _shared(C: list[float], registers: Any, lines: Any, dtypes: Any, copies: Any) -> list[Tensor]:
    return _run(_unflattened(C, len(registers)), registers, lines, dtypes, copies)


def _unflattened(C: Sequence[float], N: int) -> Matrix:
    return tuple(tuple(C[k : k + N]) for k in range(0, len(C), N))


def _fake(C: Any, registers: list[Tensor], lines: list[int], dtypes: list[Any], copies: list[int]) -> list[Tensor]:
    first = registers[0]
    shapes = [(c * first.shape[0], *first.shape[1:]) if c != 1 else first.shape for c in copies]
    return [first.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.C, registers, ctx.lines, _, ctx.copies = inputs
    ctx.register_dtypes = [r.dtype for r in registers]


def _save_each(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    C, registers, ctx.lines, _, ctx.copies = inputs
    ctx.register_dtypes = [r.dtype for r in registers]
    ctx.wants_C = C.requires_grad
    ctx.save_for_backward(C, *(registers if C.requires_grad else ()))


def _cotangents(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    """One tensor (B, ...) per output and copy that has a gradient, and the line of C that it belongs to."""
    found, lines = [], []
    for grad, line, copies in zip(grads, ctx.lines, ctx.copies, strict=True):
        if grad is not None:
            found += grad.chunk(copies) if copies > 1 else [grad]
            lines += [line] * copies
    return found, lines


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """The gradient of a register is C^T times the gradients of the lines: another `combine`."""
    from .ops import combine as public

    cotangents, lines = _cotangents(ctx, grads)
    if not cotangents:
        return None, [None] * len(ctx.register_dtypes), None, None, None
    C = _unflattened(ctx.C, len(ctx.register_dtypes))
    transposed = tuple(tuple(C[m][k] for m in lines) for k in range(len(ctx.register_dtypes)))
    read = [k for k, column in enumerate(transposed) if any(column)]
    found = public(tuple(transposed[k] for k in read), cotangents, [ctx.register_dtypes[k] for k in read])
    by_register = dict(zip(read, found, strict=True))
    return None, [by_register.get(k) for k in range(len(ctx.register_dtypes))], None, None, None


def _backward_each(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """As above with a matrix per image, and dC[m, n] = <gradient of line m, register n> where n was read."""
    from .ops import combine as public

    C, *registers = ctx.saved_tensors
    cotangents, lines = _cotangents(ctx, grads)
    if not cotangents:
        return None, [None] * len(ctx.register_dtypes), None, None, None
    found = public(C[:, lines].transpose(1, 2), cotangents, ctx.register_dtypes)
    grad_C = _grad_of_matrix(C, registers, cotangents, lines) if ctx.wants_C else None
    return grad_C, list(found), None, None, None


def _grad_of_matrix(C: Tensor, registers: list[Tensor], cotangents: list[Tensor], lines: list[int]) -> Tensor:
    used = (C != 0).any(dim=1)  # [B or 1, N]
    rows = []
    for m in range(C.shape[1]):
        mine = [g.double() for g, line in zip(cotangents, lines, strict=True) if line == m]
        cells = []
        for k, r in enumerate(registers):
            mask = used[:, k].to(r.device).view(-1, *[1] * (r.dim() - 1))
            read = torch.where(mask, r.double(), 0.0)
            cells.append((sum(mine) * read).flatten(1).sum(1) if mine else read.flatten(1).sum(1) * 0.0)
        rows.append(torch.stack(cells, dim=1))
    grad = torch.stack(rows, dim=1)  # [B, M, N]
    return (grad if C.shape[0] == grad.shape[0] else grad.sum(0, keepdim=True)).to(device=C.device, dtype=C.dtype)


for _name, _function in (("combine", _shared), ("combine_each", _run)):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _key)
    torch.library.register_fake(f"fewstep::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("fewstep::combine", _backward, setup_context=_save, lib=_LIBRARY)
torch.library.register_autograd("fewstep::combine_each", _backward_each, setup_context=_save_each, lib=_LIBRARY)
