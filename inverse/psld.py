r"""PSLD: LDPS, and a pull to latents whose picture stays as it is when its measured part is replaced by y.

    x = D(z0hat(z_t))
    z_{t-1} = solver(z_t) - grad_{z_t} [ omega |y - A(x)| + gamma |z0hat - E(A^+ y + (I - A^+ A) x)| ]

The second term "glues": the measured part comes from y, the rest from the prediction, and the latent of both together
should be the predicted one. Norms are each image's own, E is the mean of the encoder's distribution, A^+ the true
pseudo-inverse. One evaluation serves gradient and step.

Source: Rout et al. 2023, "Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion
Models", arXiv:2307.00619; the update and the numbers are its released code's. There the norms run over the batch,
fresh noise is added to A(x), E draws from the encoder's distribution, and A^+ is what the operator calls transpose (for
blur the identity, with which A^+ A is no projection). It begins from noise alone; here, as for every latent method, a
run begins from the noised first guess (`init`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..samplers import Level, State, edit
from .checks import check_number
from .likelihood import Weighting, check_weighting, data_loss
from .measurement import Measurement
from .operators import is_linear, name_of
from .pixels import loss_unit
from .posterior import Done, Posterior
from .problem import Problem

BLOWN_UP = 10.0  # pixels are from 0 to 1; the states of a closed-form prior have no range


@dataclass(frozen=True, kw_only=True)
class PSLD(Posterior):
    """omega: step along the gradient of the data loss.       gamma: of the gluing term, in units of latents.

    The released code has 1 and 0.1, and 0.1 and 0.01 for box inpainting, with 1,000 steps of DDIM.
    weighting: of the data loss, see likelihood.

    The measurement must be linear. A pseudo-inverse that enlarges noise (blur) makes the gluing term pull to noise:
    give the operator an `rcond` of 0.01 to 0.1. Where it is by conjugate gradients (motion and kernel blurs with
    reflecting borders), A^+ A is linear and symmetric only as far as they have converged, so the gluing term's gradient
    is an approximation: take padding="circular" for an exact one.
    Cost a step: one evaluation of network, decoder and encoder, forward and backward.
    """

    steps: int = 1000
    omega: float = 1.0
    gamma: float = 0.1
    weighting: Weighting = "norm"

    step_size: ClassVar[str] = "omega"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.omega, "omega", 1.0, zero=True)
        check_number(self.gamma, "gamma", 0.1, zero=True)
        check_weighting(self.weighting)

    def check(self, measurement: Measurement) -> None:
        check_weighting(self.weighting, measurement.sigma_y)
        operator = measurement.operator
        if not is_linear(operator) or not callable(getattr(operator, "A_dagger", None)):
            raise IncompatibleError(
                f"PSLD needs a linear operator with a pseudo-inverse A_dagger(y), which {name_of(operator)} has not: "
                "take LDPS() or STSL(), which need A(x) alone"
            )

    def begin(self, problem: Problem) -> Tensor:
        """A^+ y (B, C, H, W), what the measurement knows of the picture."""
        measurement, operator = problem.measurement, problem.measurement.operator
        known = operator.A_dagger(measurement.seen(measurement.y))
        largest = float(known.abs().max())
        if not largest < (BLOWN_UP if problem.pixel_range == 2.0 else float("inf")):  # NaN is not below either
            raise ConfigError(f"the pseudo-inverse of {name_of(operator)} makes pixels of up to {largest:.3g} of this "
                              "measurement, for it enlarges the noise, and PSLD would glue that in: give the operator "
                              "a larger rcond, such as 0.1 (for motion and kernel blur with padding='circular'), or "
                              "take LDPS() or STSL()")  # fmt: skip
        return known

    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        level = problem.level(state.tick)
        evaluation = problem.evaluate(state.x, level)
        g, residual = self._gradient(problem, evaluation.prediction.x0, level, memory)
        after = problem.advance(state, evaluation.prediction)
        after = edit(problem.table, after, after.x - evaluation.pull(x0=g))
        return Done(after, evaluation.prediction, residual, memory)

    def _gradient(self, problem: Problem, x0: Tensor, level: Level, known: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient of both terms in x0, |y - A(x)| [B]); the graphs of decoder and encoder are freed."""
        with torch.enable_grad():
            z0 = x0.detach().requires_grad_()
            x = problem.to_pixels(z0)
            loss, residual = data_loss(problem.measurement, x, self.weighting)
            loss = self.omega * loss_unit(problem, self.weighting, level) * loss
            if self.gamma != 0.0:
                glued = known + x - _Measured.apply(x, problem.measurement.operator)  # type: ignore[operator]
                apart = (z0 - problem.to_latents(glued)).flatten(1)
                loss = loss + self.gamma * torch.linalg.vector_norm(apart, dim=1)
            (gradient,) = torch.autograd.grad(loss.sum(), z0)
        return gradient, residual


class _Measured(torch.autograd.Function):
    """x -> A^+ A x. A projection on the range of A^T is symmetric, so the way back is the same map.

    So nothing is asked of the operator's own A_dagger, which need not be differentiable.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: Any) -> Tensor:
        ctx.operator = operator
        return _projected(operator, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _projected(ctx.operator, gradients[0].contiguous()), None


def _projected(operator: Any, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return operator.A_dagger(operator.A(x))
