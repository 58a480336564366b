"""Conjugate gradients for a batch of systems, each with its own step sizes, without a word to the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels import ops
from ..kernels.ops_gram import gram


class Result(NamedTuple):
    """x: (B, ...). residual: [B] float64, |r|^2 of the r that the recurrence carries. converged: [B] bool."""

    x: Tensor
    residual: Tensor
    converged: Tensor


def conjugate_gradient(
    A: Callable[[Tensor], Tensor], b: Tensor, *, x: Tensor | None = None, iterations: int, tolerance: float = 0.0
) -> Result:
    """Solves A x = b for each image.

    A: linear, symmetric and positive definite on each image, called once per iteration on tensors like b (and once
    on `x`).       b: (B, ...) floating.       x: where to start; default 0, where A need not be called.
    The state is float32, or float64 where b is.

    Always `iterations` of them, so that nothing is read by the host and a CUDA graph can hold the loop. An image
    with |r|^2 <= tolerance^2 |b|^2 is frozen: it takes no more steps and its x stays as it is, bit for bit. A direction
    with p^T A p <= 0 is not taken either (b = 0, an A that is not positive definite, rounding at the end); the next
    direction is then r.

        alpha = r^T r / p^T A p      x <- x + alpha p      r <- r - alpha A p
        beta = r'^T r' / r^T r       p <- r' + beta p

    Errors: ConfigError for shapes that differ, iterations or a tolerance that cannot be.
    Source: Hestenes and Stiefel 1952, J. Res. Natl. Bur. Stand. 49 (6), section 3.
    """
    _check(b, x, iterations, tolerance)
    dtype = torch.float64 if b.dtype == torch.float64 else torch.float32
    b = b.to(dtype)
    bb = _squared(b)
    bound = tolerance**2 * bb
    if x is None:
        x, r, rr = torch.zeros_like(b), b, bb
    else:
        x = x.to(dtype)
        (r,) = ops.combine(((1.0, -1.0),), (b, A(x)), (dtype,))
        rr = _squared(r)
    p = r
    one, zero = torch.ones_like(rr), torch.zeros_like(rr)
    for _ in range(iterations):
        Ap = A(p)
        alpha = _ratio(rr, gram((p, Ap))[:, 0, 1], rr > bound)
        steps = torch.stack([one, alpha, zero, zero, zero, zero, one, -alpha], dim=-1).view(-1, 2, 4)
        x, r = ops.combine(steps, (x, p, r, Ap), (dtype, dtype))
        previous, rr = rr, _squared(r)
        beta = _ratio(rr, previous, alpha != 0)
        (p,) = ops.combine(torch.stack([beta, one], dim=-1).unsqueeze(1), (p, r), (dtype,))
    return Result(x, rr, rr <= bound)


def _squared(x: Tensor) -> Tensor:
    """|x|^2 per image, [B] float64."""
    return gram((x,))[:, 0, 0]


def _ratio(a: Tensor, b: Tensor, wanted: Tensor) -> Tensor:
    """a / b where that is wanted and b > 0, else 0."""
    wanted = wanted & (b > 0)
    return torch.where(wanted, a, 0.0) / torch.where(wanted, b, 1.0)


def _check(b: Tensor, x: Tensor | None, iterations: int, tolerance: float) -> None:
    if x is not None and x.shape != b.shape:
        raise ConfigError(f"x must have the shape of b, {tuple(b.shape)}, got {tuple(x.shape)}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ConfigError(f"iterations must be a whole number from 0, got {iterations!r}")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"tolerance must be a finite number from 0, got {tolerance!r}")
