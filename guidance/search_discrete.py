"""Discrete policies: their distance to full guidance, and a local search among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..samplers.engine import State
from ..samplers.table import Table
from .search_loss import Measure, best_of, distance_of
from .search_runs import Pairs, branches_of, nfe_of, states_of
from .searched import Choice, scale_of


class Neighbour(NamedTuple):
    """A policy that differs in one or two steps.       cost: how much the logits speak against it."""

    cost: float
    choices: tuple[Choice, ...]


def neighbours(
    choices: Sequence[Choice],
    logits: Tensor,
    candidates: Sequence[Choice],
    ticks: Sequence[int],
    target: float,
) -> list[Neighbour]:
    """The policies within the target that are one change away, the most promising first.

    A change: another candidate of as many branches at one step; or one step less guided and one more; or one more
    where the target allows it.
    """
    lines = logits.tolist()
    found: list[Neighbour] = []

    def add(changes: dict[int, Choice]) -> None:
        after = tuple(changes.get(t, choice) for t, choice in enumerate(choices))
        if after != tuple(choices) and nfe_of(after, ticks) <= target:
            was = sum(lines[t][candidates.index(choices[t])] for t in changes)
            found.append(Neighbour(was - sum(lines[t][candidates.index(c)] for t, c in changes.items()), after))

    best = [best_of(line, candidates) for line in lines]
    guided = [t for t, choice in enumerate(choices) if branches_of(choice) == 2]
    single = [t for t, choice in enumerate(choices) if branches_of(choice) == 1]
    for t, choice in enumerate(choices):
        for other in candidates:
            if branches_of(other) == branches_of(choice):
                add({t: other})
    for b in single:
        add({b: best[b][1][1]})
        for a in guided:
            add({a: best[a][0][1], b: best[b][1][1]})
    return sorted(found, key=lambda n: n.cost)


class Standing:
    """A policy on all batches: its states, from which neighbours start, and its distance per batch."""

    def __init__(
        self, table: Table, batches: Sequence[Pairs], wanted: Sequence[Tensor], measure: Measure, choices: Sequence
    ) -> None:
        self.table, self.batches, self.wanted, self.measure = table, batches, wanted, measure
        self.choices: tuple[Choice, ...] = ()
        self.distances: list[float] = []
        self._states: list[list[State]] = [[] for _ in batches]
        found = self._run(tuple(choices), 0, float("inf"))
        assert found is not None
        self._accept(tuple(choices), *found)

    @property
    def distance(self) -> float:
        """Summed over all pairs."""
        return sum(self.distances)

    def improved_by(self, choices: tuple[Choice, ...]) -> bool:
        """Whether `choices` is closer; it is then what stands here. Ends as soon as it cannot be any more."""
        pairs = zip(choices, self.choices, strict=True)
        first = next(t for t, (new, old) in enumerate(pairs) if scale_of(new) != scale_of(old))
        found = self._run(choices, self.table.plan.step.index(first), self.distance)
        if found is None:
            return False
        self._accept(choices, *found)
        return True

    def _run(
        self, choices: tuple[Choice, ...], tick: int, below: float
    ) -> tuple[list[list[State]], list[float]] | None:
        """From `tick` on, before which the choices are those that stand; None if the distance is not below."""
        scales = [scale_of(choice) for choice in choices]
        states: list[list[State]] = []
        distances: list[float] = []
        for k, pairs in enumerate(self.batches):
            kept = self._states[k][:tick]
            first = self._states[k][tick] if self._states[k] else None
            states.append(kept + states_of(self.table, pairs, scales, first))
            distances.append(float(distance_of(self.measure(states[-1][-1].x), self.wanted[k])))
            if not sum(distances) < below:
                return None
        return states, distances

    def _accept(self, choices: tuple[Choice, ...], states: list[list[State]], distances: list[float]) -> None:
        self.choices, self._states, self.distances = choices, states, distances
