r"""Classifier-free guidance.

    out = (1 - w) out_uncond + w out_cond = out_uncond + w (out_cond - out_uncond)

with diffusers' scale w: 1 means no guidance, and the unconditional branch is then not evaluated.
Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6 (there w + 1 is ours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class CFG:
    """scale: w, a finite number >= 0. Two branches a tick, one at w = 1 (cond) or w = 0 (uncond)."""

    scale: float

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def branches(self, i: int, memory: Any) -> tuple[str, ...]:
        if self.scale == 1.0:
            return ("cond",)
        return ("uncond", "cond") if self.scale else ("uncond",)

    def weights(self, i: int, gram: Any, memory: Any) -> tuple[float, ...]:
        return (1.0 - self.scale, self.scale) if self.scale not in (0.0, 1.0) else (1.0,)


def check_scale(scale: float) -> float:
    """`scale` as a float if it is finite and not negative, else ConfigError."""
    if not (math.isfinite(scale) and scale >= 0.0):
        raise ConfigError(f"the guidance scale must be a finite number >= 0 (1 = no guidance), got {scale!r}")
    return float(scale)
