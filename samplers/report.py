"""What a run did and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        return {} if self.guided is None else self.guided.measured()

    @property
    def saved(self) -> float:
        """The part of the network rows that was saved, of all branches at every tick.

        These are two at least under a policy that chooses among them, by tick or by data, and is not at scale 1 or 0.
        """
        branches = {branch for tick in self.ticks for branch in tick.branches}
        full = max(2 if self._may_save else 1, len(branches)) * self.batch * self.evaluations
        return 1.0 - self.nfe / full if full else 0.0

    @property
    def _may_save(self) -> bool:
        """Whether there is a policy that could have evaluated more or less than it did."""
        policy = None if self.guided is None else self.guided.policy
        return policy is not None and policy.varies != "never" and getattr(policy, "scale", None) not in (0.0, 1.0)

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

    @property
    def switched_steps(self) -> tuple[int | None, ...]:
        """`switched` in steps; None where nothing can switch: without a policy, or under one that never varies.

        Of a run that was captured in graphs nobody knows them either.
        """
        steps = self.guided.run.step if self.guided is not None and self._may_save else ()
        return tuple(steps[k] if k is not None and k < len(steps) else None for k in self.switched)

    def __str__(self) -> str:
        each = self.nfe / max(self.batch, 1)
        lines = [f"{self.evaluations} evaluations, {each:.4g} NFE an image ({100.0 * self.saved:.0f} % saved)"]
        for branch, counts in self.nfe_per_branch.items():
            lines.append(f"  {branch}: {_each(counts)}")
        if any(k is not None for k in self.switched_steps):
            lines.append(f"  cond alone from step: {_each(['never' if k is None else k for k in self.switched_steps])}")
        if self.scores:
            columns = zip(*self.scores.values(), strict=True)
            ends = [[value for value in column if not math.isnan(value)] for column in columns]
            spans = [f"{v[0]:.4g} to {v[-1]:.4g}" if v else "none" for v in ends]
            lines.append(f"  score, first to last: {_each(spans)}")
        return "\n".join(lines)


def _each(values: Sequence[object]) -> str:
    """One per image, or the one that all share."""
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


class Result(NamedTuple):
    """x (B, ...) at the last target, and what it cost."""

    x: Tensor
    report: Report
