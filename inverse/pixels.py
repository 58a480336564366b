"""The step that a data loss asks for: its gradient through decoder and network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..samplers import Level
from .likelihood import Weighting, data_loss
from .problem import Evaluation, Problem

_POWER = {"norm": 1, "polyak": 1, "squared": 2, "gaussian": 0}


def data_step(
    problem: Problem, evaluation: Evaluation, zeta: float, weighting: Weighting, level: Level, *, keep: bool = False
) -> tuple[Tensor, Tensor]:
    """(what is to be subtracted from the state, |y - A(x)| [B] of the predicted picture, in units of y).

    zeta times the gradient of the data loss in the state. With "polyak", f = |r| and G = grad f per image,

        zeta max(0, f - f*) / |G|^2 G,    f* = sqrt(m) sigma_y,

    which a linear f would follow to f* at zeta = 1 (Polyak 1969, USSR Comput. Math. Math. Phys. 9). f* is what the
    noise alone leaves of m measured numbers: a picture that explains the measurement as well as the truth is left.
    keep: the graph is used once more.
    """
    g, residual = data_gradient(problem, evaluation.prediction.x0, weighting, level)
    if weighting != "polyak":
        return evaluation.pull(x0=zeta * g, keep=keep), residual
    G = evaluation.pull(x0=g, keep=keep)
    y = problem.measurement
    excess = problem.pixel_range * (residual - y.count.to(residual).sqrt() * y.sigma_y).clamp_min(0.0)
    squared = G.flatten(1).square().sum(1)
    length = torch.where(squared > 0.0, zeta * excess / squared, 0.0)
    return G * length.view(-1, *[1] * (G.dim() - 1)), residual


class Decoded(NamedTuple):
    """pixels: D(x0) (B, C, H, W), detached.       gradient: of the data loss, in x0.       residual: |y - A(x)| [B]."""

    pixels: Tensor
    gradient: Tensor
    residual: Tensor


def data_gradient(problem: Problem, x0: Tensor, weighting: Weighting, level: Level) -> tuple[Tensor, Tensor]:
    """(gradient in x0 of the loss of the decoded x0, |y - A(x)| [B] in units of y). See `decoded_gradient`."""
    decoded = decoded_gradient(problem, x0, weighting, level)
    return decoded.gradient, decoded.residual


def decoded_gradient(problem: Problem, x0: Tensor, weighting: Weighting, level: Level) -> Decoded:
    """Decode x0 (B, ...), detached, and send the data loss back through the decoder, whose graph is freed.

    The loss is in the units of `loss_unit`, the residual in those of y.
    """
    with torch.enable_grad():
        z0 = x0.detach().requires_grad_()
        x = problem.to_pixels(z0)
        loss, residual = data_loss(problem.measurement, x, weighting)
        (gradient,) = torch.autograd.grad(loss.sum(), z0)
    return Decoded(x.detach(), gradient * loss_unit(problem, weighting, level), residual)


def loss_unit(problem: Problem, weighting: Weighting, level: Level) -> float:
    """What a data loss is multiplied by, so that published step sizes fit.

    The residual of "norm" and "squared" is in the model's own pixels, those of [-1, 1] for diffusion models, because
    step sizes are published in them. "gaussian" has no unit: its gradient is multiplied by sigma_t^2, so that a step of
    1 is one of the size of the noise level.
    """
    return float(level.sigma) ** 2 if weighting == "gaussian" else problem.pixel_range ** _POWER[weighting]
