r"""DPM-Solver-fast: a budget of K evaluations spent on steps of order 3, with what is left on lower orders at the end.

A grid of n = K steps is given. Its nodes are joined into steps of 3, 2 or 1 of them, and a step of order k takes k
evaluations, so a run costs exactly K whatever the grid. With K = 3 q + r the orders are

    r = 0: 3, ..., 3, 2, 1        r = 1: 3, ..., 3, 1        r = 2: 3, ..., 3, 2.

A step to sigma = 0 (or from alpha = 0) is of first order and costs one; then r = 2 becomes 3, ..., 3, 2, 2, 1, and
K is met all the same. Inner nodes are placed by lam.
Source: Lu et al. 2022, arXiv:2206.00927, section 3.4 and appendix; the partition for sigma = 0 is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from .exponential import DATA, NOISE, SolverType, Space, check_solver_type
from .grids import Levels, check_levels
from .levels import NoiseSchedule
from .singlestep import THIRDS, Singlestep, blocks_plan
from .solver import Plan, has_finite_h


@dataclass(frozen=True)
class DPMFast(Singlestep):
    """Singlestep of orders 3, 2 and 1 with one evaluation per interval of the grid, in noise prediction.

    solver_type: see DPMpp3S and DPMpp2S.
    """

    solver_type: SolverType = "midpoint"
    space: ClassVar[Space] = NOISE

    def __post_init__(self) -> None:
        check_solver_type(self.solver_type)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        check_levels(levels)
        orders = [order for run in runs_of(levels) for order in orders_of(run)]
        joined = tuple(levels[k] for k in (0, *accumulate(orders)))
        return blocks_plan(joined, orders, schedule, {2: (0.5,), 3: THIRDS})


@dataclass(frozen=True)
class DPMppFast(DPMFast):
    """DPMFast in data prediction."""

    space: ClassVar[Space] = DATA


def runs_of(levels: Levels) -> list[Levels]:
    """The levels, divided at every turn (restarts), which stays the end of one run and the start of the next."""
    falls = [float(t.lam) > float(s.lam) for s, t in zip(levels, levels[1:], strict=False)]
    turns = [0, *(k for k in range(1, len(falls)) if falls[k] != falls[k - 1]), len(falls)]
    return [levels[a : b + 1] for a, b in zip(turns, turns[1:], strict=False)]


def orders_of(levels: Levels) -> list[int]:
    """The orders of the steps over a run without a turn; they sum to its number of intervals."""
    K = len(levels) - 1
    if K == 1:
        return [1]
    first, last = (not has_finite_h(*pair) for pair in (levels[:2], levels[-2:]))
    return [1] * first + partition(K - first - last, low_end=last) + [1] * last


def partition(K: int, low_end: bool) -> list[int]:
    """Orders that sum to K, falling.       low_end: a first-order step follows already."""
    threes, rest = divmod(K, 3)
    if low_end:
        tail = {0: [], 1: [2, 2] if threes else [1], 2: [2]}[rest]
    else:
        tail = {0: [2, 1] if threes else [], 1: [1], 2: [2]}[rest]
    return [3] * ((K - sum(tail)) // 3) + tail
