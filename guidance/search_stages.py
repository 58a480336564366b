"""The stages of a policy search, as a stream of Progress: every state that it yields can be saved and gone on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import NumericsError
from ..samplers.table import Table
from .search_discrete import Standing, neighbours
from .search_loss import Measure, NothingToGain, Relaxation, SearchSettings, discrete, distance_of
from .search_runs import Pairs, states_of
from .search_state import Progress

MOMENTS, TINY = (0.9, 0.99), 1e-12  # Adam's; a short run needs a short memory
RELAXED_SHARE = 0.6  # of a time limit
SAME = 1e-5  # as a part of the size of a final x: no difference but for rounding in float32

Stage = Generator[Progress, None, Progress]
OnProgress = Callable[[str, int, int], None]
"""(what is done now, network rows so far, in all); a gradient counts as three runs."""


@dataclass
class Clock:
    """before: seconds that interrupted parts took.       limit: None for none."""

    before: float
    limit: float | None
    _start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        return self.before + time.monotonic() - self._start

    def out_of(self, share: float) -> bool:
        """Whether this part of the limit is over."""
        return self.limit is not None and self.spent >= share * self.limit


@dataclass(frozen=True, eq=False)
class Stages:
    """A search; see search.search for its parts."""

    table: Table
    batches: Sequence[Pairs]
    settings: SearchSettings
    measure: Measure
    recompute: bool
    on_progress: OnProgress | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "relaxation", Relaxation(self.table, self.settings))

    relaxation: Relaxation = field(init=False)

    def run(self, progress: Progress, clock: Clock) -> Iterator[Progress]:
        """From `progress` to the end, or to that of the time."""
        progress = yield from self._baselines(progress)
        size = sum(float(distance_of(wanted, torch.zeros_like(wanted))) for wanted in progress.wanted)
        if sum(progress.apart) <= SAME * size:
            raise NothingToGain("nothing can be gained: this model ends with the same pictures with and without "
                                "guidance, so that no step needs it (use guidance scale 1)")  # fmt: skip
        if not progress.relaxed:
            progress = yield from self._descend(progress, clock)
        yield from self._refine(progress, clock)

    def _baselines(self, progress: Progress) -> Stage:
        """Full guidance and none, batch by batch."""
        for k in range(len(progress.wanted), len(self.batches)):
            self._tell("baseline", progress)
            full, none = (self._final(self.batches[k], w) for w in (self.settings.scale, 1.0))
            with torch.no_grad():
                wanted = self.measure(full)
                distance = float(distance_of(self.measure(none), wanted))
            if not (wanted.isfinite().all() and distance < float("inf")):
                raise NumericsError(f"the runs of batch {k} with and without guidance are not finite")
            progress = progress._replace(wanted=(*progress.wanted, wanted), apart=(*progress.apart, distance))
            yield progress
        return progress

    def _final(self, pairs: Pairs, w: float) -> Tensor:
        return states_of(self.table, pairs, [w] * self.relaxation.steps)[-1].x

    def _descend(self, progress: Progress, clock: Clock) -> Stage:
        """Adam on the logits."""
        images = [pairs.x.shape[0] for pairs in self.batches]
        with frozen(self.batches):
            while len(progress.losses) < self.settings.iterations and not clock.out_of(RELAXED_SHARE):
                self._tell("relaxed policy", progress)
                n = len(progress.losses)
                k = self._batch(n)
                logits = progress.logits.clone().requires_grad_()
                share = sum(progress.apart) * images[k] / sum(images)
                loss = self.relaxation.loss(
                    logits, n, self.batches[k], progress.wanted[k], share, self.measure, self.recompute
                )
                (gradient,) = torch.autograd.grad(loss, logits)
                if not gradient.isfinite().all():
                    raise NumericsError(f"the gradient of the search's loss is not finite at iteration {n}: try "
                                        "float32 or float64, or fewer steps")  # fmt: skip
                progress = self._stepped(progress, gradient, float(loss.detach()))
                yield progress
        if len(progress.losses) == self.settings.iterations:  # else a later call with more time goes on
            progress = progress._replace(relaxed=True)
            yield progress
        return progress

    def _batch(self, n: int) -> int:
        """The batch of iteration n: each once in an order, then each once in another one."""
        epoch, place = divmod(n, len(self.batches))
        generator = torch.Generator().manual_seed((self.settings.seed << 20) + epoch)
        return int(torch.randperm(len(self.batches), generator=generator)[place])

    def _stepped(self, progress: Progress, gradient: Tensor, loss: float) -> Progress:
        """Kingma and Ba 2014, arXiv:1412.6980, algorithm 1."""
        n = len(progress.losses) + 1
        b1, b2 = MOMENTS
        first = b1 * progress.first + (1.0 - b1) * gradient
        second = b2 * progress.second + (1.0 - b2) * gradient.square()
        ratio = first / (1.0 - b1**n) / ((second / (1.0 - b2**n)).sqrt() + TINY)
        logits = progress.logits - self.settings.rate_at(n - 1) * ratio
        return progress._replace(logits=logits, first=first, second=second, losses=(*progress.losses, loss),
                                 choices=(), tried=0, cursor=0)  # fmt: skip

    def _refine(self, progress: Progress, clock: Clock) -> Iterator[Progress]:
        """Takes the first single change that brings the policy closer, until none does."""
        settings, ticks = self.settings, self.relaxation.ticks
        if not progress.choices:
            choices, _ = discrete(progress.logits, settings.candidates, ticks, settings.target)
            progress = progress._replace(choices=choices)
            yield progress
        standing = self.standing(progress)
        while not self.finished(progress):
            around = neighbours(progress.choices, progress.logits, settings.candidates, ticks, settings.target)
            if progress.cursor >= len(around):
                progress = progress._replace(cursor=-1)  # no change helps
                yield progress
                continue
            if clock.out_of(1.0):
                return
            self._tell("single changes", progress)
            improved = standing.improved_by(around[progress.cursor].choices)
            progress = progress._replace(
                choices=standing.choices, tried=progress.tried + 1, cursor=0 if improved else progress.cursor + 1
            )
            yield progress

    def standing(self, progress: Progress) -> Standing:
        """The best policy so far and its distances."""
        return Standing(self.table, self.batches, progress.wanted, self.measure, progress.choices)

    def finished(self, progress: Progress) -> bool:
        """Whether the local search has nothing left to do."""
        return progress.cursor < 0 or progress.tried >= self.settings.refinements

    def _tell(self, what: str, progress: Progress) -> None:
        if self.on_progress is None:
            return
        ticks, images = sum(self.relaxation.ticks), sum(p.x.shape[0] for p in self.batches)
        baseline, gradient = 3 * ticks, 6 * ticks * images // len(self.batches)
        change = round(0.5 * self.settings.target) * images
        done = baseline * images * len(progress.wanted) // len(self.batches)
        done += gradient * (self.settings.iterations if progress.relaxed else len(progress.losses))
        total = baseline * images + gradient * self.settings.iterations + change * self.settings.refinements
        self.on_progress(what, done + change * progress.tried, total)


@contextmanager
def frozen(batches: Sequence[Pairs]) -> Iterator[None]:
    """The networks' parameters ask for no gradients inside, which would keep activations for them."""
    found = {id(p): p for pairs in batches for p in _parameters(pairs.network) if p.requires_grad}
    with ExitStack() as after:
        for parameter in found.values():
            parameter.requires_grad_(False)
            after.callback(parameter.requires_grad_, True)
        yield


def _parameters(network: Any) -> Iterator[Tensor]:
    """Of a network that is a torch module, or has some."""
    for value in (network, *getattr(network, "__dict__", {}).values()):
        if isinstance(value, torch.nn.Module):
            yield from value.parameters()
