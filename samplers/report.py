"""What a run did and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .guided import Asked, Guided
from .levels import Level
from .policy import Images


class TickRecord(NamedTuple):
    """What one tick did: its level, the branches that it evaluated, host milliseconds (network call included).

    images: per branch the images that evaluated it, None for all.
    """

    tick: int
    level: Level
    branches: tuple[str, ...]
    ms: float
    images: tuple[Images, ...] = ()

    @property
    def asked(self) -> Asked:
        return Asked(self.branches, self.images or (None,) * len(self.branches))


@dataclass
class Report:
    """What a run cost. NFE counts image rows x branches."""

    batch: int
    ticks: list[TickRecord] = field(default_factory=list)
    guided: Guided | None = field(default=None, repr=False, compare=False)

    @property
    def evaluations(self) -> int:
        """At how many ticks the network was evaluated."""
        return sum(1 for tick in self.ticks if tick.branches)

    @property
    def nfe(self) -> int:
        """Image rows x branches over the whole batch."""
        return sum(tick.asked.rows(self.batch) for tick in self.ticks)

    @property
    def nfe_per_branch(self) -> dict[str, tuple[int, ...]]:
        """Per image: how often each branch was evaluated."""
        counts: dict[str, list[int]] = {}
        for tick in self.ticks:
            for branch, images in zip(*tick.asked, strict=True):
                row = counts.setdefault(branch, [0] * self.batch)
                for image in range(self.batch) if images is None else images:
                    row[image] += 1
        return {branch: tuple(row) for branch, row in counts.items()}

    @property
    def nfe_per_image(self) -> tuple[int, ...]:
        """Branches evaluated over the run, image by image."""
        rows = self.nfe_per_branch.values()
        return tuple(sum(column) for column in zip(*rows, strict=True)) if rows else (0,) * self.batch

    @property
    def scores(self) -> dict[int, tuple[float, ...]]:
        """Tick -> what the guidance policy measured of every image, such as gamma. Waits for the newest ones.

        An image that did not evaluate all branches at a tick has a NaN there.
        """
        if self.guided is None:
            return {}
        self.guided.settle(len(self.guided.run.nodes))
        return self.guided.scores

    @property
    def switched(self) -> tuple[int | None, ...]:
        """Per image: the tick from which on it evaluated "cond" alone, or None where it never came to that."""
        evaluated = [t for t in self.ticks if t.branches]
        found: list[int | None] = []
        for image in range(self.batch):
            guided = [k for k, t in enumerate(evaluated) if t.asked.of_image(image) != ("cond",)]
            after = guided[-1] + 1 if guided else 0
            found.append(evaluated[after].tick if after < len(evaluated) else None)
        return tuple(found)


class Result(NamedTuple):
    """x (B, ...) at the last target, and what it cost."""

    x: Tensor
    report: Report
