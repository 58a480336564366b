r"""Euler's method on the probability-flow ODE in Karras et al.'s variables xbar = x / alpha, sbar = sigma / alpha.

    d xbar / d sbar = eps,        x_t = alpha_t (x_s / alpha_s + (sbar_t - sbar_s) eps)

Source: Karras et al. 2022, arXiv:2206.00364, equation 4 and algorithm 1 without its correction. As a map it is DDIM
with eta = 0, reached from the other side; both exist because people look for both, and a test holds them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .grids import Levels
from .levels import Level, NoiseSchedule
from .prediction import Prediction
from .solver import Carry, Plan, first_order, one_tick_plan


@dataclass(frozen=True)
class Euler:
    """First order, one evaluation a step."""

    keeps_edits: ClassVar[bool] = True

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return one_tick_plan(levels)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        if float(s.alpha) == 0.0:  # xbar is infinite
            return first_order(t, p), ()
        return euler_step(s, t, x, p.eps), ()


def euler_step(s: Level, t: Level, x: Any, slope: Any) -> Any:
    """alpha_t (x / alpha_s + (sbar_t - sbar_s) slope), without dividing by alpha_t."""
    ratio = t.alpha / s.alpha
    return ratio * x + (t.sigma - ratio * s.sigma) * slope
