"""The gradient of a data loss in the predicted clean latent, through the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from ..samplers import Level
from .likelihood import Weighting, data_loss
from .problem import Problem

_POWER = {"norm": 1, "squared": 2, "gaussian": 0}


def data_gradient(problem: Problem, x0: Tensor, weighting: Weighting, level: Level) -> tuple[Tensor, Tensor]:
    """(gradient in x0 of the loss of the decoded x0, |y - A(x)| [B] in units of y). The decoder's graph is freed.

    x0: (B, ...) detached.       The residual of "norm" and "squared" is in the model's own pixels, those of [-1, 1] for
    diffusion models, because step sizes are published in them. "gaussian" has no unit: its gradient is multiplied by
    sigma_t^2, so that a step of 1 is one of the size of the noise level.
    """
    with torch.enable_grad():
        z0 = x0.detach().requires_grad_()
        loss, residual = data_loss(problem.measurement, problem.to_pixels(z0), weighting)
        (gradient,) = torch.autograd.grad(loss.sum(), z0)
    scale = float(level.sigma) ** 2 if weighting == "gaussian" else problem.pixel_range ** _POWER[weighting]
    return gradient * scale, residual
