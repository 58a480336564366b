r"""DPM++ SDE: DPM-Solver++ 2S with noise in both of its ticks, from one Brownian path.

A step s -> t with h = lam_t - lam_s, the inner node m at lam_m = lam_s + r h, and (d, up), (d', up') the splits of
s -> t and s -> m (see `ancestral`), m0 = x0(s):

    u   = alpha_m m0 + down' eps_s + up' z1                                                m1 = x0(u, m)
    x_t = (down / sigma_s) x - alpha_t g_0(-h_d) ((1 - 1/(2r)) m0 + m1 / (2r)) + up z,     h_d = lam_d - lam_s

z1 and z are the increments of one Brownian path W over s -> m and s -> t, divided by their standard deviations. Its
clock is c = sigma / alpha; with z2 the increment over m -> t,

    z = (sqrt(c_s - c_m) z1 + sqrt(c_m - c_t) z2) / sqrt(c_s - c_t),        Cov(z1, z) = sqrt((c_s - c_m) / (c_s - c_t))

so the first tick draws z1 and remembers it, and the second draws z2. That covariance makes it a method of weak order 2:
measured slope 2.1 of the end's covariance, 1.8 for r = 0.3 (Gaussian data, n = 50 to 200), with independent noises 1
(tests/test_sde_moments.py); 2.3 of an expectation over a mixture (tests/test_sde_weak_order.py).

Source: k-diffusion by Katherine Crowson, https://github.com/crowsonkb/k-diffusion, `sample_dpmpp_sde`, written for any
(alpha, sigma) and finite at alpha_s = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from .ancestral import check_ancestral_eta
from .ddim import split
from .exponential import DATA, first_order_from, slope_weight
from .grids import Levels
from .levels import Level, NoiseSchedule
from .prediction import Prediction
from .scalars import Scalar, sqrt
from .singlestep import blocks_plan, place
from .solver import Carry, Plan, first_order


@dataclass(frozen=True)
class DPMppSDE:
    """Two evaluations and two noises a step; one of each from alpha = 0, one evaluation to sigma = 0.

    eta: 0 (DPMpp2S(r), without noise) and up; 1 (default) is the SDE.       r: where the inner node lies, 0 < r < 1.
    """

    eta: float = 1.0
    r: float = 0.5
    keeps_edits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_ancestral_eta(self.eta)
        if not 0.0 < self.r < 1.0:
            raise ConfigError(f"r must lie between 0 and 1, got {self.r!r}")

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        plan = blocks_plan(levels, [2] * (len(levels) - 1), schedule, {2: (self.r,)})
        for s, t in zip(levels, levels[1:], strict=False):
            split(s, t, self.eta)  # refuses steps up
        return plan

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        t = plan.targets[i]
        if plan.stage[i] == 0 or not carry:  # without a carry x was edited: the rest of the step is of first order
            d, up = split(plan.nodes[i], t, self.eta)
            x_t = first_order(d, p)
            noisy = float(up) > 0.0
            remembered = (x, p.x0, noise) if noisy else (x, p.x0)
            opens_a_step = plan.stage[i] == 0 and plan.order[i] == 2
            return x_t + up * noise if noisy else x_t, remembered if opens_a_step else ()
        s, m = plan.nodes[i - 1], plan.nodes[i]
        x_s, m0 = carry[:2]
        d, up = split(s, t, self.eta)
        weight = d.alpha * slope_weight(DATA, d.lam - s.lam, "midpoint") / place(s, m, t)
        x_t = first_order_from(DATA, s, d, x_s, m0) - weight * (p.x0 - m0)
        if float(up) == 0.0:
            return x_t, ()
        first, second = path_weights(s, m, t)
        return x_t + (up * first) * carry[2] + (up * second) * noise, ()


def path_weights(s: Level, m: Level, t: Level) -> tuple[Scalar, Scalar]:
    """(a, b) with z(s -> t) = a z(s -> m) + b z(m -> t) on one path in the clock sigma / alpha; a^2 + b^2 = 1."""
    c_s, c_m, c_t = (level.sigma / level.alpha for level in (s, m, t))
    return sqrt((c_s - c_m) / (c_s - c_t)), sqrt((c_m - c_t) / (c_s - c_t))
