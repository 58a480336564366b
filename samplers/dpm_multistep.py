r"""DPM-Solver++ multistep: 2M and the true third-order 3M, in data prediction.

With h = lam_t - lam_s, m0 = x0(s), m1, m2 the previous ones at s1, s2 and r0 = (lam_s - lam_s1) / h,
r1 = (lam_s1 - lam_s2) / h:

    D1_0 = (m0 - m1) / r0,    D1_1 = (m1 - m2) / r1
    2M:  x_t = (sigma_t / sigma_s) x - alpha_t q1 m0 + alpha_t w D1_0,        w = -q1 / 2 (midpoint) or q2 (taylor)
    3M:  D1 = D1_0 + r0 / (r0 + r1) (D1_0 - D1_1),    D2 = 2 (D1_0 - D1_1) / (r0 + r1)
         x_t = (sigma_t / sigma_s) x - alpha_t q1 m0 + alpha_t q2 D1 - alpha_t q3 D2

The first two terms are the first-order step alpha_t m0 + sigma_t eps, which needs no division.
Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2 and appendix. The factor 2 in D2 is what Taylor's formula asks
for; released code leaves it out, and its "third order" converges at order 2 (docs/decisions.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..errors import ConfigError
from .grids import Levels
from .levels import NoiseSchedule
from .phi import q1, q2, q3
from .prediction import Prediction
from .scalars import Scalar
from .solver import Carry, Plan, first_order, one_tick_plan, remember

SolverType = Literal["midpoint", "taylor"]


@dataclass(frozen=True)
class DPMpp2M:
    """Second order, one evaluation a step.

    solver_type: "midpoint" (the usual one) or "taylor" (exact for x0 linear in lam; diffusers calls it "heun").
    lower_order_final: the last step is of first order.
    """

    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_solver_type(self.solver_type)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return one_tick_plan(levels, order=2, lower_order_final=self.lower_order_final)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        x_t = first_order(t, p)
        if min(plan.order[i], len(carry) + 1) == 2:
            h = t.lam - s.lam
            r0 = (s.lam - plan.nodes[i - 1].lam) / h
            x_t = x_t + (t.alpha * slope_weight(h, self.solver_type) / r0) * (p.x0 - carry[0])
        return x_t, remember(s, p.x0, carry, 1)


@dataclass(frozen=True)
class DPMpp3M:
    """Third order, one evaluation a step; the first steps are of order 1 and 2.

    lower_order_final: the last two steps are of order 2 and 1.
    """

    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = True

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return one_tick_plan(levels, order=3, lower_order_final=self.lower_order_final)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        order = min(plan.order[i], len(carry) + 1)
        x_t = first_order(t, p)
        if order >= 2:
            h = t.lam - s.lam
            r0 = (s.lam - plan.nodes[i - 1].lam) / h
            D1 = D1_0 = (p.x0 - carry[0]) / r0
            if order == 3:
                r1 = (plan.nodes[i - 1].lam - plan.nodes[i - 2].lam) / h
                D1_1 = (carry[0] - carry[1]) / r1
                D1 = D1_0 + (r0 / (r0 + r1)) * (D1_0 - D1_1)
                D2 = (2.0 / (r0 + r1)) * (D1_0 - D1_1)
                x_t = x_t - (t.alpha * q3(h)) * D2
            x_t = x_t + (t.alpha * q2(h)) * D1
        return x_t, remember(s, p.x0, carry, 2)


def slope_weight(h: Scalar, solver_type: SolverType) -> Scalar:
    """The weight of the first difference in a second-order step: -q1 / 2 (midpoint) or q2 (taylor)."""
    return -0.5 * q1(h) if solver_type == "midpoint" else q2(h)


def check_solver_type(solver_type: str) -> None:
    """ConfigError unless it is one of the two forms."""
    if solver_type not in ("midpoint", "taylor"):
        raise ConfigError(f"solver_type must be 'midpoint' or 'taylor', got {solver_type!r}")
