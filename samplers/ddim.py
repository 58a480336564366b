r"""DDIM: the first-order step, deterministic (eta = 0) up to DDPM's ancestral one (eta = 1).

    x_t = alpha_t x0 + sqrt(sigma_t^2 - up^2) eps + up z,
    up  = eta sigma_t sqrt(1 - (sigma_t alpha_s / (sigma_s alpha_t))^2)

Source: Song, Meng, Ermon 2020, "Denoising Diffusion Implicit Models", arXiv:2010.02502, equations 12 and 16; `up` is
equation 16 written for any (alpha, sigma), finite at alpha_s = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from .grids import Levels
from .levels import Level, NoiseSchedule
from .prediction import Prediction
from .scalars import Scalar, sqrt
from .solver import Carry, Plan, first_order, one_tick_plan


@dataclass(frozen=True)
class DDIM:
    """First order, one evaluation a step. eta: 0 (deterministic, default) to 1 (ancestral)."""

    eta: float = 0.0
    keeps_edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return one_tick_plan(levels)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        s, t = plan.nodes[i], plan.targets[i]
        d, up = split(s, t, self.eta)
        x_t = first_order(d, p)
        return x_t + up * noise if float(up) > 0.0 else x_t, ()


def split(s: Level, t: Level, eta: float) -> tuple[Level, Scalar]:
    """(the level (alpha_t, down), up) of the step s -> t: down^2 + up^2 = sigma_t^2, `up` in the units of x.

    The time of the level is t's and means nothing. No division by alpha_s or sigma_t, so both may be 0.
    Errors: ConfigError for eta > 0 in a step that goes up in noise.
    """
    if eta == 0.0 or float(t.sigma) == 0.0:
        return t, 0.0
    if float(t.sigma) * float(s.alpha) > float(s.sigma) * float(t.alpha):
        raise ConfigError("a step with eta > 0 cannot go up in noise; use eta = 0 for inversion")
    ratio = t.sigma * s.alpha / (s.sigma * t.alpha)
    kept = (1.0 - eta * eta) + eta * eta * ratio * ratio  # (down / sigma_t)^2, exact where eta = 1
    if float(kept) <= 0.0:
        return t._replace(sigma=0.0 * t.sigma), t.sigma
    return t._replace(sigma=t.sigma * sqrt(kept)), eta * t.sigma * sqrt(1.0 - ratio * ratio)


def check_eta(eta: float) -> None:
    """ConfigError unless 0 <= eta <= 1."""
    if not 0.0 <= eta <= 1.0:
        raise ConfigError(f"eta must be between 0 (deterministic) and 1 (ancestral), got {eta!r}")
