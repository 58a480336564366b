"""The gradient of a data loss in the predicted clean latent, through the decoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..samplers import Level
from .likelihood import Weighting, data_loss
from .problem import Problem

_POWER = {"norm": 1, "squared": 2, "gaussian": 0}


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
