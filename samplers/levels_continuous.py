r"""Variance preserving schedules in continuous time: linear beta and cosine. Both have closed-form inverses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError
from .levels import Level, refuse_time, vp_level


@dataclass(frozen=True)
class LinearVP:
    r"""Variance preserving in continuous time t in [t_min, 1]: log alpha = -t^2 (b1 - b0) / 4 - t b0 / 2.

    Source: Song et al. 2021, arXiv:2011.13456; the inverse: Lu et al. 2022, arXiv:2206.00927, appendix.
    """

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not (0.0 <= self.beta_0 < self.beta_1 < math.inf and 0.0 < self.t_min < 1.0):
            raise ConfigError(f"expected 0 <= beta_0 < beta_1 and 0 < t_min < 1, got {self}")

    @property
    def noisiest(self) -> Level:
        return self.level(1.0)

    @property
    def cleanest(self) -> Level:
        return self.level(self.t_min)

    @property
    def clean(self) -> Level:
        return Level(0.0, 1.0, 0.0)

    def level(self, time: float) -> Level:
        refuse_time(time, 0.0, 1.0)
        log_alpha = -time * time * (self.beta_1 - self.beta_0) / 4.0 - time * self.beta_0 / 2.0
        return Level(float(time), math.exp(log_alpha), math.sqrt(-math.expm1(2.0 * log_alpha)))

    def time_of(self, lam: float) -> float:
        slope = self.beta_1 - self.beta_0
        u = 2.0 * slope * (math.log1p(math.exp(-2.0 * lam)) if lam > -300 else -2.0 * lam)
        t = u / ((math.sqrt(self.beta_0**2 + u) + self.beta_0) * slope)
        return min(t, 1.0) if t < 1.0 + 1e-9 else t

    def describe(self) -> dict[str, float | int | str]:
        return {"kind": "LinearVP", "beta_0": self.beta_0, "beta_1": self.beta_1, "t_min": self.t_min}


@dataclass(frozen=True)
class CosineVP:
    r"""Variance preserving in continuous time t in [t_min, t_max]:

        alpha = cos((t + s) / (1 + s) pi / 2) / cos(s / (1 + s) pi / 2).

    At t = 1 alpha is 0; t_max = 0.9946 (lam = -4.78) is where the official DPM-Solver code ends the schedule. The
    discrete form, DiscreteVP.cosine, caps its betas instead and goes on to lam = -9.9.

    With theta_0 = s / (1 + s) pi / 2 and delta = t / (1 + s) pi / 2, so alpha = cos(theta_0 + delta) / cos(theta_0),

        sigma^2 = 1 - alpha^2 = sin(delta) sin(delta + 2 theta_0) / cos(theta_0)^2,

    which loses no digits near t = 0; the inverse below is made of the same products.

    Source: Nichol, Dhariwal 2021, arXiv:2102.09672, section 3.2; in continuous time Lu et al. 2022, arXiv:2206.00927.
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        if not (0.0 < self.s < 1.0 and 0.0 < self.t_min < self.t_max <= 1.0):
            raise ConfigError(f"expected 0 < s < 1 and 0 < t_min < t_max <= 1, got {self}")

    @property
    def noisiest(self) -> Level:
        return self.level(self.t_max)

    @property
    def cleanest(self) -> Level:
        return self.level(self.t_min)

    @property
    def clean(self) -> Level:
        return Level(0.0, 1.0, 0.0)

    @property
    def _unit(self) -> float:
        """The angle of one unit of time."""
        return math.pi / 2.0 / (1.0 + self.s)

    def level(self, time: float) -> Level:
        refuse_time(time, 0.0, 1.0)
        delta, theta_0 = time * self._unit, self.s * self._unit
        alpha = math.sin((1.0 - time) * self._unit) / math.cos(theta_0)  # cos(theta), exact where it vanishes
        sigma = math.sqrt(math.sin(delta) * math.sin(delta + 2.0 * theta_0)) / math.cos(theta_0)
        return Level(float(time), alpha, sigma)

    def time_of(self, lam: float) -> float:
        theta_0 = self.s * self._unit
        _, alpha, sigma = vp_level(0.0, lam)
        a, b = float(alpha) * math.cos(theta_0), float(sigma) * math.cos(theta_0)
        sine = math.hypot(math.sin(theta_0), b)  # sin(theta), of cos(theta)^2 = alpha^2 cos(theta_0)^2
        if sine > 0.9:  # near t = 1, count from there
            return 1.0 - math.asin(a) / self._unit
        theta = math.atan2(sine, a)
        product = b * b / math.sin(theta + theta_0)  # sin(theta - theta_0), without the difference
        return (math.asin(product) if product < 0.5 else theta - theta_0) / self._unit

    def describe(self) -> dict[str, float | int | str]:
        return {"kind": "CosineVP", "s": self.s, "t_min": self.t_min, "t_max": self.t_max}
