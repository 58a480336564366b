"""The runs of a calibration: the same prompts and seeds under different policies, compared with full guidance.

Error of an image: |x - x*| / |x*| over all elements of the last latents, x* those of full guidance (relative RMS).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import NumericsError
from ..samplers import NoiseTape, Policy, Report, Table, initial_noise, solve
from .adaptive import AdaptiveGuidance
from .calibrate_record import Watched
from .calibrate_state import Kept
from .linear import Kind, LinearAG
from .linear_fit import Inner, Recorder, fit_linear, regressors
from .linear_plan import Recorded, record_linear

if TYPE_CHECKING:
    from ..samplers.backbones import Backbone

CFG_PASS = "cfg"


class Watch(Protocol):
    """Who is told how far the work is, in ticks of a batch."""

    def expect(self, ticks: int) -> object: ...
    def passed(self, ticks: int) -> object: ...


class Nobody:
    """Is told nothing."""

    def expect(self, ticks: int) -> None: ...
    def passed(self, ticks: int) -> None: ...


@dataclass(frozen=True)
class Samples:
    """What is sampled: prompts and seeds, one each, in batches, on one table.

    scale: guidance scale.       space: in which gamma is measured.       negative: prompt, or None.
    """

    backbone: Backbone
    table: Table
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: float
    space: Any = "x0"
    negative: str | None = None
    size: tuple[int, int] | None = None
    batch: int = 4

    @property
    def batches(self) -> tuple[slice, ...]:
        return tuple(slice(k, k + self.batch) for k in range(0, len(self.prompts), self.batch))

    @property
    def ticks(self) -> int:
        return len(self.table)

    @property
    def ticks_of_step(self) -> Tensor:
        """[steps] how many ticks each step has."""
        return torch.bincount(torch.tensor(self.table.plan.step))

    def network(self, part: slice) -> tuple[Any, Tensor, tuple[int, ...]]:
        """(network, first state, seeds) of some samples."""
        backbone, prompts, seeds = self.backbone, list(self.prompts[part]), self.seeds[part]
        height, width = self.size or backbone.default_size
        negative = None if self.negative is None else [self.negative] * len(prompts)
        noise = initial_noise(seeds, backbone.latent_shape(height, width)).to(backbone.device)
        first = self.table.plan.nodes[0]
        x = noise if backbone.schedule.noisiest.sigma <= 1.0 else noise * float(first.sigma)
        return backbone.encode(prompts, negative, height=height, width=width), x, seeds

    def run(self, policy: Policy, part: slice, on_tick: Callable[..., None]) -> tuple[Tensor, Report]:
        """The last latents of some samples, and what they cost."""
        network, x, seeds = self.network(part)
        result = solve(self.table, network, x, guidance=policy, tape=NoiseTape(seeds), on_tick=on_tick)
        if not bool(result.x.isfinite().all()):
            raise NumericsError(f"the latents of the prompts {list(self.prompts[part])} are not finite at the end")
        return result.x, result.report


class Measured(NamedTuple):
    """Of each image: nfe and error [n] float64.       guided: [ticks] images that evaluated u there."""

    nfe: Tensor
    error: Tensor
    guided: Tensor


class Bench:
    """Runs policies on the same samples; what was measured before is not run again.

    fitted: the batches that policies are fitted on; the last fifth of all of them is not among them.
    held: how many images that leaves out.
    """

    def __init__(self, samples: Samples, kept: Kept, watch: Watch) -> None:
        self.samples, self._kept, self._watch = samples, kept, watch
        batches = samples.batches
        self.fitted = batches[: len(batches) - len(batches) // 5]
        self.held = len(samples.prompts) - min(len(samples.prompts), self.fitted[-1].stop)

    def full(self, recorded: bool = False) -> Tensor:
        """gamma [n, steps] float64 along full guidance; its latents are kept for `measure`.

        recorded: keep the inner products of its predictions too, for `recorded`.
        """
        for k, part in enumerate(self.samples.batches):
            record = recorded and part in self.fitted
            if f"{CFG_PASS}.{k}.gamma" in self._kept and (not record or f"noise.{k}.row" in self._kept):
                self._watch.passed(self.samples.ticks)
            elif record:
                self._record(k, part)
            else:
                gamma = AdaptiveGuidance(threshold=2.0, scale=self.samples.scale, space=self.samples.space)
                self._kept.add(self._full(k, part, gamma))
        return torch.cat([self._kept[f"{CFG_PASS}.{k}.gamma"] for k in range(len(self.samples.batches))])

    def _full(self, k: int, part: slice, policy: Policy) -> dict[str, Tensor]:
        """A run of full guidance whose scores are gamma."""
        x, report = self.samples.run(policy, part, self._tick)
        gamma = torch.tensor([report.scores[i] for i in sorted(report.scores)], dtype=torch.float64).T
        return {f"{CFG_PASS}.{k}.gamma": gamma, f"{CFG_PASS}.{k}.x": x}

    def _record(self, k: int, part: slice) -> None:
        """The same, and what linear_plan wants of it; kept together."""
        kept: dict[str, Tensor] = {}

        def run(recorder: Policy, part: slice) -> None:
            assert isinstance(recorder, Recorder)
            kept.update(self._full(k, part, Watched(recorder, self.samples.space)))

        found = record_linear(run, [part], self.samples.ticks, scale=self.samples.scale)
        kept |= {f"inner{t}.{k}.gram": inner.matrix for t, inner in found.inner.items()}
        self._kept.add({**kept, f"noise.{k}.row": torch.tensor(found.noise, dtype=torch.float64)})

    def recorded(self) -> Recorded:
        """What `full` recorded, of all batches that are fitted on."""
        images, ticks = [len(self.samples.prompts[part]) for part in self.fitted], self.samples.ticks

        def inner(t: int) -> Inner:
            total = torch.stack([self._kept[f"inner{t}.{k}.gram"] * n for k, n in enumerate(images)]).sum(0)
            return Inner((*regressors(t, ("cfg",) * ticks), "uncond"), total / sum(images), sum(images))

        noise, step = tuple(self._kept["noise.0.row"].tolist()), tuple(self.samples.table.plan.step)
        return Recorded({t: inner(t) for t in range(1, ticks)}, noise, step, self.samples.scale)

    def measure(self, policy: Policy) -> Measured:
        """The cost of a policy and how far its latents are from those of full guidance."""
        name = _digest(policy)
        for k, part in enumerate(self.samples.batches):
            if f"{name}.{k}.nfe" in self._kept:
                self._watch.passed(self.samples.ticks)
                continue
            x, report = self.samples.run(policy, part, self._tick)
            found = {"nfe": torch.tensor(report.nfe_per_image, dtype=torch.float64)}
            found["error"] = apart(x.cpu(), self._kept[f"{CFG_PASS}.{k}.x"])
            found["guided"] = torch.tensor([_count(tick.asked, "uncond", report.batch) for tick in report.ticks])
            self._kept.add({f"{name}.{k}.{what}": tensor for what, tensor in found.items()})
        parts = range(len(self.samples.batches))
        nfe, error = (torch.cat([self._kept[f"{name}.{k}.{what}"] for k in parts]) for what in ("nfe", "error"))
        return Measured(nfe, error, torch.stack([self._kept[f"{name}.{k}.guided"] for k in parts]).sum(0))

    def fit(self, kinds: Sequence[Kind], window: int | None, ridge: float) -> LinearAG:
        """LinearAG's coefficients for a plan, on policy. A tick's do not depend on later ones, so that plans that begin
        alike share them."""
        regress = {t: regressors(t, kinds, window) for t, kind in enumerate(kinds) if kind == "linear"}

        def name(t: int) -> str:
            """Of the coefficients of a tick, by all that decides them."""
            return f"{_digest((tuple(kinds[: t + 1]), window, ridge))}.{t}.b"

        known: dict[int, Mapping[str, float]] = {}
        for t, names in regress.items():
            if name(t) in self._kept:
                known[t] = dict(zip(names, self._kept[name(t)].tolist(), strict=True))
                self._watch.passed(self.fit_ticks(t))

        def fitted(t: int, coefficients: Mapping[str, float]) -> None:
            self._kept.add({name(t): torch.tensor(list(coefficients.values()), dtype=torch.float64)})

        def run(policy: Policy, part: slice) -> None:
            try:
                self.samples.run(policy, part, self._tick)
            finally:
                self._watch.passed(1)  # the tick that is measured does not end

        scale = self.samples.scale
        return fit_linear(run, self.fitted, kinds, scale=scale, window=window, ridge=ridge, known=known,
                          on_fitted=fitted).policy  # fmt: skip

    def fit_ticks(self, t: int) -> int:
        """What the fit of tick t costs."""
        return (t + 1) * len(self.fitted)

    def pass_ticks(self) -> int:
        """What a pass over all samples costs."""
        return self.samples.ticks * len(self.samples.batches)

    def _tick(self, *_: Any) -> None:
        self._watch.passed(1)


def apart(x: Tensor, reference: Tensor) -> Tensor:
    """[B] relative RMS of x (B, ...) to a reference, float64."""
    difference, size = ((v.double().flatten(1)).norm(dim=1) for v in (x.double() - reference.double(), reference))
    return difference / size


def _digest(of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()[:16]


def _count(asked: Any, branch: str, batch: int) -> int:
    """For how many images a tick evaluated a branch."""
    images = dict(zip(asked.branches, asked.images, strict=True)).get(branch, ())
    return batch if images is None else len(images)
