"""Policies that are known before the run, but for the numbers in what they remember."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..samplers.policy import Images, Line, Memory, Policy, Run
from .scale import Scale, scale_at, towards

Recipes = Mapping[str, tuple[int, Line]]
"""Remembered name -> (the tick that makes it, its line over that tick's branches)."""

CONDITIONAL: Line = {"cond": 1.0}


class PlannedTick(NamedTuple):
    """What a tick evaluates, the line of its guided prediction, what it leaves for later ticks, and what it ends."""

    branches: dict[str, Images]
    line: Line
    remembered: dict[str, Line]
    forgotten: tuple[str, ...]


class PlannedPolicy(Policy):
    """A policy whose memory is one PlannedTick per tick; `begin` makes them."""

    def branches(self, i: int, memory: Memory) -> dict[str, Images]:
        return self._tick(i, memory).branches

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        return self._tick(i, memory).line

    def remember(self, i: int, memory: Memory) -> dict[str, Line]:
        return self._tick(i, memory).remembered

    def forget(self, i: int, memory: Memory) -> tuple[str, ...]:
        return self._tick(i, memory).forgotten

    def _tick(self, i: int, memory: Memory) -> PlannedTick:
        ticks: Sequence[Any] = memory.state
        return ticks[i]


def guided_lines(uncond: Sequence[Line | None], scale: Scale, run: Run) -> list[Line]:
    """The guided prediction of every tick, for lines of its u^; None is the conditional prediction."""
    return [CONDITIONAL if u is None else towards(scale_at(scale, i, run), u) for i, u in enumerate(uncond)]


def planned(
    lines: Sequence[Line], recipes: Recipes, measured: Mapping[int, Collection[str]] | None = None
) -> tuple[PlannedTick, ...]:
    """The ticks of a run whose guided predictions are `lines`: they evaluate and remember what is read, and no more.

    measured: registers that a tick reads besides its line.
    """
    reads = [{*line, *(measured or {}).get(i, ())} for i, line in enumerate(lines)]
    last = {name: max((i for i, read in enumerate(reads) if name in read), default=None) for name in recipes}
    made = {name: tick for name, (tick, _) in recipes.items()}
    ticks = []
    for i, line in enumerate(lines):
        remembered = {n: r for n, (tick, r) in recipes.items() if tick == i and last[n] is not None}
        read = {*reads[i], *(register for recipe in remembered.values() for register in recipe)}
        branches: dict[str, Images] = {b: None for b in ("uncond", "cond") if b in read}
        forgotten = tuple(n for n in recipes if last[n] == i and made[n] < i)
        ticks.append(PlannedTick(branches or {"cond": None}, line, remembered, forgotten))
    return tuple(ticks)
