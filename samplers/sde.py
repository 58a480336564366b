r"""SDE-DPM-Solver++ 2M: the stochastic 2M, in data prediction.

With h = lam_t - lam_s, H = (1 + eta) h, m0 = x0(s), m1 the previous one, r0 = (lam_s - lam_s1) / h:

    x_t = (sigma_t / sigma_s) e^{-eta h} x + alpha_t (1 - e^{-H}) m0 + alpha_t w (m0 - m1) / r0
          + sigma_t sqrt(1 - e^{-2 eta h}) z,        w = (1 - e^{-H}) / 2 (midpoint) or 1 - (1 - e^{-H}) / H (taylor)

eta = 0 is the ODE, eta = 1 the diffusion SDE. Since e^{-h} = (alpha_s / sigma_s)(sigma_t / alpha_t), the first two
terms are alpha_t m0 + sigma_t e^{-eta h} eps, which needs no division.
Source: Lu et al. 2022, arXiv:2211.01095, appendix (eta = 1); the general eta follows k-diffusion's sampler by
Katherine Crowson, https://github.com/crowsonkb/k-diffusion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from .ddim import check_eta
from .dpm_multistep import SolverType, check_solver_type, slope_weight
from .grids import Levels
from .levels import NoiseSchedule
from .prediction import Prediction
from .scalars import exp, expm1, sqrt
from .solver import Carry, Plan, one_tick_plan, remember


@dataclass(frozen=True)
class SDEDPMpp2M:
    """Second order in the drift, one evaluation and one noise a step. eta: 0 (ODE) to 1 (SDE, default)."""

    eta: float = 1.0
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_solver_type(self.solver_type)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        plan = one_tick_plan(levels, order=2, lower_order_final=self.lower_order_final)
        if self.eta and any(t.lam < s.lam for s, t in zip(plan.nodes, plan.targets, strict=True)):
            raise ConfigError("an SDE solver cannot go up in noise; use eta = 0 for inversion")
        return plan

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        h = t.lam - s.lam
        decay = exp(-self.eta * h) if self.eta else 1.0
        x_t = t.alpha * p.x0 + (t.sigma * decay) * p.eps
        if min(plan.order[i], len(carry) + 1) == 2:
            r0 = (s.lam - plan.nodes[i - 1].lam) / h
            weight = slope_weight((1.0 + self.eta) * h, self.solver_type)
            x_t = x_t + (t.alpha * weight / r0) * (p.x0 - carry[0])
        if self.eta and float(t.sigma) > 0.0:
            x_t = x_t + (t.sigma * sqrt(-expm1(-2.0 * self.eta * h))) * noise
        return x_t, remember(s, p.x0, carry, 1)
