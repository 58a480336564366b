r"""Policy search: which steps of a run need guidance, learned by gradient descent through the run.

Every step has a softmax over its candidates; the run with their mixtures is compared with the run under full guidance
from the same noise and prompt, and the logits descend the distance plus the cost (`search_loss`). Then every step gets
one candidate, within the target (`search_loss.discrete`), and a local search over single changes takes what is closer
(`search_discrete`). The result is a SearchedPolicy.

Source: Castillo, Kohler, Pérez, Pérez, Pumarola, Ghanem, Arbeláez, Thabet 2023, arXiv:2312.12487. The local search is
ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..samplers.table import Table
from .search_loss import Measure, NothingToGain, SearchSettings
from .search_runs import Pairs, nfe_of
from .search_stages import Clock, OnProgress, Stages
from .search_state import Progress, load, save
from .searched import SearchedPolicy

__all__ = ["Found", "NothingToGain", "Pairs", "SearchSettings", "search"]

SAVE_EVERY = 10.0  # seconds


class Found(NamedTuple):
    """policy: the result.       nfe: of a picture.
    distance: of its final x from full guidance, as a part of that without guidance, on the pairs searched; never above
    1, for where the search found nothing closer, the policy is no guidance.
    probabilities: [steps, candidates], of the relaxed search.       losses: one per iteration.
    tried: discrete policies.       complete: whether no time limit cut the search short.       seconds: it took.
    """

    policy: SearchedPolicy
    nfe: int
    distance: float
    probabilities: Tensor
    losses: tuple[float, ...]
    tried: int
    complete: bool
    seconds: float


def final_x(x: Tensor) -> Tensor:
    """The measure that compares what the run ends with, latents for most models."""
    return x


def search(
    table: Table,
    batches: Sequence[Pairs],
    settings: SearchSettings,
    *,
    measure: Measure = final_x,
    checkpoint: Path | None = None,
    key: str = "",
    seconds: float | None = None,
    recompute: bool = True,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Found:
    """The policy for runs of `table` that comes closest to full guidance on `batches`, within settings.target.

    measure: what of a final x (B, ...) is compared, differentiable.
    checkpoint: a file; it is written every few seconds and when the search is interrupted, and a search with the same
    settings and key goes on from it. It stays when the search ends.       key: what else the result depends on.
    seconds: a limit for all of it, interrupted parts included; None for none. Without one, equal calls give equal
    results, interrupted or not.
    recompute: see search_runs.relaxed.
    on_note: gets a line where a checkpoint is used, or is there and cannot be.
    Errors: NothingToGain; ConfigError for a target that is out of reach; NumericsError for runs or gradients
    that are not finite.
    """
    stages = Stages(table, tuple(batches), settings, measure, recompute, on_progress)
    key = repr((settings, table.solver, table.schedule, table.plan, [tuple(p.x.shape) for p in batches], key))
    progress = _resumed(stages, checkpoint, key, on_note)
    clock = Clock(progress.seconds, seconds)
    saved = time.monotonic()
    try:
        for state in stages.run(progress, clock):
            progress = state
            if checkpoint is not None and time.monotonic() - saved > SAVE_EVERY:
                save(progress._replace(seconds=clock.spent), checkpoint, key)
                saved = time.monotonic()
    finally:  # an interruption, too
        if checkpoint is not None and progress.wanted:
            save(progress._replace(seconds=clock.spent), checkpoint, key)
    return _found(stages, progress, clock)


def _resumed(stages: Stages, checkpoint: Path | None, key: str, on_note: Callable[[str], None] | None) -> Progress:
    """Where to begin."""
    shape = stages.relaxation.steps, len(stages.settings.candidates)
    note = on_note or (lambda text: None)
    if checkpoint is not None and checkpoint.exists():
        progress = load(checkpoint, key, *shape)
        if progress is not None:
            done = f"{len(progress.losses)} iterations and {progress.tried} single changes"
            note(f"goes on where it was interrupted, after {done}")
            return progress
        note(f"{checkpoint.name} is of a search with other settings: this one begins anew")
    return Progress.beginning(*shape)


def _found(stages: Stages, progress: Progress, clock: Clock) -> Found:
    relaxation, n = stages.relaxation, len(progress.losses)
    choices, distance = progress.choices, stages.standing(progress).distance / sum(progress.apart)
    if not distance <= 1.0:  # true for NaN
        choices, distance = ("cond",) * relaxation.steps, 1.0
    return Found(
        policy=SearchedPolicy(choices),
        nfe=nfe_of(choices, relaxation.ticks),
        distance=distance,
        probabilities=relaxation.probabilities(progress.logits, max(0, n - 1)),
        losses=progress.losses,
        tried=progress.tried,
        complete=stages.finished(progress) and n == stages.settings.iterations,
        seconds=clock.spent,
    )
