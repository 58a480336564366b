r"""Guidance in an interval of the run, the conditional prediction outside of it.

    out = u + w (c - u)  where  sigma_lo < sigma <= sigma_hi,      out = c  elsewhere,

one evaluation a tick outside. Source: Kynkäänniemi, Aittala, Karras, Laine, Aila, Lehtinen 2024, arXiv:2404.07724. The
interval may also be given as a part of the steps, as the guiders of diffusers do; `Interval(stop=p)`, guidance in the
first part p, is the baseline of Zhang, Zhang, Wan 2025, arXiv:2506.08351.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..samplers.policy import Images, Line, Memory, Policy, Run, Varies
from .scale import Scale, check_number, check_run, check_scales, number_of, scale_at, towards
from .steps import first_step, step_of, steps_within


@dataclass(frozen=True)
class Interval(Policy):
    """Whether a step is guided is decided at its beginning, so all evaluations of the step are alike.

    scale: w, or one per step, or None for the caller's.
    start, stop: of the n steps of the run, those from int(start n) to before int(stop n) are guided.
    sigma: (lo, hi), and only those that begin at a noise level lo < sigma / alpha <= hi.
    """

    scale: Scale = None
    start: float = 0.0
    stop: float = 1.0
    sigma: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_scales(self.scale))
        for name in ("start", "stop"):
            object.__setattr__(self, name, check_number(name, getattr(self, name)))
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise ConfigError(f"an interval needs 0 <= start <= stop <= 1, got {self.start!r} and {self.stop!r}")
        if self.sigma is not None:
            object.__setattr__(self, "sigma", _check_sigma(self.sigma))

    @property
    def varies(self) -> Varies:
        return "by tick"

    def begin(self, run: Run) -> Memory:
        """The state is the set of guided steps, counted from the one that the run begins with."""
        check_run(self.scale, run, "Interval")
        inside = set(range(steps_within(self.start, run), steps_within(self.stop, run)))
        if self.sigma is not None:
            (lo, hi), noise = self.sigma, _noise_of(run)
            inside = {step for step in inside if lo < noise[step] <= hi}
        return Memory(run, frozenset(inside))

    def _guided(self, i: int, memory: Memory) -> bool:
        return step_of(i, memory.run) in memory.state and scale_at(self.scale, i, memory.run) != 1.0

    def branches(self, i: int, memory: Memory) -> dict[str, Images]:
        if not self._guided(i, memory):
            return {"cond": None}
        return {"uncond": None} if scale_at(self.scale, i, memory.run) == 0.0 else {"uncond": None, "cond": None}

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        if not self._guided(i, memory):
            return {"cond": 1.0}
        return towards(scale_at(self.scale, i, memory.run), {"uncond": 1.0})


def _noise_of(run: Run) -> dict[int, float]:
    """sigma / alpha where each step begins."""
    ticks = range(len(run.step) - 1, run.first - 1, -1)  # of a step's ticks the first one stays
    begin = {run.step[i] - first_step(run): run.nodes[i] for i in ticks}
    try:
        return {k: float(v.sigma) / float(v.alpha) if v.alpha else math.inf for k, v in begin.items()}
    except IncompatibleError as error:  # which speaks of similarities
        raise IncompatibleError("Interval(sigma=...) compares noise levels, and those of this run's scheduler are not "
                                "known: use start and stop, or attach(pipe, solver=...)") from error  # fmt: skip


def _check_sigma(sigma: Any) -> tuple[float, float]:
    """`sigma` as a policy keeps it, else ConfigError."""
    found = [number_of(s) for s in sigma] if isinstance(sigma, tuple | list) else []
    lo, hi = found if len(found) == 2 else (None, None)
    if lo is None or hi is None or not 0.0 <= lo <= hi:
        raise ConfigError(f"sigma must be (lo, hi), two numbers with 0 <= lo <= hi, got {sigma!r}")
    return lo, hi
