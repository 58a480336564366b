"""Noise schedules that only diffusers' conventions ask for: what the network is told is not the noise level itself.

`LabelledFlow` is a rectified flow with another time label, `PreconditionedVE` a network that divides its input by the
noise (EDM and its kin). Both map time and level exactly both ways, so every solver and grid runs on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ..errors import ConfigError
from .levels import Level
from .prediction import Pair, Parametrisation
from .scalars import Scalar

SigmaTime = Literal["log", "atan"]


@dataclass(frozen=True)
class LabelledFlow:
    """x = (1 - t) x0 + t eps, where the network is fed time_scale * u.

    shift: t = s u / (1 + (s - 1) u): the network is told the time before the shift (CogView4).
    inverted: it is told 1 - u (Mochi).
    """

    time_scale: float = 1000.0
    shift: float = 1.0
    inverted: bool = False
    t_eps: float = 1e-3

    def __post_init__(self) -> None:
        if not (0.0 < self.time_scale < math.inf and 0.0 < self.shift < math.inf and 0.0 < self.t_eps < 0.5):
            raise ConfigError(f"expected time_scale > 0, shift > 0 and 0 < t_eps < 0.5, got {self}")

    @property
    def noisiest(self) -> Level:
        return self.level_of(1.0)

    @property
    def cleanest(self) -> Level:
        return self.level_of(self.t_eps)

    @property
    def clean(self) -> Level:
        return self.level_of(0.0)

    def level_of(self, u: float) -> Level:
        """The level of the unshifted time u in [0, 1]; 1 is pure noise."""
        t = shifted(u, self.shift)
        return Level(self.time_scale * (1.0 - u if self.inverted else u), 1.0 - t, t)

    def level(self, time: float) -> Level:
        u = float(time) / self.time_scale
        if not 0.0 <= u <= 1.0:
            raise ConfigError(f"time {time!r} is outside the schedule: expected a number in [0, {self.time_scale:g}]")
        return self.level_of(1.0 - u if self.inverted else u)._replace(time=float(time))

    def time_of(self, lam: float) -> float:
        t = 1.0 / (1.0 + math.exp(lam)) if lam < 700 else 0.0
        u = shifted(t, 1.0 / self.shift)
        return self.time_scale * (1.0 - u if self.inverted else u)

    def describe(self) -> dict[str, float | int | str]:
        numbers = {"time_scale": self.time_scale, "shift": self.shift, "inverted": int(self.inverted)}
        return {"kind": "LabelledFlow", **numbers, "t_eps": self.t_eps}


@dataclass(frozen=True)
class PreconditionedVE:
    """x = x0 + sigma eps, where the network is fed x / sqrt(sigma^2 + sigma_data^2) and a function of sigma.

    sigma_time: "log" for log(sigma) / 4, "atan" for atan(sigma) 2 / pi.
    Source: Karras et al. 2022, arXiv:2206.00364, table 1 (c_in, c_noise).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_time: SigmaTime = "log"

    def __post_init__(self) -> None:
        for name in ("sigma_min", "sigma_max", "sigma_data"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        if not self.sigma_min < self.sigma_max:
            raise ConfigError(f"expected sigma_min < sigma_max, got {self.sigma_min!r} and {self.sigma_max!r}")
        if self.sigma_time not in ("log", "atan"):
            raise ConfigError(f"sigma_time must be 'log' or 'atan', got {self.sigma_time!r}")

    @property
    def noisiest(self) -> Level:
        return self.level_of(self.sigma_max)

    @property
    def cleanest(self) -> Level:
        return self.level_of(self.sigma_min)

    @property
    def clean(self) -> Level:
        return self.cleanest._replace(sigma=0.0)

    def level_of(self, sigma: float) -> Level:
        """The level of a sigma > 0."""
        return Level(self._time(float(sigma)), 1.0, float(sigma))

    def level(self, time: float) -> Level:
        sigma = math.exp(4.0 * time) if self.sigma_time == "log" else math.tan(0.5 * math.pi * time)
        if not 0.0 < sigma < math.inf:
            raise ConfigError(f"time {time!r} is outside the schedule: its sigma would be {sigma!r}")
        return Level(float(time), 1.0, sigma)

    def time_of(self, lam: float) -> float:
        return self._time(math.exp(-lam))

    def input_scale(self, level: Level) -> float:
        """What the state is multiplied by to become the network's input (c_in)."""
        return 1.0 / math.hypot(float(level.sigma), self.sigma_data)

    def describe(self) -> dict[str, float | int | str]:
        ends = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        return {"kind": "PreconditionedVE", **ends, "sigma_data": self.sigma_data, "sigma_time": self.sigma_time}

    def _time(self, sigma: float) -> float:
        return 0.25 * math.log(sigma) if self.sigma_time == "log" else math.atan(sigma) * 2.0 / math.pi


@lru_cache
def negated(parametrisation: Parametrisation) -> Parametrisation:
    """A network whose output has the other sign."""

    def flipped(pair: Pair) -> tuple[Scalar, Scalar]:
        return pair[0], -pair[1]

    return Parametrisation(
        f"-{parametrisation.name}",
        lambda level: flipped(parametrisation.x0_row(level)),
        lambda level: flipped(parametrisation.eps_row(level)),
    )


def shifted(t: float, s: float) -> float:
    """s t / (1 + (s - 1) t), that is lam - log s (Esser et al. 2024, arXiv:2403.03206, equation 23)."""
    return s * t / (1.0 + (s - 1.0) * t)
