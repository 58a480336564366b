r"""Exponential integrators in lam, in one notation for both predictions.

The state obeys, between s and t with h = lam_t - lam_s,

    data:   x_t = (sigma_t / sigma_s) x_s + sigma_t int_{lam_s}^{lam_t} e^{+l} x0(l) dl
    noise:  x_t = (alpha_t / alpha_s) x_s - alpha_t int_{lam_s}^{lam_t} e^{-l} eps(l) dl

and with m = x0, R = sigma_t / sigma_s, A = alpha_t, z = -h, or m = eps, R = alpha_t / alpha_s, A = sigma_t, z = +h, a
Taylor polynomial m + m' u + m'' u^2 / 2 + ... in u = lam - lam_s gives for both

    x_t = R x - A (g_0(z) m + g_1(z) h m' + g_2(z) h^2 m'' + ...).

R x - A g_0 m is the first-order step, the same map for both: alpha_t x0 + sigma_t eps.
Source: Lu et al. 2022, arXiv:2206.00927, equation 3.4 (noise); arXiv:2211.01095, proposition 4.1 (data); the g_n are
UniPC's (see phi).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError
from .levels import Level
from .phi import g
from .prediction import Prediction
from .scalars import Scalar

SolverType = Literal["midpoint", "taylor"]


@dataclass(frozen=True)
class Space:
    """The prediction that a method takes for a polynomial in lam. Use DATA and NOISE, the two there are."""

    name: str
    sign: float

    def m(self, p: Prediction) -> Any:
        return p.x0 if self.name == "data" else p.eps

    def z(self, h: Scalar) -> Scalar:
        return self.sign * h

    def A(self, t: Level) -> Scalar:
        return t.alpha if self.name == "data" else t.sigma

    def R(self, s: Level, t: Level) -> Scalar:
        return t.sigma / s.sigma if self.name == "data" else t.alpha / s.alpha


DATA = Space("data", -1.0)
NOISE = Space("noise", +1.0)


def first_order_from(space: Space, s: Level, t: Level, x: Any, m: Any) -> Any:
    """R x - A g_0 m: the first-order step from a state x at s that the newest prediction does not belong to."""
    return space.R(s, t) * x - (space.A(t) * g(0, space.z(t.lam - s.lam))) * m


def slope_weight(space: Space, h: Scalar, solver_type: SolverType) -> Scalar:
    """The weight of h m' in a second-order step: g_0 / 2 (midpoint) or g_1 (taylor); they differ by O(h^2)."""
    z = space.z(h)
    return 0.5 * g(0, z) if solver_type == "midpoint" else g(1, z)


def check_solver_type(solver_type: str) -> None:
    """ConfigError unless it is one of the two forms."""
    if solver_type not in ("midpoint", "taylor"):
        raise ConfigError(f"solver_type must be 'midpoint' or 'taylor', got {solver_type!r}")
