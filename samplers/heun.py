r"""Heun's second-order method on the probability-flow ODE in xbar = x / alpha, sbar = sigma / alpha.

    x'  = Euler from s to t with eps_s
    x_t = Euler from s to t with (eps_s + eps_t) / 2,    eps_t evaluated at x'

The last step, to sigma = 0, is Euler's, as is a step from alpha = 0.
Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .euler import euler_step
from .grids import Levels, check_levels
from .levels import NoiseSchedule
from .prediction import Prediction
from .solver import Carry, Plan, first_order, has_finite_h


@dataclass(frozen=True)
class Heun:
    """Second order, two evaluations a step (one in the last, to sigma = 0)."""

    keeps_edits: ClassVar[bool] = False

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        check_levels(levels)
        ticks = []
        for k, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
            if has_finite_h(s, t):
                ticks += [(s, t, k, 0, 2), (t, t, k, 1, 2)]
            else:
                ticks += [(s, t, k, 0, 1)]
        return Plan.of(ticks)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        if plan.order[i] == 1:
            return first_order(t, p), ()
        if plan.stage[i] == 0:
            return euler_step(s, t, x, p.eps), (x, p.eps)
        if not carry:  # x was edited, or the run begins here: it already stands at t
            return x, ()
        start, eps_s = carry
        return euler_step(plan.nodes[i - 1], t, start, 0.5 * (eps_s + p.eps)), ()
