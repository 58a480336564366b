r"""Integrals of empirical statistics: the coefficients of DPM-Solver-v3 before any network is called.

Gauss-Legendre quadrature of 8 nodes on panels that end at every knot and are at most 1/4 wide: exact to rounding for
what is interpolated between the knots, so that the degenerate cases are DPM-Solver and DPM-Solver++ to rounding. (The
paper uses the trapezoidal rule on the knots, appendix C.1.2; the quadrature is ours.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .dpm_v3_statistics import EmpiricalStatistics

_NODES = 8
_WIDEST = 0.25
_CHUNK = 1 << 20  # numbers that one piece of a quadrature may hold
_REMEMBERED = 1 << 24  # numbers of integrals that are kept


class Integrals(NamedTuple):
    """From lam_s to lam_t, each of the statistics' shape, with E(lam) = exp of int_{lam_s}^{lam} (l + s).

    L, S: int l, int s.        B: int e^{-S} b, where S counts from lam_s.       Z: int E B.
    Q: int E p_k for each polynomial p_0, p_1, ... that was asked for.
    """

    L: Tensor
    S: Tensor
    B: Tensor
    Z: Tensor
    Q: tuple[Tensor, ...]


def integrals(
    statistics: EmpiricalStatistics, lam_s: float, lam_t: float, roots: tuple[tuple[float, ...], ...] = ()
) -> Integrals:
    """The integrals from lam_s to lam_t, which may be smaller.

    roots: one tuple for each p_k(lam) = prod_j (lam - roots[k][j]); () is p = 1.
    """
    key = (lam_s, lam_t, roots)
    found = statistics._memo.get(key)
    if found is None:
        statistics.check_lam(lam_s)
        statistics.check_lam(lam_t)
        size = max(1, math.prod(statistics.shape)) * (4 + len(roots))
        if len(statistics._memo) * size >= _REMEMBERED:
            statistics._memo.clear()
        found = statistics._memo[key] = _integrate(statistics, lam_s, lam_t, roots)
    return found


def _integrate(
    statistics: EmpiricalStatistics, lam_s: float, lam_t: float, roots: tuple[tuple[float, ...], ...]
) -> Integrals:
    L, S, B, Z, *Q = (torch.zeros(statistics.shape, dtype=torch.float64) for _ in range(4 + len(roots)))
    for start, end in _panels(statistics, lam_s, lam_t):
        width = end - start
        nodes = start.unsqueeze(1) + width.unsqueeze(1) * _POINTS
        cells = statistics.cells(0.5 * (start + end))
        l, s, b = statistics.on(cells, nodes)  # noqa: E741
        L_in, L = _primitive(l, width, L)
        S_in, S = _primitive(s, width, S)
        B_in, B = _primitive(torch.exp(-S_in) * b, width, B)
        E = torch.exp(L_in + S_in)
        Z = Z + _total(E * B_in, width)
        for k, at in enumerate(roots):
            p = torch.ones_like(nodes)
            for root in at:
                p = p * (nodes - root)
            Q[k] = Q[k] + _total(E * p.reshape(*p.shape, *[1] * len(statistics.shape)), width)
    return Integrals(L, S, B, Z, tuple(Q))


def _panels(statistics: EmpiricalStatistics, lam_s: float, lam_t: float) -> Iterator[tuple[Tensor, Tensor]]:
    """(starts, ends) of the panels from lam_s to lam_t, in order, a piece of them at a time."""
    low, high = min(lam_s, lam_t), max(lam_s, lam_t)
    inner = statistics.lam[(statistics.lam > low) & (statistics.lam < high)].tolist()
    edges = [low]
    for edge in (*inner, high):
        count = math.ceil((edge - edges[-1]) / _WIDEST)
        edges += [edges[-1] + (edge - edges[-1]) * k / count for k in range(1, count)] + [edge]
    path = torch.tensor(edges if lam_t >= lam_s else edges[::-1], dtype=torch.float64)
    size = max(1, _CHUNK // (_NODES * max(1, math.prod(statistics.shape))))
    yield from zip(path[:-1].split(size), path[1:].split(size), strict=True)


def _gauss() -> tuple[Tensor, Tensor]:
    """Nodes in (0, 1), and the matrix of the integrals from 0 to each of them and to 1 (exact to degree 7 and 15)."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    degrees = np.arange(_NODES)
    values = np.polynomial.legendre.legvander(x, _NODES - 1)
    antiderivatives = [np.polynomial.legendre.legint(row, lbnd=-1) for row in np.eye(_NODES)]
    inner = np.stack([np.polynomial.legendre.legval(x, c) for c in antiderivatives], axis=1)
    inverse = (values * w[:, None] * (degrees + 0.5)).T  # of `values`, since the rule keeps the orthogonality
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(np.vstack([inner @ inverse, w]) / 2)


_POINTS, _RULE = _gauss()


def _total(values: Tensor, width: Tensor) -> Tensor:
    """The integral over all panels of values (p, 8, *shape) at their nodes."""
    return torch.tensordot(width.unsqueeze(1) * _RULE[-1], values, dims=2)


def _primitive(values: Tensor, width: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The integral up to each node (p, 8, *shape), and up to the end, where `before` is what came earlier."""
    sums = torch.matmul(_RULE, values.reshape(*values.shape[:2], -1)) * width.reshape(-1, 1, 1)
    sums = sums.reshape(len(values), _NODES + 1, *values.shape[2:])
    until = before + sums[:, -1].cumsum(0)
    starts = torch.cat([before.unsqueeze(0), until[:-1]])
    return starts.unsqueeze(1) + sums[:, :-1], until[-1]
