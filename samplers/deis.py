r"""DEIS in log rho (tAB-DEIS): exponential Adams-Bashforth on the noise prediction.

With rho = sigma / alpha, the probability-flow ODE is d(x / alpha) = eps d rho. eps is replaced by the Lagrange
polynomial in log rho through the last nodes s_0 = s, s_1, ... and integrated exactly:

    x_t = alpha_t (x / alpha_s + sum_j c_j eps_j),    c_j = int_{rho_s}^{rho_t} L_j(log rho) d rho,
    L_j(u) = prod_{k != j} (u - u_k) / (u_j - u_k),   u_k = log rho_k.

The integrals are closed: with z = log(rho_t / rho_s) and v = log(rho_t / rho), int e^{z - v} v^n dv over (0, z) is
n! z^n g_n(z). Order 2 is noise-prediction 2M "taylor" and order 3 the true noise-prediction 3M, reached from the
other side; tests hold them together.
Source: Zhang and Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv:2204.13902.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from .grids import Levels
from .levels import NoiseSchedule
from .phi import g
from .prediction import Prediction
from .scalars import Scalar
from .solver import Carry, Plan, first_order, one_tick_plan, remember


@dataclass(frozen=True)
class DEIS:
    """Order 1 to 4, one evaluation a step. Order 1 is DDIM.

    lower_order_final: the last order - 1 steps ramp down to order 1. An edit drops the history, see DPM2M.
    """

    order: int = 3
    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ConfigError(f"the order of DEIS must be 1, 2, 3 or 4, got {self.order!r}")

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return one_tick_plan(levels, order=self.order, lower_order_final=self.lower_order_final)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        after = remember(s, p.eps, carry, self.order - 1)
        order = min(plan.order[i], len(carry) + 1)
        if order == 1:
            return first_order(t, p), after
        u = [-plan.nodes[i - k].lam for k in range(order)]
        x_t = (t.alpha / s.alpha) * x
        for c_over_rho, eps in zip(coefficients(u, -t.lam), (p.eps, *carry), strict=False):
            x_t = x_t + (t.alpha * s.sigma / s.alpha * c_over_rho) * eps
        return x_t, after


def coefficients(u: Sequence[Scalar], u_t: Scalar) -> list[Scalar]:
    """c_j / rho_s for nodes at u = log rho, the first of them s."""
    z = u_t - u[0]
    moments = [math.factorial(n) * z**n * g(n, z) for n in range(len(u))]
    found = []
    for j, u_j in enumerate(u):
        powers: list[Scalar] = [1.0]  # of L_j in v = u_t - u, lowest first
        for k, u_k in enumerate(u):
            if k != j:
                constant, slope = (u_t - u_k) / (u_j - u_k), -1.0 / (u_j - u_k)
                powers = [a * constant + b * slope for a, b in zip([*powers, 0.0], [0.0, *powers], strict=True)]
        found.append(sum(a * moment for a, moment in zip(powers, moments, strict=True)))
    return found
