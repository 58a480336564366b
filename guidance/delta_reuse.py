r"""Guidance whose second half costs one evaluation a tick: the last difference between the two predictions is frozen.

    delta = c_k - u_k,        u^ = c - g delta,        out = u^ + w (c - u^) = c + (w - 1) g delta        after tick k

on raw outputs. With g = 1 this is the gate of FastVideo (pull request 1372) and of sglang (pull request 25848). The
difference changes in size as the noise falls, so g may be fitted per step; its direction stays what it was. It is the
smallest case of LinearAG (guidance.linear), which also uses what c was at tick k.
A run of T ticks with K guided ones costs T + K evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import ConfigError
from ..samplers.policy import Line, Memory, Run, Varies
from .planned import PlannedPolicy, guided_lines, planned
from .scale import Scale, check_number, check_run, check_scales, number_of, scale_at
from .steps import step_of, steps_within

Gain = float | tuple[float, ...]


@dataclass(frozen=True)
class DeltaReuse(PlannedPolicy):
    """scale: w, or one per step, or None for the caller's.

    stop: of the n steps of the run, those before int(stop n) are guided with an evaluated u, and the first one always.
    gain: g, or one per step of the table, of which those of the guided steps are not used.
    """

    scale: Scale = None
    stop: float = 0.5
    gain: Gain = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_scales(self.scale))
        object.__setattr__(self, "gain", check_gain(self.gain))
        object.__setattr__(self, "stop", check_number("stop, the guided part of the steps,", self.stop, 0.0, 1.0))

    @property
    def varies(self) -> Varies:
        return "by data"

    def begin(self, run: Run) -> Memory:
        check_run(self.scale, run, "DeltaReuse")
        if isinstance(self.gain, tuple) and len(self.gain) != run.steps:
            raise ConfigError(f"DeltaReuse has {len(self.gain)} gains, one per step, and the run has {run.steps} steps")
        guided = max(1, steps_within(self.stop, run))
        ticks = range(run.first, len(run.step))
        before = [i for i in ticks if step_of(i, run) < guided]
        kept = max((i for i in before if scale_at(self.scale, i, run) != 1.0), default=None)
        if kept is None and any(scale_at(self.scale, i, run) != 1.0 for i in ticks):
            raise ConfigError("DeltaReuse keeps the difference of its last guided step, and the scale of all of its "
                              f"first {guided} steps is 1: raise stop, or give them another scale")  # fmt: skip
        uncond: list[Line | None] = [None] * run.first  # which are never asked for
        uncond += [{"uncond": 1.0} if i in before else self._frozen(run.step[i]) for i in ticks]
        recipes = {} if kept is None else {"delta": (kept, {"cond": 1.0, "uncond": -1.0})}
        return Memory(run, planned(guided_lines(uncond, self.scale, run), recipes))

    def _frozen(self, step: int) -> Line:
        gain = self.gain[step] if isinstance(self.gain, tuple) else self.gain
        return {"cond": 1.0, "delta": -gain}


def check_gain(gain: Gain) -> Gain:
    """`gain` as a policy keeps it, else ConfigError."""
    one = number_of(gain)
    several = one is None and isinstance(gain, Iterable) and not isinstance(gain, str | bytes)
    numbers = [number_of(g) for g in gain] if several else [one]  # type: ignore[union-attr]
    kept = tuple(g for g in numbers if g is not None and math.isfinite(g))
    if not kept or len(kept) != len(numbers):
        raise ConfigError(f"the gain of a frozen difference is a finite number, or one per step, got {gain!r}")
    return kept if one is None else one
