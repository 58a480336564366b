r"""SDE-DPM-Solver++ of order 1, 2 and 3 in the drift (1, 2M, 3M), in data prediction.

They follow the SDE that eta > 0 puts beside the probability-flow ODE (eta = 0); eta = 1 is the reverse of the forward
diffusion. With y = x / sigma, and dw of unit variance in lam,

    dy = (-eta y + (1 + eta) e^lam x0) dlam + sqrt(2 eta) dw,

so that with h = lam_t - lam_s, H = (1 + eta) h, m0 = x0(s), and D1, D2 of `dpm_multistep` (h m' and h^2 m''):

    1:   x_t = (sigma_t / sigma_s) e^{-eta h} x - alpha_t g_0(-H) m0 + sigma_t sqrt(1 - e^{-2 eta h}) z
    2M:  ... - alpha_t w D1_0,                              w = g_0(-H) / 2 (midpoint) or g_1(-H) (taylor)
    3M:  ... - alpha_t (g_1(-H) D1 + g_2(-H) D2)

The noise, and the drift for an x0 that is a polynomial in lam, are exact. With eta = 0 these are DDIM, DPM-Solver++ 2M
and 3M, to the bit. Since e^{-h} = (alpha_s / sigma_s)(sigma_t / alpha_t), the first two terms are
alpha_t m0 + sigma_t e^{-eta h} eps, which needs no division.

Source: Lu et al. 2022, arXiv:2211.01095, appendix (1 and 2M, eta = 1); any eta, and 3M, follow k-diffusion's samplers
by Katherine Crowson, https://github.com/crowsonkb/k-diffusion, but for D2: there it lacks the factor 2 of Taylor's
formula, as in the ODE's 3M. Times H, D1 and D2 would be derivatives in (1 + eta) lam: the powers cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from .ddim import check_eta
from .dpm_multistep import first_difference, two_differences
from .exponential import DATA, SolverType, check_solver_type, slope_weight
from .grids import Levels
from .levels import Level, NoiseSchedule
from .phi import g
from .prediction import Prediction
from .scalars import exp, expm1, sqrt
from .solver import Carry, Plan, one_tick_plan, remember


@dataclass(frozen=True)
class SDEDPMpp1:
    """First order, one evaluation and one noise a step. eta: 0 (ODE) to 1 (SDE, default), where it is DDIM(eta=1).

    Weak order 1: measured slope 0.94 of the end's covariance (tests/test_sde_moments.py, Gaussian data, n = 50 to 200).
    """

    eta: float = 1.0
    keeps_edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return falling(one_tick_plan(levels), self.eta)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        return with_noise(s, t, self.eta, first_order_sde(s, t, self.eta, p), noise), ()


@dataclass(frozen=True)
class SDEDPMpp2M:
    """Second order in the drift, one evaluation and one noise a step. eta: 0 (ODE) to 1 (SDE, default).

    Weak order 2: measured slopes are 2.0 of the end's covariance (tests/test_sde_moments.py, Gaussian data, n = 50 to
    200) and 2.1 of an expectation over a mixture (tests/test_sde_weak_order.py).
    solver_type: "midpoint" or "taylor" (its drift is exact for x0 linear in lam; diffusers calls it "heun").
    lower_order_final: the last step is of first order.
    """

    eta: float = 1.0
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_solver_type(self.solver_type)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return falling(one_tick_plan(levels, order=2, lower_order_final=self.lower_order_final), self.eta)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        x_t = first_order_sde(s, t, self.eta, p)
        if min(plan.order[i], len(carry) + 1) == 2:
            D1_0 = first_difference(plan, i, p.x0, carry)
            H = (1.0 + self.eta) * (t.lam - s.lam)
            x_t = x_t - (t.alpha * slope_weight(DATA, H, self.solver_type)) * D1_0
        return with_noise(s, t, self.eta, x_t, noise), remember(s, p.x0, carry, 1)


@dataclass(frozen=True)
class SDEDPMpp3M:
    """Third order in the drift, one evaluation and one noise a step. eta: 0 (ODE) to 1 (SDE, default).

    Weak order 2, since noise is not resolved inside a step: measured slopes are 2.8 of the drift's gain and 2.1 of the
    end's covariance, with a third of 2M's error at n = 200 (tests/test_sde_moments.py, Gaussian data). Its differences
    amplify noise where lam moves far in a step: it wants grids even in lam ("lambda", "karras") and 20 steps or more.
    lower_order_final: the last two steps are of order 2 and 1. The first two are too, for lack of history.
    """

    eta: float = 1.0
    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return falling(one_tick_plan(levels, order=3, lower_order_final=self.lower_order_final), self.eta)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        order = min(plan.order[i], len(carry) + 1)
        x_t = first_order_sde(s, t, self.eta, p)
        if order > 1:
            z = -((1.0 + self.eta) * (t.lam - s.lam))
            if order == 2:
                x_t = x_t - (t.alpha * g(1, z)) * first_difference(plan, i, p.x0, carry)
            else:
                D1, D2 = two_differences(plan, i, p.x0, carry)
                x_t = x_t - (t.alpha * g(1, z)) * D1 - (t.alpha * g(2, z)) * D2
        return with_noise(s, t, self.eta, x_t, noise), remember(s, p.x0, carry, 2)


def falling(plan: Plan, eta: float) -> Plan:
    """`plan`, or ConfigError where eta > 0 and a tick goes up in noise: the SDE runs towards the image only."""
    if eta and any(float(t.lam) < float(s.lam) for s, t in zip(plan.nodes, plan.targets, strict=True)):
        raise ConfigError("an SDE solver cannot go up in noise; use eta = 0 for inversion")
    return plan


def first_order_sde(s: Level, t: Level, eta: float, p: Prediction) -> Any:
    """alpha_t x0 + sigma_t e^{-eta h} eps: the step for constant x0, without its noise."""
    decay = exp(-eta * (t.lam - s.lam)) if eta else 1.0
    return t.alpha * p.x0 + (t.sigma * decay) * p.eps


def with_noise(s: Level, t: Level, eta: float, x: Any, z: Any) -> Any:
    """x + sigma_t sqrt(1 - e^{-2 eta h}) z; x itself where there is no noise."""
    if not eta or float(t.sigma) == 0.0:
        return x
    return x + (t.sigma * sqrt(-expm1(-2.0 * eta * (t.lam - s.lam)))) * z
