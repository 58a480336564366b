"""Scalar functions that accept a Python float or a 0-d tensor.

Solvers use these instead of ``math``: with tensor levels ``math.exp`` would detach and silently drop the gradient
with respect to a noise level. On floats they are ``math``'s own functions, with the limits at infinity made total.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Scalar = float | Tensor


def exp(a: Scalar) -> Scalar:
    return torch.exp(a) if isinstance(a, Tensor) else math.exp(a)


def expm1(a: Scalar) -> Scalar:
    return torch.expm1(a) if isinstance(a, Tensor) else math.expm1(a)


def sqrt(a: Scalar) -> Scalar:
    return torch.sqrt(a) if isinstance(a, Tensor) else math.sqrt(a)


def hypot(a: Scalar, b: Scalar) -> Scalar:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return sqrt(a * a + b * b)
    return math.hypot(a, b)


def log(a: Scalar) -> Scalar:
    """Natural logarithm with ``log(0) = -inf``."""
    if isinstance(a, Tensor):
        return torch.log(a)
    return math.log(a) if a != 0 else -math.inf


def finite(a: Scalar) -> bool:
    return math.isfinite(float(a))
