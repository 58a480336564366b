"""Back up the noise levels: a clean image with noise put on it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from ..kernels import ops
from .levels import Level


def renoise(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """x = alpha x0 + sigma noise at `level`, in one pass over both; float32, float64 where x0 or noise is.

    x0, noise: equally shaped (B, ...), floating.       level: alpha and sigma are numbers, 0-d tensors, or tensors [B]
    with a level per image. What is multiplied by zero is not read: there may be NaN in it.
    Errors: ConfigError for shapes that differ.
    """
    if x0.shape != noise.shape:
        raise ConfigError(f"renoise needs noise of the image's shape {tuple(x0.shape)}, got {tuple(noise.shape)}")
    if not isinstance(level.alpha, Tensor) and not isinstance(level.sigma, Tensor):
        return ops.combine(((float(level.alpha), float(level.sigma)),), (x0, noise))[0]
    pair = [torch.as_tensor(c, dtype=torch.float64, device=x0.device) for c in (level.alpha, level.sigma)]
    C = torch.stack([c.expand(x0.shape[0]) for c in pair], dim=-1).unsqueeze(1)
    return ops.combine(C, (x0, noise))[0]
