r"""Guidance whose second half costs one evaluation a tick: the last difference between the two predictions is frozen.

    delta = c_k - u_k,        u^ = c - g delta,        out = u^ + w (c - u^) = c + (w - 1) g delta        after tick k

on raw outputs. With g = 1 this is the gate of FastVideo (pull request 1372) and of sglang (pull request 25848). The
difference changes in size as the noise falls, so g may be fitted per step; its direction stays what it was. It is the
smallest case of LinearAG (guidance.linear), which also uses what c was at tick k.
A run of T ticks with K guided ones costs T + K evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError
from ..samplers.policy import Line, Memory, Run, Varies
from .planned import PlannedPolicy, guided_lines, planned
from .scale import Scale, check_run, check_scales, scale_at

Gain = float | tuple[float, ...]


@dataclass(frozen=True)
class DeltaReuse(PlannedPolicy):
    """scale: w, or one per step, or None for the caller's.

    stop: of n steps, those before int(stop n) are guided with an evaluated u, and the first one always.
    gain: g, or one per step of the run, of which those of the guided steps are not used.
    """

    scale: Scale = None
    stop: float = 0.5
    gain: Gain = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_scales(self.scale))
        object.__setattr__(self, "gain", check_gain(self.gain))
        if not 0.0 <= self.stop <= 1.0:
            raise ConfigError(f"stop is the guided part of the steps, from 0 to 1, got {self.stop!r}")

    @property
    def varies(self) -> Varies:
        return "by data"

    def begin(self, run: Run) -> Memory:
        check_run(self.scale, run, "DeltaReuse")
        if isinstance(self.gain, tuple) and len(self.gain) != run.steps:
            raise ConfigError(f"DeltaReuse has {len(self.gain)} gains, one per step, and the run has {run.steps} steps")
        guided = max(1, int(self.stop * run.steps))
        ticks = range(len(run.step))
        before = [i for i in ticks if run.step[i] < guided]
        kept = max((i for i in before if scale_at(self.scale, i, run) != 1.0), default=None)
        if kept is None and any(scale_at(self.scale, i, run) != 1.0 for i in ticks):
            raise ConfigError("DeltaReuse keeps the difference of its last guided step, and the scale of all of its "
                              f"first {guided} steps is 1: raise stop, or give them another scale")  # fmt: skip
        uncond = [{"uncond": 1.0} if i in before else self._frozen(run.step[i]) for i in ticks]
        recipes = {} if kept is None else {"delta": (kept, {"cond": 1.0, "uncond": -1.0})}
        return Memory(run, planned(guided_lines(uncond, self.scale, run), recipes))

    def _frozen(self, step: int) -> Line:
        gain = self.gain[step] if isinstance(self.gain, tuple) else self.gain
        return {"cond": 1.0, "delta": -gain}


def check_gain(gain: Gain) -> Gain:
    """`gain` as a policy keeps it, else ConfigError."""
    gains = (gain,) if isinstance(gain, int | float) else tuple(gain)
    if not gains or any(isinstance(g, bool) or not isinstance(g, int | float) or not math.isfinite(g) for g in gains):
        raise ConfigError(f"the gain of a frozen difference is a finite number, or one per step, got {gain!r}")
    return float(gain) if isinstance(gain, int | float) else tuple(float(g) for g in gains)
