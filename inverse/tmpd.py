r"""TMPD: guidance with the covariance that the network itself has, for linear operators and models of pixels.

Cov[x0 | x_t] = (sigma_t^2 / alpha_t) J with J = d x0hat / d x_t, in the place of PiGDM's r_t^2 I:

    g = J^T H^T (H Cov[x0 | x_t] H^T + sigma_y^2 I)^{-1} (y - H x0hat)        (then tweedie.guided)

It is exact for every Gaussian prior, whatever its covariance. The system is solved by conjugate gradients, for each
image, with one backward pass an iteration: J of a true denoiser is symmetric, so J^T v serves as J v.
Source: Boys et al. 2023, "Tweedie Moment Projected Diffusions for Inverse Problems", arXiv:2310.06721. Their code
builds the matrix; its variant for images, which replaces H Cov H^T by its row sums, is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..samplers import Solver, State
from .checks import check_number
from .conjugate_gradient import conjugate_gradient
from .dps import ANCESTRAL
from .linear import StateOperator, check_linear
from .measurement import Measurement
from .posterior import Done, Init, Posterior
from .problem import Problem
from .tweedie import guided


@dataclass(frozen=True, kw_only=True)
class TMPD(Posterior):
    """iterations: of conjugate gradients in each step; exact from as many as y has entries on. Fewer solve first for
    the directions that vary most. Directions along which the system is not positive (a network is no true denoiser) are
    not taken.

    zeta: multiplies the guidance; 1 is its own weight.
    Cost a step: one evaluation forward, iterations + 1 times backward.
    Errors: ConfigError where sigma_y is 0; IncompatibleError for an operator that is not linear or a decoder that is
    not affine.
    """

    steps: int = 100
    iterations: int = 10
    zeta: float = 1.0
    solver: Solver | str = ANCESTRAL
    init: Init = "gaussian"

    step_size: ClassVar[str] = "zeta"
    pixels_only: ClassVar[bool] = True  # as of PiGDM

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.zeta, "zeta", 1.0, zero=True)
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ConfigError(f"iterations must be a whole number from 1, got {self.iterations!r}")

    def check(self, measurement: Measurement) -> None:
        if measurement.sigma_y == 0.0:
            raise ConfigError("TMPD's system is singular for sigma_y = 0: give the noise a size, or take PiGDM")
        check_linear(measurement.operator, "TMPD")

    def begin(self, problem: Problem) -> StateOperator:
        return StateOperator(problem, "TMPD")

    def tick(self, problem: Problem, state: State, memory: StateOperator) -> Done:
        H, level, sigma_y = memory, problem.level(state.tick), problem.measurement.sigma_y
        evaluation = problem.evaluate(state.x, level)
        p = evaluation.prediction
        r = problem.measurement.residual(problem.to_pixels(p.x0))
        noise, alpha = float(level.sigma) ** 2, float(level.alpha)
        if alpha > 0.0:

            def system(w: Tensor) -> Tensor:
                Cov = evaluation.pull(x0=H.A_adjoint(w), keep=True) * (noise / alpha)
                return H.A(Cov) + sigma_y**2 * w

            w = conjugate_gradient(system, r, iterations=self.iterations).x
            p = guided(p, level, self.zeta * noise * evaluation.pull(x0=H.A_adjoint(w)))
        return Done(problem.advance(state, p), p, torch.linalg.vector_norm(r.flatten(1), dim=1), memory)
