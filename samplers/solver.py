"""The solver protocol and its plan: what happens at which tick."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from .grids import Levels, check_levels
from .levels import Level, NoiseSchedule
from .prediction import Prediction
from .scalars import finite

Carry = tuple[Any, ...]  # of Tensor | LinearForm: what a tick remembers for the next ones, newest first


@dataclass(frozen=True)
class Plan:
    """Where a run evaluates the network, known before it starts. All tuples have one entry per tick.

    nodes: the level of the evaluation.       targets: the level the state is at after the tick.
    step:  index of the interval.             stage: 0 at the first tick of an interval, 1, 2 at inner ones.
    order: the highest order the tick may use (ramp-down at the end, blocks at an infinite lam: 1).
    """

    nodes: Levels
    targets: Levels
    step: tuple[int, ...]
    stage: tuple[int, ...]
    order: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.nodes)

    @classmethod
    def of(cls, ticks: Iterable[tuple[Level, Level, int, int, int]]) -> Plan:
        """From (node, target, step, stage, order) per tick."""
        nodes, targets, step, stage, order = zip(*ticks, strict=True)
        return cls(nodes, targets, step, stage, order)


class Solver(Protocol):
    """An update rule. Implementations are frozen dataclasses that hold hyper-parameters and nothing else.

    keeps_edits: whether a change made to x between two ticks reaches the next state. Where False such a change must go
    through `edit`, which drops the carry.
    """

    keeps_edits: ClassVar[bool]

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan: ...

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        """Tick i: from x at plan.nodes[i] and the prediction p there to x at plan.targets[i] and the next carry.

        Uses only + - * / on its vectors. The multistep order comes from len(carry), never from i; every solver accepts
        ``carry=()`` at every tick (at an inner stage the rest of the step then becomes steps of lower order).
        """
        ...


def one_tick_plan(levels: Levels, order: int = 1, *, lower_order_final: bool = False) -> Plan:
    """One evaluation an interval, at most of the given order.

    Intervals that touch alpha = 0 or sigma = 0 have order 1, and history does not reach back over them or over a turn
    (a run that rises after falling). With `lower_order_final` the last `order - 1` intervals ramp down to order 1.
    """
    check_levels(levels)
    n = len(levels) - 1
    ticks, past, before = [], 0, 0.0  # past: earlier intervals that continue into this one
    for i, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
        h = float(t.lam) - float(s.lam) if has_finite_h(s, t) else 0.0
        past = past + 1 if h * before > 0.0 else 0
        before = h
        allowed = min(order, past + 1, n - i if lower_order_final else order)
        ticks.append((s, t, i, 0, allowed))
    return Plan.of(ticks)


def has_finite_h(s: Level, t: Level) -> bool:
    """Whether h = lam_t - lam_s is finite: neither end touches alpha = 0 or sigma = 0."""
    return finite(s.lam) and finite(t.lam)


def first_order(t: Level, p: Prediction) -> Any:
    """alpha_t x0 + sigma_t eps: DDIM's step, exact for constant x0; no division at either end."""
    return t.alpha * p.x0 + t.sigma * p.eps


def remember(s: Level, newest: Any, carry: Carry, length: int) -> Carry:
    """`newest` in front of the carry, cut to `length`; history at an infinite lam is of no use and is dropped."""
    if length < 1 or not finite(s.lam):
        return ()
    return (newest, *carry)[:length]
