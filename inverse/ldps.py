r"""LDPS: posterior sampling with the data loss of the decoded prediction.

    z_{t-1} = solver(z_t) - zeta grad_{z_t} |y - A(D(z0hat(z_t)))|

The residual is that of pixels in [-1, 1], as where zeta was published. One evaluation serves gradient and step.
Source: Rout et al. 2023, arXiv:2307.00619 (as its code has it: norm, not its square; deterministic DDIM, 1,000 steps),
after Chung et al. 2022, arXiv:2209.14687. There the norm runs over the batch and the predicted measurement gets fresh
noise; here it is each image's, without noise. There a run begins from noise alone; here, as for every latent method,
from the noised first guess (`init`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..samplers import State, edit
from .checks import check_number
from .likelihood import Weighting, check_weighting
from .measurement import Measurement
from .pixels import data_step
from .posterior import Done, Posterior
from .problem import Problem


@dataclass(frozen=True, kw_only=True)
class LDPS(Posterior):
    """zeta: step along the gradient of the data loss, omega in the article's code, where it is 1.

    weighting: of the data loss, see likelihood.       Cost a step: one evaluation of network and decoder, forward and
    backward.
    """

    steps: int = 1000
    zeta: float = 1.0
    weighting: Weighting = "norm"

    step_size: ClassVar[str] = "zeta"
    remedy: ClassVar[str] = "take another weighting, or more steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.zeta, "zeta", 1.0, zero=True)
        check_weighting(self.weighting, polyak=True)

    def check(self, measurement: Measurement) -> None:
        check_weighting(self.weighting, measurement.sigma_y, polyak=True)

    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        level = problem.level(state.tick)
        evaluation = problem.evaluate(state.x, level)
        step, residual = data_step(problem, evaluation, self.zeta, self.weighting, level)
        after = problem.advance(state, evaluation.prediction)
        after = edit(problem.table, after, after.x - step)
        return Done(after, evaluation.prediction, residual)
