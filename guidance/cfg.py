r"""Classifier-free guidance.

    out = (1 - w) out_uncond + w out_cond = out_uncond + w (out_cond - out_uncond)

with diffusers' scale w: 1 means no guidance, and the unconditional branch is then not evaluated.
Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6 (there w + 1 is ours).

Rescaled (Lin, Liu, Li, Yang 2023, arXiv:2305.08891, equations 15 and 16):

    out' = phi out std(out_cond) / std(out) + (1 - phi) out,

std over all elements of an image, unbiased as torch.std; both come from one Gram matrix with a row of ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from ..samplers.policy import Images, Line, Memory, Policy, Run, Statistics, Varies
from .scale import Scale, check_number, check_run, check_scale, check_scales, scale_at, towards

__all__ = ["CFG", "check_scale"]

_BOTH: dict[str, Images] = {"uncond": None, "cond": None}


@dataclass(frozen=True)
class CFG(Policy):
    """Two branches a tick, one at w = 1 (cond) or w = 0 (uncond).

    scale: w, a finite number >= 0, or one per step; None for the caller's.       rescale: phi in [0, 1].
    """

    scale: Scale = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_scales(self.scale))
        object.__setattr__(self, "rescale", check_number("rescale", self.rescale, 0.0, 1.0))

    @property
    def varies(self) -> Varies:
        if self.rescale:
            return "by data"
        return "by tick" if isinstance(self.scale, tuple) else "never"

    def begin(self, run: Run) -> Memory:
        check_run(self.scale, run, "CFG")
        if self.rescale and self.scale is None:
            raise ConfigError("rescale needs the guidance scale: give it, CFG(scale=7.5, rescale=0.7), or use the "
                              "pipeline's own guidance_rescale")  # fmt: skip
        return Memory(run)

    def branches(self, i: int, memory: Memory) -> dict[str, Images]:
        w = scale_at(self.scale, i, memory.run)
        if w == 1.0:
            return {"cond": None}
        return {"uncond": None} if w == 0.0 else _BOTH

    def statistics(self, i: int, memory: Memory) -> Statistics | None:
        w = scale_at(self.scale, i, memory.run)
        return Statistics(({"cond": 1.0}, {"uncond": 1.0}), ones=True) if self.rescale and w not in (0.0, 1.0) else None

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        w = scale_at(self.scale, i, memory.run)
        line = towards(w, {"uncond": 1.0})
        if gram is None or w is None:
            return line
        cov, v = covariance(gram), 1.0 - w
        variance = w * w * cov[:, 0, 0] + 2.0 * w * v * cov[:, 0, 1] + v * v * cov[:, 1, 1]
        factor = self.rescale * (cov[:, 0, 0] / variance).sqrt() + (1.0 - self.rescale)
        return {name: weight * factor for name, weight in line.items()}  # type: ignore[operator]


def covariance(gram: Tensor) -> Tensor:
    """[B, K, K] unbiased covariances over the elements, from a Gram matrix [B, K + 1, K + 1] with a row of ones."""
    n = gram[:, -1:, -1:]
    sums = gram[:, :-1, -1:]
    return (gram[:, :-1, :-1] - sums * sums.transpose(1, 2) / n) / (n - 1.0)
