"""What a run did and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .levels import Level


class TickRecord(NamedTuple):
    """What one tick did: its level, the branches that it evaluated, host milliseconds (network call included)."""

    tick: int
    level: Level
    branches: tuple[str, ...]
    ms: float


@dataclass
class Report:
    """What a run cost. NFE counts image rows x branches."""

    batch: int
    ticks: list[TickRecord] = field(default_factory=list)

    @property
    def evaluations(self) -> int:
        """How often the network was called."""
        return sum(1 for tick in self.ticks if tick.branches)

    @property
    def nfe(self) -> int:
        """Image rows x branches over the whole batch."""
        return self.batch * sum(len(t.branches) for t in self.ticks)

    @property
    def nfe_per_branch(self) -> dict[str, int]:
        """Per image: how often each branch was evaluated."""
        counts: dict[str, int] = {}
        for t in self.ticks:
            for branch in t.branches:
                counts[branch] = counts.get(branch, 0) + 1
        return counts


class Result(NamedTuple):
    """x (B, ...) at the last target, and what it cost."""

    x: Tensor
    report: Report
