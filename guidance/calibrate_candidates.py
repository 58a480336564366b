"""The policies that a calibration chooses from, cheapest first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..samplers import Policy
from .adaptive import DEFAULT_THRESHOLD, AdaptiveGuidance
from .calibrate_runs import Bench, Samples, Watch
from .delta_reuse import DeltaReuse
from .linear import kinds_alternating
from .linear_plan import choose_kinds, fit_recorded

if TYPE_CHECKING:
    from .calibrate import Goal

_MOST = 512  # thresholds that are looked at
_BISECTED = 64  # and of those how many a bisection chooses from
_EVALUATED = 0.3  # of the ticks, by default: 26 of 40 evaluations in 20 steps, 35 % saved


class Candidate(NamedTuple):
    """nfe: mean evaluations an image.       make: the policy; of LinearAG it fits."""

    nfe: float
    make: Callable[[], Policy]


def candidates(samples: Samples, goal: Goal, gamma: Tensor, bench: Bench, watch: Watch) -> tuple[list[Candidate], int]:
    """Cheapest first, and which is the default.

    gamma: [n, steps] along full guidance.       watch: is told what fits will cost.
    """
    if goal.policy == "adaptive":
        return _thresholds(samples, goal, gamma)
    if goal.policy == "delta-reuse":
        return _frozen(samples)
    return _alternating(samples, goal, bench, watch) if goal.plan == "alternating" else _chosen(samples, goal, bench)


def _frozen(samples: Samples) -> tuple[list[Candidate], int]:
    """DeltaReuse, by its guided steps; the default is half of them."""
    of_step = samples.ticks_of_step
    steps = len(of_step)
    found = [Candidate(float(samples.ticks + of_step[:guided].sum()),
                       lambda guided=guided: DeltaReuse(samples.scale, stop=guided / steps))
             for guided in range(1, max(steps, 2))]  # fmt: skip
    return found, max(0, steps // 2 - 1)


def _chosen(samples: Samples, goal: Goal, bench: Bench) -> tuple[list[Candidate], int]:
    """LinearAG with u evaluated where one recorded pass says, by how often."""
    ticks, recorded = samples.ticks, bench.recorded()

    def make(evaluated: int) -> Policy:
        kinds = choose_kinds(recorded, evaluated, ridge=goal.ridge)
        return fit_recorded(recorded, kinds, window=goal.window, ridge=goal.ridge).policy

    found = [Candidate(float(ticks + k), lambda k=k: make(k)) for k in range(1, ticks)]
    return found, max(1, round(_EVALUATED * ticks)) - 1


def _alternating(samples: Samples, goal: Goal, bench: Bench, watch: Watch) -> tuple[list[Candidate], int]:
    """LinearAG with the paper's plan, fitted on policy, by its guided ticks; the default is half of them."""
    ticks = samples.ticks
    guided = [h for h in range(2, ticks + 1) if h % 2 == 0 or h == ticks]
    plans = [kinds_alternating(ticks, h) for h in guided]
    fits = [Candidate(float(ticks + plan.count("cfg")), lambda plan=plan: bench.fit(plan, goal.window, goal.ridge))
            for plan in plans]  # fmt: skip
    default = next(k for k, h in enumerate(guided) if h >= -(-ticks // 2))
    most = plans[-1] if goal.target_nfe is None and goal.target_fidelity is not None else plans[default]
    watch.expect(sum(bench.fit_ticks(t) for t, kind in enumerate(most) if kind == "linear"))
    return fits, default


def _thresholds(samples: Samples, goal: Goal, gamma: Tensor) -> tuple[list[Candidate], int]:
    """One candidate for every different mean cost, or an even choice of them, and the default threshold's place.

    A threshold matters only by which images it lets cross where, so it is put in the middle between two gammas; above
    all of them it is 2, which is full guidance.
    """
    values = torch.cummax(gamma, dim=1).values.flatten().unique()
    between = torch.cat([values[:1] - 1e-3, (values[1:] + values[:-1]) / 2])
    between = between[torch.linspace(0, len(between) - 1, min(_MOST, len(between))).round().long()]
    wanted = [*between.tolist(), 2.0]
    if goal.target_fidelity is not None:
        wanted = [wanted[k] for k in torch.linspace(0, len(wanted) - 1, min(_BISECTED, len(wanted))).round().long()]
    if goal.target_nfe is None and goal.target_fidelity is None:
        wanted = [DEFAULT_THRESHOLD]
    return [Candidate(float(nfe_at(t, gamma, samples.ticks_of_step).mean()), lambda t=t: AdaptiveGuidance(
        threshold=t, scale=samples.scale, space=samples.space)) for t in wanted], 0  # fmt: skip


def nfe_at(threshold: float, gamma: Tensor, ticks_of_step: Tensor) -> Tensor:
    """[n] evaluations of each image under AdaptiveGuidance(threshold), from gamma [n, steps] along full guidance.

    Until an image crosses, its run is that of full guidance, so this is exact. The step that crosses is still guided.
    """
    crossed = gamma >= threshold
    last = torch.where(crossed.any(1), crossed.int().argmax(1), gamma.shape[1] - 1)
    return (ticks_of_step.sum() + ticks_of_step.cumsum(0)[last]).double()
