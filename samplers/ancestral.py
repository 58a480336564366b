r"""Ancestral samplers of second order: a deterministic step to less noise than asked for, then fresh noise.

A step s -> t with eta >= 0 splits sigma_t^2 = down^2 + up^2:

    ratio = (sigma_t / alpha_t) / (sigma_s / alpha_s)
    up    = eta sigma_t sqrt(1 - ratio^2),    at most sigma_t            down = sqrt(sigma_t^2 - up^2)

and takes one step of a second-order method from s to the level d = (alpha_t, down), with its inner node midway in lam
between s and d, then x_t = x_d + up z. In both methods the two predictions enter as the inner one alone (midpoint).
With eta = 1 the inner node is at lam_t itself. With eta > 1 it lies beyond t; where down = 0 the step has first order.

An exact step to d and fresh noise keep every marginal, so that the samples' distribution converges at the method's own
order: 2 (measured slopes 1.95 to 2.05 of the covariance on Gaussian data, tests/test_sde_moments.py; 1.9 and 2.1 of an
expectation over a mixture, tests/test_sde_weak_order.py). The law of the path tends to that of the SDE of eta^2, at
order 1.

Source: k-diffusion by Katherine Crowson, https://github.com/crowsonkb/k-diffusion, `sample_dpm_2_ancestral` and
`sample_dpmpp_2s_ancestral`, written for any (alpha, sigma) and finite at alpha_s = 0; the split for eta <= 1 is
equation 16 of Song, Meng, Ermon 2020, arXiv:2010.02502. One difference: where eta > 1 makes down = 0, the former adds
no noise at all and so loses sigma_t of it; here every split keeps down^2 + up^2 = sigma_t^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ConfigError
from .ddim import split
from .dpm_singlestep import DPM2S, DPMpp2S
from .grids import Levels, check_levels
from .levels import Level, NoiseSchedule, level_at
from .prediction import Prediction
from .solver import Carry, Plan, has_finite_h

MIDWAY = 0.5


class Ancestral:
    """What the two share: plan and step. They differ in their method, and are frozen dataclasses."""

    eta: float
    keeps_edits: ClassVar[bool] = False
    method: ClassVar[DPMpp2S]

    def __post_init__(self) -> None:
        check_ancestral_eta(self.eta)

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        check_levels(levels)
        ticks = []
        for k, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
            d, _ = split(s, t, self.eta)
            if has_finite_h(s, d):
                inner = self._inner(s, t, d, schedule)
                ticks += [(s, inner, k, 0, 2), (inner, t, k, 1, 2)]
            else:
                ticks += [(s, t, k, 0, 1)]
        return Plan.of(ticks)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        stage, order = plan.stage[i], plan.order[i]
        s, t = plan.nodes[i - stage], plan.targets[i - stage + order - 1]
        d, up = split(s, t, self.eta)
        nodes = (s, *plan.nodes[i - stage + 1 : i - stage + order], d)
        to_d = Plan.of((a, b, 0, k, order) for k, (a, b) in enumerate(zip(nodes, nodes[1:], strict=False)))
        x_d, carry = self.method.step(to_d, stage, x, p, carry)
        return x_d + up * noise if stage == order - 1 and float(up) > 0.0 else x_d, carry

    def _inner(self, s: Level, t: Level, d: Level, schedule: NoiseSchedule) -> Level:
        try:
            return level_at(schedule, float(s.lam + MIDWAY * (d.lam - s.lam)))
        except ConfigError as error:
            if self.eta <= 1.0:
                raise
            raise ConfigError(f"{self} evaluates the network beyond the end of a step, at less noise than it was "
                              f"trained for in the step to {t}: {error}; use eta <= 1") from error  # fmt: skip


@dataclass(frozen=True)
class DPM2Ancestral(Ancestral):
    """DPM-Solver-2 (noise prediction) to d, then noise: two evaluations a step, one to sigma = 0 and from alpha = 0.

    eta: 0 (the ODE method) and up; 1 (default) is ancestral.
    """

    eta: float = 1.0
    method: ClassVar[DPMpp2S] = DPM2S(MIDWAY)


@dataclass(frozen=True)
class DPMpp2SAncestral(Ancestral):
    """DPM-Solver++ 2S (data prediction) to d, then noise: two evaluations a step, one to sigma = 0 and from alpha = 0.

    eta: 0 (the ODE method) and up; 1 (default) is ancestral.
    """

    eta: float = 1.0
    method: ClassVar[DPMpp2S] = DPMpp2S(MIDWAY)


def check_ancestral_eta(eta: float) -> None:
    """ConfigError unless eta is a finite number, 0 or more."""
    if not 0.0 <= eta < math.inf:
        raise ConfigError(f"eta must be a finite number, 0 (deterministic) or more, got {eta!r}")
