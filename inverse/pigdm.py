r"""PiGDM: guidance by the pseudo-inverse, for linear operators and models of pixels.

The picture given the state is taken to be N(x0hat, r_t^2 I), so y given it is N(H x0hat, r_t^2 H H^T + sigma_y^2 I) and

    g = J^T H^T (r_t^2 H H^T + sigma_y^2 I)^{-1} (y - H x0hat),        J = d x0hat / d x_t,
    r_t^2 = v sigma_t^2 / (alpha_t^2 v + sigma_t^2)

which is 1 - alpha_bar_t for variance-preserving models and sigma^2 / (1 + sigma^2) for alpha = 1, at v = 1. Then
tweedie.guided. With sigma_y = 0 the middle is the pseudo-inverse, r_t^{-2} H^+. It is exact for the prior N(m, v I).

Source: Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023; v as in the code of
Boys et al. 2023, arXiv:2310.06721. Released code holds g back by about alpha_t^2: its step from t to s adds
alpha_t r_t^2 g, or alpha_s alpha_t r_t^2 g, where x0' here brings alpha_s sigma_t^2 / alpha_t g. `weight` has that;
that such code leaves eps without guidance in some settings, and clamps x0hat, is not here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from ..samplers import Level, Solver, State
from .checks import check_number
from .dps import ANCESTRAL
from .linear import StateOperator, check_linear
from .measurement import Measurement
from .operators.base import check_choice
from .posterior import Done, Posterior
from .problem import Problem
from .tweedie import guided

Weight = Literal["exact", "released"]


@dataclass(frozen=True, kw_only=True)
class PiGDM(Posterior):
    """zeta: multiplies the guidance; 1 is its own weight.

    prior_variance: v, of an entry of the model's states; 1 as published.
    weight: "exact" is the derivation's; "released" multiplies it by alpha_t^2 / (alpha_t^2 + sigma_t^2), the released
    code's for variance-preserving models. It holds back the noisiest levels, where a trained network's J is wrong by
    much and divided by alpha_t twice: take it where a run diverges in its first steps.
    Cost a step: one evaluation, forward and backward; the operator's proximal step.
    Errors: IncompatibleError for an operator that is not linear or a decoder that is not affine.
    """

    steps: int = 100
    zeta: float = 1.0
    prior_variance: float = 1.0
    weight: Weight = "exact"
    solver: Solver | str = ANCESTRAL

    step_size: ClassVar[str] = "zeta"
    remedy: ClassVar[str] = "take weight='released', or an operator with a larger rcond"
    gentler: ClassVar[Mapping[str, str]] = {"weight": "released"}
    pixels_only: ClassVar[bool] = True  # or an affine decoder, which no pipeline has

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.zeta, "zeta", 1.0, zero=True)
        check_number(self.prior_variance, "prior_variance", 1.0)
        check_choice(self.weight, "weight", get_args(Weight))

    def check(self, measurement: Measurement) -> None:
        check_linear(measurement.operator, "PiGDM")

    def begin(self, problem: Problem) -> StateOperator:
        return StateOperator(problem, "PiGDM")

    def tick(self, problem: Problem, state: State, memory: StateOperator) -> Done:
        level, sigma_y = problem.level(state.tick), problem.measurement.sigma_y
        evaluation = problem.evaluate(state.x, level)
        r = problem.measurement.residual(problem.to_pixels(evaluation.prediction.x0))
        r2 = self.variance(level)
        v = memory.damped(r, r2 / sigma_y**2 if sigma_y else math.inf)  # r_t^2 H^T (r_t^2 H H^T + sigma_y^2 I)^-1 r
        g = evaluation.pull(x0=v) / r2
        p = guided(evaluation.prediction, level, self._strength(level) * float(level.sigma) ** 2 * g)
        return Done(problem.advance(state, p), p, torch.linalg.vector_norm(r.flatten(1), dim=1), memory)

    def _strength(self, level: Level) -> float:
        signal = float(level.alpha) ** 2
        return self.zeta * (1.0 if self.weight == "exact" else signal / (signal + float(level.sigma) ** 2))

    def variance(self, level: Level) -> float:
        """r_t^2, of an entry of the clean state given the noisy one."""
        v, noise = self.prior_variance, float(level.sigma) ** 2
        return v * noise / (float(level.alpha) ** 2 * v + noise)
