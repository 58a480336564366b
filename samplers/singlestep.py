r"""The steps of singlestep DPM-Solver and DPM-Solver++, of order 1 to 3, in both predictions.

From x at s with m0, inner nodes s1 at lam_s + r1 h and s2 at lam_s + r2 h, and R, A, g_n, z of `exponential`
(primes: towards the inner node):

    u1  = R' x - A' g_0(r1 z) m0                                                    m1 at (u1, s1)
    order 2:  x_t = R x - A g_0(z) m0 - A w (m1 - m0) / r1                          w = g_0(z) / 2 or g_1(z)
    u2  = R' x - A' g_0(r2 z) m0 - A' (r2 / r1) g_1(r2 z) (m1 - m0)                 m2 at (u2, s2)
    order 3:  x_t = R x - A g_0(z) m0 - A g_1(z) (m2 - m0) / r2                     "midpoint"
              x_t = R x - A g_0(z) m0 - A (g_1(z) D1 + g_2(z) D2)                   "taylor"
              D1_0 = (m1 - m0) / r1,    D1_1 = (m2 - m0) / r2
              D1 = (r2 D1_0 - r1 D1_1) / (r2 - r1),    D2 = 2 (D1_1 - D1_0) / (r2 - r1)

Inner nodes are placed by lam, on every grid, and r2 = 2/3: with any other r2 both forms converge at order 2 only.
Source: Lu et al. 2022, arXiv:2206.00927, algorithms 1, 2 and appendix; arXiv:2211.01095, algorithm 1 and appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from .exponential import SolverType, Space, first_order_from, slope_weight
from .grids import Levels, check_levels
from .levels import Level, NoiseSchedule, level_at
from .phi import g
from .prediction import Prediction
from .solver import Carry, Plan, first_order, has_finite_h

THIRDS = (1.0 / 3.0, 2.0 / 3.0)
Nodes = dict[int, tuple[float, ...]]  # order of a step -> where its inner nodes lie


def blocks_plan(levels: Levels, orders: Sequence[int], schedule: NoiseSchedule, nodes: Nodes) -> Plan:
    """One step of orders[k] over levels[k] -> levels[k + 1]; of order 1 where that touches alpha = 0 or sigma = 0."""
    check_levels(levels)
    ticks = []
    for k, wanted in enumerate(orders):
        s, t = levels[k], levels[k + 1]
        order = wanted if has_finite_h(s, t) else 1
        inner = [level_at(schedule, float(s.lam + r * (t.lam - s.lam))) for r in nodes.get(order, ())]
        visited = [s, *inner, t]
        ticks += [(a, b, k, stage, order) for stage, (a, b) in enumerate(zip(visited, visited[1:], strict=False))]
    return Plan.of(ticks)


class Singlestep:
    """What singlestep solvers share: the step. They differ in their plans, and are frozen dataclasses."""

    solver_type: SolverType
    keeps_edits: ClassVar[bool] = False
    space: ClassVar[Space]

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        t, stage, order, m = plan.targets[i], plan.stage[i], plan.order[i], self.space.m(p)
        if stage == 0:
            return first_order(t, p), (x, m) if order > 1 else ()
        if not carry:  # x was edited, or the run begins here: the rest of the step is steps of first order
            return first_order(t, p), ()
        x_s, m0 = carry[:2]
        start = i - stage
        s, inner = plan.nodes[start], plan.nodes[start + 1 : i + 1]
        if order == 2:
            return second_order(self.space, s, inner[0], t, x_s, m0, m, self.solver_type), ()
        if stage == 1:
            u2 = third_order_inner(self.space, s, inner[0], t, x_s, m0, m)
            return u2, (x_s, m0, m) if self.solver_type == "taylor" else (x_s, m0)
        if self.solver_type == "taylor":
            return third_order_taylor(self.space, s, inner, t, x_s, m0, carry[2], m), ()
        r2 = place(s, inner[1], t)
        z = self.space.z(t.lam - s.lam)
        return first_order_from(self.space, s, t, x_s, m0) - (self.space.A(t) * g(1, z) / r2) * (m - m0), ()


def second_order(space: Space, s: Level, s1: Level, t: Level, x: Any, m0: Any, m1: Any, form: SolverType) -> Any:
    """x_t of order 2 from x, m0 at s and m1 at s1."""
    weight = space.A(t) * slope_weight(space, t.lam - s.lam, form) / place(s, s1, t)
    return first_order_from(space, s, t, x, m0) - weight * (m1 - m0)


def third_order_inner(space: Space, s: Level, s1: Level, s2: Level, x: Any, m0: Any, m1: Any) -> Any:
    """u2 at s2 from x, m0 at s and m1 at s1."""
    weight = space.A(s2) * g(1, space.z(s2.lam - s.lam)) / place(s, s1, s2)
    return first_order_from(space, s, s2, x, m0) - weight * (m1 - m0)


def third_order_taylor(
    space: Space, s: Level, inner: Sequence[Level], t: Level, x: Any, m0: Any, m1: Any, m2: Any
) -> Any:
    """x_t of order 3 from x, m0 at s and m1, m2 at the inner nodes."""
    r1, r2 = (place(s, node, t) for node in inner)
    z = space.z(t.lam - s.lam)
    D1_0, D1_1 = (m1 - m0) / r1, (m2 - m0) / r2
    D1 = (r2 * D1_0 - r1 * D1_1) / (r2 - r1)
    D2 = (2.0 / (r2 - r1)) * (D1_1 - D1_0)
    return first_order_from(space, s, t, x, m0) - (space.A(t) * g(1, z)) * D1 - (space.A(t) * g(2, z)) * D2


def place(s: Level, node: Level, t: Level) -> Any:
    """r of lam_node = lam_s + r (lam_t - lam_s)."""
    return (node.lam - s.lam) / (t.lam - s.lam)
