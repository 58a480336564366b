r"""DPS: the data loss of the predicted picture, sent back through the network to the state.

`DPS`, as released: after each ancestral step its result is moved by

    x_{t-1} <- x_{t-1} - zeta grad_{x_t} |y - A(x0hat(x_t))|

`DPSGaussian`, as derived: the score is guided by the likelihood, p(y | x_t) ~ N(y; A(x0hat), sigma_y^2 I),

    g = -grad_{x_t} |y - A(x0hat)|^2 / (2 sigma_y^2)        (then tweedie.guided)

One evaluation serves gradient and step. Both are biased: the picture is not its mean given x_t.
Source: Chung et al. 2022, "Diffusion Posterior Sampling for General Noisy Inverse Problems", arXiv:2209.14687.
Differences from the released code: the norm is each image's, where there it runs over the batch; the ancestral step has
the posterior's own variance, where there the network's learned one is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..samplers import DDIM, Level, Prediction, Solver, State, edit
from .checks import check_number
from .measurement import Measurement
from .pixels import data_gradient
from .posterior import Done, Init, Posterior
from .problem import Problem
from .tweedie import guided

ANCESTRAL = DDIM(eta=1.0)


@dataclass(frozen=True, kw_only=True)
class DPS(Posterior):
    """zeta: the step along the gradient of |r|, in the model's own pixels, as published.

    Released settings for faces of 256 pixels with sigma_y = 0.05 in [-1, 1], which is 0.025 here: 0.3 for
    super-resolution x4, Gaussian, motion and nonlinear blur; 0.5 for random inpainting; 1 for phase retrieval.
    clip: clamp x0hat to the range of pixels before it is used, with the clamp's own gradient, as the released code
    does; off by default, because it is no part of the method and has no meaning for other states.
    Cost a step: one evaluation, forward and backward.
    """

    steps: int = 1000
    zeta: float = 0.3
    clip: bool = False
    solver: Solver | str = ANCESTRAL
    init: Init = "gaussian"

    step_size: ClassVar[str] = "zeta"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.zeta, "zeta", 0.3, zero=True)

    def begin(self, problem: Problem) -> None:
        if not self.clip:
            return
        guess = problem.measurement.guess()
        shape = problem.backbone.latent_shape(*guess.shape[-2:])
        if problem.pixel_range != 2.0 or tuple(shape) != guess.shape[1:]:
            raise IncompatibleError(f"clip=True needs a model whose states are pixels, and those of this "
                                    f"{type(problem.backbone).__name__} are {tuple(shape)} for a picture of "
                                    f"{tuple(guess.shape[1:])}: take clip=False, or LDPS")  # fmt: skip

    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        level = problem.level(state.tick)
        evaluation = problem.evaluate(state.x, level)
        p, inside = evaluation.prediction, None
        if self.clip:
            p, inside = _clamped(problem, p, state.x, level)
        g, residual = data_gradient(problem, p.x0, "norm", level)
        g = g if inside is None else torch.where(inside, g, 0.0)
        after = problem.advance(state, p)
        after = edit(problem.table, after, after.x - self.zeta * evaluation.pull(x0=g))
        return Done(after, p, residual)


@dataclass(frozen=True, kw_only=True)
class DPSGaussian(Posterior):
    """zeta: multiplies the likelihood's gradient; 1 is its own weight.

    Any solver runs on the guided prediction. Where sigma_y is small against what is uncertain in x0hat, the guidance is
    far too strong at high noise: the run then diverges, or needs a smaller zeta or the norm of `DPS`.
    Cost a step: one evaluation, forward and backward.       Errors: ConfigError where sigma_y is 0.
    """

    steps: int = 1000
    zeta: float = 1.0
    solver: Solver | str = ANCESTRAL
    init: Init = "gaussian"

    step_size: ClassVar[str] = "zeta"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.zeta, "zeta", 1.0, zero=True)

    def check(self, measurement: Measurement) -> None:
        if measurement.sigma_y == 0.0:
            raise ConfigError("DPSGaussian divides by sigma_y, which is 0 here: give the noise a size, or take DPS")

    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        level = problem.level(state.tick)
        evaluation = problem.evaluate(state.x, level)
        g, residual = data_gradient(problem, evaluation.prediction.x0, "gaussian", level)  # has sigma_t^2 in it
        p = guided(evaluation.prediction, level, -self.zeta * evaluation.pull(x0=g))
        return Done(problem.advance(state, p), p, residual)


def _clamped(problem: Problem, p: Prediction, x: Tensor, level: Level) -> tuple[Prediction, Tensor]:
    """(p with x0 clamped and the eps that belongs to it, where x0 was inside)."""
    pixels = problem.backbone.to_pixels(p.x0)
    inside = (pixels >= 0.0) & (pixels <= 1.0)
    x0 = torch.where(inside, p.x0, problem.backbone.to_latents(pixels.clamp(0.0, 1.0)))
    return Prediction(x0, (x - float(level.alpha) * x0) / float(level.sigma)), inside
