r"""Guidance in an interval of the run, the conditional prediction outside of it.

    out = u + w (c - u)  where  sigma_lo < sigma <= sigma_hi,      out = c  elsewhere,

one evaluation a tick outside. Source: Kynkäänniemi, Aittala, Karras, Laine, Aila, Lehtinen 2024, arXiv:2404.07724. The
interval may also be given as a part of the steps, as the guiders of diffusers do; `Interval(stop=p)`, guidance in the
first part p, is the baseline of Zhang, Zhang, Wan 2025, arXiv:2506.08351.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from ..samplers.policy import Images, Line, Memory, Policy, Run, Varies
from .scale import Scale, check_run, check_scales, scale_at, towards


@dataclass(frozen=True)
class Interval(Policy):
    """Whether a step is guided is decided at its beginning, so all evaluations of the step are alike.

    scale: w, or one per step, or None for the caller's.
    start, stop: of n steps, those from int(start n) to before int(stop n) are guided.
    sigma: (lo, hi), and only those that begin at a noise level lo < sigma / alpha <= hi.
    """

    scale: Scale = None
    start: float = 0.0
    stop: float = 1.0
    sigma: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_scales(self.scale))
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise ConfigError(f"an interval needs 0 <= start <= stop <= 1, got {self.start!r} and {self.stop!r}")
        if self.sigma is not None and not 0.0 <= self.sigma[0] <= self.sigma[1]:
            raise ConfigError(f"sigma must be (lo, hi) with 0 <= lo <= hi, got {self.sigma!r}")

    @property
    def varies(self) -> Varies:
        return "by tick"

    def begin(self, run: Run) -> Memory:
        """The state is the set of guided steps."""
        check_run(self.scale, run, "Interval")
        first, last = (int(part * run.steps + 1e-9) for part in (self.start, self.stop))  # 0.29 * 100 is 28.99...
        inside = set(range(first, last))
        if self.sigma is not None:
            lo, hi = self.sigma
            begin = {step: run.nodes[i] for i, step in reversed(list(enumerate(run.step)))}
            noise = {k: float(v.sigma) / float(v.alpha) if v.alpha else math.inf for k, v in begin.items()}
            inside = {step for step in inside if lo < noise[step] <= hi}
        return Memory(run, frozenset(inside))

    def _guided(self, i: int, memory: Memory) -> bool:
        return memory.run.step[i] in memory.state and scale_at(self.scale, i, memory.run) != 1.0

    def branches(self, i: int, memory: Memory) -> dict[str, Images]:
        if not self._guided(i, memory):
            return {"cond": None}
        return {"uncond": None} if scale_at(self.scale, i, memory.run) == 0.0 else {"uncond": None, "cond": None}

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        if not self._guided(i, memory):
            return {"cond": 1.0}
        return towards(scale_at(self.scale, i, memory.run), {"uncond": 1.0})
