r"""The coefficients of LinearAG, by least squares along a model's own guided runs.

For a tick t with target y = u_t and regressors R (raw outputs of this and earlier ticks) the numbers b solve

    (G_RR + lambda mean(diag G_RR) I) b = G_Ry,

where G holds the inner products of all of them over the elements of an image, divided by their number and averaged
over the images, in float64. It is all that is kept of a run; regressions over fewer regressors or with other lambda
follow from it (see `solved`). Without lambda, lines over a long history have large coefficients that cancel along the
runs they were fitted on, and nowhere else.

On policy: ticks are fitted in order, each along runs whose earlier "linear" ticks already use their estimates, so
a fit sees the states that sampling will see. That is one pass of runs per "linear" tick, each stopped at that tick.
Off policy one pass serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError, NumericsError
from ..samplers.policy import Line, Memory, Policy, Run, Statistics, Varies
from .linear import Coefficients, Kind, LinearAG, check_kinds, check_ticks, lines_of_uncond, recipes_of
from .planned import PlannedPolicy, guided_lines, planned
from .scale import Scale, check_run, check_scales

Batch = TypeVar("Batch")


class Enough(Exception):
    """Ends a run of the fit at the last tick that it measures. `fit_linear` catches it."""


class Inner(NamedTuple):
    """Inner products of registers at one tick: matrix [K, K] float64, a mean over images of means over elements.

    names: of the registers; the last is "uncond", the target.       images: over how many.
    """

    names: tuple[str, ...]
    matrix: Tensor
    images: int


class Residual(NamedTuple):
    """|u - u^| over the images of the fit, relative to |u| and to |c - u|. Below 1e-7 it is rounding."""

    of_uncond: float
    of_difference: float


class LinearFit(NamedTuple):
    """The fitted policy, and of every "linear" tick the residual and the inner products it was fitted on."""

    policy: LinearAG
    residuals: dict[int, Residual]
    inner: dict[int, Inner]


def fit_linear(
    run: Callable[[Policy, Batch], object],
    batches: Sequence[Batch],
    kinds: Sequence[Kind],
    *,
    scale: Scale = None,
    window: int | None = None,
    ridge: float = 1e-6,
    on_policy: bool = True,
    known: Coefficients | None = None,
    progress: Callable[[int, int], object] | None = None,
    on_fitted: Callable[[int, Mapping[str, float]], object] | None = None,
) -> LinearFit:
    """Fit the "linear" ticks of `kinds`.

    run(policy, batch): samples one of `batches`, whatever that is, with this guidance and otherwise as the fitted
    policy will be used: model, table, scale, negative prompts. Its result is not used. It is left by an exception
    (`Enough`) once the tick of the pass is measured, and must let that through. For example

        fit_linear(lambda policy, batch: fewstep.sample(pipe, batch.prompts, seeds=batch.seeds, steps=20,
                                                        guidance=policy, guidance_scale=7.5), batches, kinds)

    scale: w of the runs, or None for the caller's; the fitted policy has the same.
    window: how many of the last ticks with an evaluated u a line reaches back to; None for all of them.
    ridge: lambda.       on_policy: see above.
    known: coefficients of an interrupted fit of the same runs, which are kept; on_fitted(tick, coefficients) gives them
    one by one.       progress(done, total): after each batch of each pass.
    Errors: ConfigError for no batch or a run of another number of ticks; NumericsError for outputs that are not finite.
    """
    kinds = check_kinds(kinds)
    if not batches:
        raise ConfigError("fit_linear needs one batch of samples at least, got none")
    _check_numbers(window, ridge)
    coefficients = dict(known or {})
    linear = [t for t, kind in enumerate(kinds) if kind == "linear" and t not in coefficients]
    passes = [(t,) for t in linear] if on_policy else [tuple(linear)] if linear else []
    inner: dict[int, Inner] = {}
    for k, ticks in enumerate(passes):
        recorder = Recorder(kinds, coefficients, {t: regressors(t, kinds, window) for t in ticks}, check_scales(scale))
        record(recorder, run, batches, progress, before=k, passes=len(passes))
        for t in ticks:
            inner[t] = recorder.inner(t)
            coefficients[t] = solved(inner[t], ridge)
            if on_fitted is not None:
                on_fitted(t, coefficients[t])
    residuals = {t: residual(found, coefficients[t]) for t, found in inner.items()}
    return LinearFit(LinearAG(coefficients, kinds, scale), residuals, inner)


def record(
    recorder: Recorder,
    run: Callable[[Policy, Batch], object],
    batches: Sequence[Batch],
    progress: Callable[[int, int], object] | None = None,
    before: int = 0,
    passes: int = 1,
) -> None:
    """One pass of runs, after `before` of `passes`."""
    for n, batch in enumerate(batches):
        try:
            run(recorder, batch)
        except Enough:
            pass
        if progress is not None:
            progress(before * len(batches) + n + 1, passes * len(batches))


def regressors(t: int, kinds: Sequence[Kind], window: int | None = None) -> tuple[str, ...]:
    """What the line of tick t may read: u of the last `window` ticks that evaluated it, c from the first of them on."""
    evaluated = [k for k in range(t) if kinds[k] == "cfg"]
    evaluated = evaluated if window is None else evaluated[-window:]
    return (*(f"uncond@{k}" for k in evaluated), *(f"cond@{k}" for k in range(evaluated[0], t)), "cond")


def solved(inner: Inner, ridge: float, names: Iterable[str] | None = None) -> dict[str, float]:
    """The coefficients of the target over `names` (default: all of the regressors).

    By eigenvalues; what float64 cannot tell from 0 among them counts as 0, so that without ridge the smallest of all
    best solutions is taken.
    """
    chosen = inner.names[:-1] if names is None else tuple(names)
    rows = [inner.names.index(name) for name in chosen]
    G_RR, G_Ry = inner.matrix[rows][:, rows], inner.matrix[rows, -1]
    values, vectors = torch.linalg.eigh(G_RR + ridge * G_RR.diagonal().mean() * torch.eye(len(rows), dtype=G_RR.dtype))
    kept = values > len(rows) * torch.finfo(values.dtype).eps * values[-1]
    b = vectors[:, kept] @ ((vectors[:, kept].T @ G_Ry) / values[kept])
    return dict(zip(chosen, b.tolist(), strict=True))


def residual(inner: Inner, coefficients: Line) -> Residual:
    """How far the line of `coefficients` is from the target, on the images of `inner`."""
    b = torch.tensor([coefficients.get(name, 0.0) for name in inner.names[:-1]] + [-1.0], dtype=torch.float64)
    d = torch.tensor([float(name == "cond") for name in inner.names[:-1]] + [-1.0], dtype=torch.float64)
    norm = inner.matrix[-1, -1].sqrt()
    error, difference = ((v @ inner.matrix @ v).clamp(min=0.0).sqrt() for v in (b, d))
    return Residual(float(error / norm), float(error / difference))


@dataclass(eq=False)
class Recorder(PlannedPolicy):
    """LinearAG with u evaluated at the ticks that have no coefficients yet; adds up inner products as it runs.

    measured: tick -> the registers whose inner products with one another and with u are wanted. Unlike other policies
    it changes as it is used, and it ends a run by `Enough` once the last of these ticks is measured.
    seen: the newest run.
    """

    kinds: tuple[Kind, ...]
    coefficients: Coefficients
    measured: Mapping[int, tuple[str, ...]]
    scale: Scale = None
    sums: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    seen: Run | None = None

    @property
    def varies(self) -> Varies:
        return "by data"

    def begin(self, run: Run) -> Memory:
        check_run(self.scale, run, "Recorder")
        check_ticks(self.kinds, run)
        self.seen = run
        used = {name for line in (*self.coefficients.values(), *self.measured.values()) for name in line}
        lines = guided_lines(lines_of_uncond(self.kinds, self.coefficients), self.scale, run)
        return Memory(run, planned(lines, recipes_of(used), {t: (*v, "uncond") for t, v in self.measured.items()}))

    def statistics(self, i: int, memory: Memory) -> Statistics | None:
        if i not in self.measured:
            return None
        return Statistics(tuple({name: 1.0} for name in (*self.measured[i], "uncond")), ones=True)

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        if gram is not None:
            mean = gram[:, :-1, :-1] / gram[:, -1:, -1:]
            total, images = self.sums.get(i, (0.0, 0))
            self.sums[i] = (total + mean.sum(0), images + len(mean))
            if i == max(self.measured):
                raise Enough
        return super().weights(i, gram, memory)

    def inner(self, t: int) -> Inner:
        """Of tick t, after the runs. NumericsError where outputs were not finite, ConfigError where none came by."""
        if t not in self.sums:
            raise ConfigError(f"the runs of the fit never came to tick {t}: `run` must sample with the policy it gets")
        total, images = self.sums[t]
        if not bool(total.isfinite().all()):
            raise NumericsError(f"the network's outputs up to tick {t} are not all finite, nothing can be fitted")
        return Inner((*self.measured[t], "uncond"), (total / images).cpu(), images)


def _check_numbers(window: int | None, ridge: float) -> None:
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigError(f"window must be a whole number >= 1, or None, got {window!r}")
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0.0 <= ridge < float("inf"):
        raise ConfigError(f"ridge must be a number >= 0, got {ridge!r}")
