r"""DPM-Solver++ singlestep of order 2 (2S), in data prediction.

With h = lam_t - lam_s and an inner node s1 at lam_s + r1 h:

    u   = (sigma_s1 / sigma_s) x - alpha_s1 (e^{-r1 h} - 1) m0,                      m0 = x0(s), m1 = x0(u, s1)
    x_t = (sigma_t / sigma_s) x - alpha_t q1 m0 + alpha_t w (m1 - m0) / r1,          w = -q1 / 2 or q2

Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 (midpoint form); "taylor" is exact for x0 linear in lam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from .dpm_multistep import SolverType, check_solver_type, slope_weight
from .grids import Levels, check_levels
from .levels import NoiseSchedule, level_at
from .phi import q1
from .prediction import Prediction
from .solver import Carry, Plan, first_order, has_finite_h


@dataclass(frozen=True)
class DPMpp2S:
    """Second order, two evaluations a step (one where the step touches alpha = 0 or sigma = 0).

    r1: where the inner node lies, 0 < r1 < 1.        solver_type: "midpoint" or "taylor".
    """

    r1: float = 0.5
    solver_type: SolverType = "midpoint"
    keeps_edits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_solver_type(self.solver_type)
        if not 0.0 < self.r1 < 1.0:
            raise ConfigError(f"r1 must lie between 0 and 1, got {self.r1!r}")

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        check_levels(levels)
        ticks = []
        for k, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
            if has_finite_h(s, t):
                s1 = level_at(schedule, s.lam + self.r1 * (t.lam - s.lam))
                ticks += [(s, s1, k, 0, 2), (s1, t, k, 1, 2)]
            else:
                ticks += [(s, t, k, 0, 1)]
        return Plan.of(ticks)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        t = plan.targets[i]
        if plan.stage[i] == 0:
            return first_order(t, p), (x, p.x0) if plan.order[i] == 2 else ()
        if not carry:  # x was edited, or the run begins here: the rest of the step is a step of first order
            return first_order(t, p), ()
        s = plan.nodes[i - 1]
        x_s, m0 = carry
        h = t.lam - s.lam
        base = (t.sigma / s.sigma) * x_s - (t.alpha * q1(h)) * m0
        return base + (t.alpha * slope_weight(h, self.solver_type) / self.r1) * (p.x0 - m0), ()
