r"""DPM-Solver and DPM-Solver++ multistep of order 2 and 3, in noise (2M, 3M) and data prediction (++ 2M, ++ 3M).

With h = lam_t - lam_s, m0 the prediction at s, m1, m2 the previous ones at s1, s2, r0 = (lam_s - lam_s1) / h,
r1 = (lam_s1 - lam_s2) / h, and R, A, g_n of `exponential`:

    D1_0 = (m0 - m1) / r0,    D1_1 = (m1 - m2) / r1
    2M:  x_t = R x - A g_0 m0 - A w D1_0,                w = g_0 / 2 (midpoint) or g_1 (taylor)
    3M:  D1 = D1_0 + r0 / (r0 + r1) (D1_0 - D1_1),    D2 = 2 (D1_0 - D1_1) / (r0 + r1)
         x_t = R x - A g_0 m0 - A (g_1 D1 + g_2 D2)

The first two terms are the first-order step alpha_t x0 + sigma_t eps, which needs no division.
Source: Lu et al. 2022, arXiv:2206.00927 (noise) and arXiv:2211.01095, algorithm 2 and appendix (data). The factor 2 in
D2 is what Taylor's formula asks for; released code leaves it out, and its "third order" converges at order 2: that
form is `DPMpp3MAsReleased`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .exponential import DATA, NOISE, SolverType, Space, check_solver_type, slope_weight
from .grids import Levels
from .levels import NoiseSchedule
from .phi import g
from .prediction import Prediction
from .solver import Carry, Plan, first_order, one_tick_plan, remember


@dataclass(frozen=True)
class DPMpp2M:
    """Second order, one evaluation a step, in data prediction.

    solver_type: "midpoint" (the usual one) or "taylor" (exact for m linear in lam; diffusers calls it "heun").
    lower_order_final: the last step is of first order.
    """

    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = True
    space: ClassVar[Space] = DATA

    def __post_init__(self) -> None:
        check_solver_type(self.solver_type)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return one_tick_plan(levels, order=2, lower_order_final=self.lower_order_final)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t, m0 = plan.nodes[i], plan.targets[i], self.space.m(p)
        x_t = first_order(t, p)
        if min(plan.order[i], len(carry) + 1) == 2:
            D1_0 = first_difference(plan, i, m0, carry)
            x_t = x_t - (self.space.A(t) * slope_weight(self.space, t.lam - s.lam, self.solver_type)) * D1_0
        return x_t, remember(s, m0, carry, 1)


@dataclass(frozen=True)
class DPMpp3M:
    """Third order, one evaluation a step, in data prediction; the first steps are of order 1 and 2.

    Measured slope on a mixture (tests/test_solvers.py, n = 96 to 384): 3.0, with lower_order_final=False and exact
    starting values.
    lower_order_final: the last two steps are of order 2 and 1.
    """

    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = True
    space: ClassVar[Space] = DATA
    second_difference: ClassVar[float] = 2.0
    second_order_form: ClassVar[SolverType] = "taylor"

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return one_tick_plan(levels, order=3, lower_order_final=self.lower_order_final)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t, m0 = plan.nodes[i], plan.targets[i], self.space.m(p)
        order = min(plan.order[i], len(carry) + 1)
        x_t, A = first_order(t, p), self.space.A(t)
        if order == 2:
            weight = slope_weight(self.space, t.lam - s.lam, self.second_order_form)
            x_t = x_t - (A * weight) * first_difference(plan, i, m0, carry)
        elif order == 3:
            z = self.space.z(t.lam - s.lam)
            D1, D2 = two_differences(plan, i, m0, carry, self.second_difference)
            x_t = x_t - (A * g(1, z)) * D1 - (A * g(2, z)) * D2
        return x_t, remember(s, m0, carry, 2)


@dataclass(frozen=True)
class DPMpp3MAsReleased(DPMpp3M):
    """The "third order" of released code, with half of D2 and the midpoint form in its second-order steps.

    For comparisons with published figures. Measured slope on a mixture: 2.0 (tests/test_solvers.py, n = 96 to 384);
    DPMpp3M's is 3.0. It equals diffusers' DPMSolverMultistepScheduler(solver_order=3) (tests/test_scheduler_peers.py).
    """

    second_difference: ClassVar[float] = 1.0
    second_order_form: ClassVar[SolverType] = "midpoint"


@dataclass(frozen=True)
class DPM2M(DPMpp2M):
    """DPMpp2M's rule in noise prediction. An edit of x would look like a jump of eps to its history, so it drops it."""

    keeps_edits: ClassVar[bool] = False
    space: ClassVar[Space] = NOISE


@dataclass(frozen=True)
class DPM3M(DPMpp3M):
    """DPMpp3M's rule in noise prediction. A change made to x looks like a jump of eps to its history: see DPM2M."""

    keeps_edits: ClassVar[bool] = False
    space: ClassVar[Space] = NOISE


def first_difference(plan: Plan, i: int, m0: Any, carry: Carry) -> Any:
    """D1_0 = (m0 - m1) / r0: h m' to first order."""
    s, s1 = plan.nodes[i], plan.nodes[i - 1]
    r0 = (s.lam - s1.lam) / (plan.targets[i].lam - s.lam)
    return (m0 - carry[0]) / r0


def two_differences(plan: Plan, i: int, m0: Any, carry: Carry, factor: float = 2.0) -> tuple[Any, Any]:
    """D1, D2: h m' to second order and h^2 m'' to first, over the last three nodes."""
    s, s1, s2 = plan.nodes[i], plan.nodes[i - 1], plan.nodes[i - 2]
    h = plan.targets[i].lam - s.lam
    r0, r1 = (s.lam - s1.lam) / h, (s1.lam - s2.lam) / h
    D1_0, D1_1 = (m0 - carry[0]) / r0, (carry[0] - carry[1]) / r1
    bend = D1_0 - D1_1
    return D1_0 + (r0 / (r0 + r1)) * bend, (factor / (r0 + r1)) * bend
