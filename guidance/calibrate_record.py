"""One pass of fully guided runs for all that a calibration wants of it: the inner products of linear_plan and gamma."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..samplers.policy import Images, Line, Memory, Policy, Run, Statistics, Varies
from .adaptive import cosine
from .linear_fit import Enough, Recorder
from .planned import PlannedPolicy
from .space import in_space


@dataclass(frozen=True)
class Watched(Policy):
    """A recorder whose run scores gamma at every step, as AdaptiveGuidance does, and goes on to its end.

    recorder: of linear_fit.       space: in which gamma is measured.
    """

    recorder: Recorder
    space: Any

    @property
    def varies(self) -> Varies:
        return self.recorder.varies

    def begin(self, run: Run) -> Memory:
        return self.recorder.begin(run)

    def branches(self, i: int, memory: Memory) -> Mapping[str, Images]:
        return self.recorder.branches(i, memory)

    def remember(self, i: int, memory: Memory) -> Mapping[str, Line]:
        return self.recorder.remember(i, memory)

    def forget(self, i: int, memory: Memory) -> tuple[str, ...]:
        return self.recorder.forget(i, memory)

    def statistics(self, i: int, memory: Memory) -> Statistics | None:
        """The two predictions in the space of gamma where a step begins, and then what is recorded."""
        recorded = self.recorder.statistics(i, memory)
        two = () if memory.run.stage[i] else tuple(in_space(self.space, b, i, memory.run) for b in ("cond", "uncond"))
        if recorded is None:
            return Statistics(two) if two else None
        return Statistics((*two, *recorded.vectors), recorded.ones)

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        first = 0 if memory.run.stage[i] else 2
        recorded = None if gram is None or gram.shape[1] == first else gram[:, first:, first:]
        try:
            return self.recorder.weights(i, recorded, memory)
        except Enough:
            return PlannedPolicy.weights(self.recorder, i, None, memory)

    def score(self, i: int, gram: Tensor | None, memory: Memory) -> Tensor | None:
        return None if gram is None or memory.run.stage[i] else cosine(gram)
