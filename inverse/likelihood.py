r"""How badly a picture explains a measurement: data losses and the proximal step.

All of them are one number per image; nothing mixes the images of a batch, so image k is the same alone. r = y - A(x):

    norm      |r|                       (Chung et al. 2022, arXiv:2209.14687, as their code steps)
    squared   |r|^2
    gaussian  |r|^2 / (2 sigma_y^2)     the negative log-likelihood, up to a constant
    polyak    |r|, with steps whose length is each image's own (see pixels.data_step)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from .measurement import Measurement
from .operators import name_of

Weighting = Literal["norm", "squared", "gaussian", "polyak"]
WEIGHTINGS = get_args(Weighting)


def check_weighting(weighting: str, sigma_y: float | None = None, *, polyak: bool = False) -> None:
    """ConfigError for a name that does not exist, or the Gaussian likelihood of a measurement without noise.

    polyak: whether the method knows steps of that kind.
    """
    known = [name for name in WEIGHTINGS if polyak or name != "polyak"]
    if weighting not in known:
        raise ConfigError(f"weighting {weighting!r} does not exist here: expected {', '.join(known)}")
    if weighting == "gaussian" and sigma_y == 0.0:
        raise ConfigError("weighting 'gaussian' divides by sigma_y, which is 0 here: give the noise a size, or take "
                          "weighting 'norm'")  # fmt: skip


def data_loss(measurement: Measurement, x: Tensor, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """(loss, |r|), both [B], of pictures x; in float32 or float64 whatever autocast says, with gradients."""
    with torch.autocast(x.device.type, enabled=False):
        r = measurement.residual(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).flatten(1)
        if x.requires_grad and torch.is_grad_enabled() and not r.requires_grad:
            raise IncompatibleError(f"A(x) of {name_of(measurement.operator)} has no gradient in x: it must be made of "
                                    "torch's operations alone, without numpy, detach() or no_grad()")  # fmt: skip
        norm = torch.linalg.vector_norm(r, dim=1)  # its gradient at r = 0 is 0
        if weighting in ("norm", "polyak"):
            return norm, norm.detach()
        squared = r.square().sum(1)
        return (squared / (2.0 * measurement.sigma_y**2) if weighting == "gaussian" else squared), norm.detach()


def prox(measurement: Measurement, x: Tensor, gamma: float | Tensor) -> Tensor:
    """argmin_u gamma / 2 |A u - y|^2 + 1/2 |u - x|^2, of x's shape: the operator's own, else by conjugate gradients.

    gamma: > 0; a tensor [B] for one per image.       Errors: ConfigError where the operator is not linear.
    """
    with torch.no_grad():
        if hasattr(measurement.operator, "prox_l2"):
            return measurement.operator.prox_l2(x, measurement.y, gamma)
        from .operators.solve import prox_by_cg

        return prox_by_cg(measurement.operator, x, measurement.y, gamma)
