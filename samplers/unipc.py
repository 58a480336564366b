r"""UniPC of order p, with its corrector, in data prediction.

Tick i first corrects the state it stands at (UniC, with the prediction just made there), then predicts the next one
(UniP). Both have the form, from s to t with h = lam_t - lam_s, hh = -h, m0 = x0(s):

    x_t = (sigma_t / sigma_s) x - alpha_t (e^{hh} - 1) m0 - alpha_t B(hh) sum_k rho_k D_k,    D_k = (m_k - m0) / r_k

over earlier nodes r_k = (lam_k - lam_s) / h < 0 and, in the corrector, the new point r = 1. The rho solve
sum_k r_k^{n-1} rho_k = n! g_n / B for n = 1, 2, ..., with the g_n of `phi`. bh1 (B = hh) and bh2 (B = e^{hh} - 1) put
rho = 1/2 for the predictor of order 2 and the corrector of order 1; "vary" solves there too, so that B cancels and
every order is exact for polynomials. From order 3 on the three are one method. The prediction at the predicted point
is reused after the correction, so a step costs one evaluation; the last point is not corrected.
Source: Zhao et al. 2023, "UniPC", arXiv:2302.04867, algorithms 5-8. "vary" is what its varying coefficients come to;
the released code for them adds the new point to one of the sums only and converges at order 1 (docs/decisions.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..errors import ConfigError
from .grids import Levels
from .levels import Level, NoiseSchedule
from .phi import g
from .prediction import Prediction
from .scalars import Scalar, expm1
from .solver import Carry, Plan, first_order, has_finite_h, one_tick_plan


@dataclass(frozen=True)
class UniPC:
    """Order p (the corrector adds one), one evaluation a step.

    order: 1 to 4.        variant: "bh1", "bh2" or "vary"; they differ at orders 1 and 2 alone.
    lower_order_final: the last p - 1 steps ramp down to order 1.
    """

    order: int = 2
    variant: Literal["bh1", "bh2", "vary"] = "bh2"
    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ConfigError(f"UniPC's order must be 1, 2, 3 or 4, got {self.order!r}")
        if self.variant not in ("bh1", "bh2", "vary"):
            raise ConfigError(f"UniPC's variant must be 'bh1', 'bh2' or 'vary', got {self.variant!r}")

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return one_tick_plan(levels, order=self.order, lower_order_final=self.lower_order_final)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        """carry: (corrected state at the previous node, its x0, older x0, ...)."""
        s, t = plan.nodes[i], plan.targets[i]
        history = carry[1:]
        if carry:
            x = self.correct(plan, i, carry[0], p.x0, history)
        order = min(plan.order[i], len(history) + 1)
        x_t = base(s, t, x, p.x0) if carry else first_order(t, p)
        if order >= 2:
            x_t = x_t - self.increment(plan, i, p.x0, history[: order - 1])
        if not has_finite_h(s, t):
            return x_t, ()
        return x_t, (x, p.x0, *history)[: self.order + 1]

    def rho(self, r: list[Scalar], h: Scalar) -> list[Scalar]:
        """The weights over the nodes r beside s."""
        return [0.5] if len(r) == 1 and self.variant != "vary" else solve_rho(r, h, self.variant)

    def increment(self, plan: Plan, i: int, m0: Any, history: Carry) -> Any:
        """alpha_t B sum rho_k D_k of the predictor (UniP) over the earlier nodes."""
        s, t = plan.nodes[i], plan.targets[i]
        h = t.lam - s.lam
        r = [(plan.nodes[i - k].lam - s.lam) / h for k in range(1, len(history) + 1)]
        rho = self.rho(r, h)
        total = sum_of([(w / r_k) * (m - m0) for w, r_k, m in zip(rho, r, history, strict=True)])
        return (t.alpha * scale_B(h, self.variant)) * total

    def correct(self, plan: Plan, i: int, x: Any, m_t: Any, history: Carry) -> Any:
        """UniC: the state at plan.nodes[i], again, from the corrected x at the previous node and the new x0 m_t."""
        s, t = plan.nodes[i - 1], plan.nodes[i]
        order = min(plan.order[i - 1], len(history))
        h = t.lam - s.lam
        m0, older = history[0], history[1:order]
        r = [(plan.nodes[i - 1 - k].lam - s.lam) / h for k in range(1, order)] + [1.0]
        rho = self.rho(r, h)
        total = sum_of([(w / r_k) * (m - m0) for w, r_k, m in zip(rho, r, (*older, m_t), strict=True)])
        return base(s, t, x, m0) - (t.alpha * scale_B(h, self.variant)) * total


def base(s: Level, t: Level, x: Any, m0: Any) -> Any:
    """The first-order step from a corrected state (0 < sigma_s); with eps = (x - alpha_s m0) / sigma_s where h is
    infinite."""
    if not has_finite_h(s, t):
        ratio = t.sigma / s.sigma
        return ratio * x + (t.alpha - ratio * s.alpha) * m0
    return (t.sigma / s.sigma) * x - (t.alpha * g(0, -(t.lam - s.lam))) * m0


def sum_of(vectors: list[Any]) -> Any:
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def scale_B(h: Scalar, variant: str) -> Scalar:
    return -h if variant == "bh1" else expm1(-h)


def solve_rho(r: list[Scalar], h: Scalar, variant: str) -> list[Scalar]:
    """rho of sum_k r_k^{n-1} rho_k = n! g_n / B, n = 1..len(r), by Gaussian elimination on plain numbers."""
    size = len(r)
    B = scale_B(h, variant)
    rows: list[list[Scalar]] = []
    for n in range(1, size + 1):
        rows.append([r_k ** (n - 1) for r_k in r] + [math.factorial(n) * g(n, -h) / B])
    for j in range(size):
        pivot = max(range(j, size), key=lambda k: abs(float(rows[k][j])))
        rows[j], rows[pivot] = rows[pivot], rows[j]
        rows[j] = [value / rows[j][j] for value in rows[j]]
        for k in range(size):
            if k != j:
                factor = rows[k][j]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[j], strict=True)]
    return [row[size] for row in rows]
