"""Choosing a policy for a model: on some prompts, by the cost or by the distance from full guidance.

Every kind of policy here has one number that trades evaluations for fidelity: the threshold of AdaptiveGuidance, the
guided part of DeltaReuse, how often LinearAG evaluates u. Its possible values are the candidates, cheapest first.

target_nfe         the most expensive candidate whose mean cost is not above it.
target_fidelity    the cheapest one whose mean error (see calibrate_runs) is not above it, by bisection: the error is
                   taken to fall with the cost.
neither            the default of the policy.

The chosen one is then run on all prompts, and what is reported was measured there: on the prompts it was chosen on.
LinearAG is fitted without the last fifth of the batches, whose error is also told by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..errors import ConfigError
from ..samplers import Policy
from .calibrate_candidates import candidates
from .calibrate_runs import Bench, Measured, Nobody, Samples, Watch
from .calibrate_state import Kept
from .fingerprint import of_pipeline
from .made_for import EMPTY, GIVEN, MadeFor
from .scale import check_scale
from .space import check_space

PolicyKind = Literal["adaptive", "linear", "delta-reuse"]
KINDS: tuple[str, ...] = get_args(PolicyKind)
Plan = Literal["chosen", "alternating"]
PLANS: tuple[str, ...] = get_args(Plan)


@dataclass(frozen=True)
class Goal:
    """What to choose, and by what.

    policy: one of KINDS.       target_nfe: network evaluations an image, mean.       target_fidelity: mean error.
    plan: of LinearAG, where u is evaluated. "chosen": at the ticks that a recorded pass says, estimated at all others
    (linear_plan). "alternating": the paper's, with coefficients fitted on policy, one pass each (linear_fit).
    window, ridge: of the fit of LinearAG, see linear_fit.
    """

    policy: PolicyKind = "adaptive"
    target_nfe: float | None = None
    target_fidelity: float | None = None
    plan: Plan = "chosen"
    window: int | None = None
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        if self.policy not in KINDS:
            raise ConfigError(f"the policy to calibrate is one of {', '.join(KINDS)}, got {self.policy!r}")
        if self.target_nfe is not None and self.target_fidelity is not None:
            raise ConfigError("target_nfe and target_fidelity were both given: one decides, leave the other out")
        if self.plan not in PLANS:
            raise ConfigError(f"the plan of LinearAG is one of {', '.join(PLANS)}, got {self.plan!r}")
        if self.plan != "chosen" and self.policy != "linear":
            raise ConfigError(f"plan {self.plan!r} is one of the policy linear, and the policy is {self.policy}: "
                              "leave one of the two out")  # fmt: skip
        if self.policy != "linear" and (self.window is not None or self.ridge != type(self).ridge):
            name = "ridge" if self.window is None else "window"
            raise ConfigError(f"{name} belongs to the policy linear, and the policy is {self.policy}: leave one of the "
                              "two out")  # fmt: skip
        for name in ("target_nfe", "target_fidelity"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise ConfigError(f"{name} must be a number above 0, got {value!r}")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window must be a whole number, at least 1, or None, got {self.window!r}")
        if not 0.0 <= self.ridge < float("inf"):
            raise ConfigError(f"ridge must be a number, at least 0, got {self.ridge!r}")


class Calibrated(NamedTuple):
    """policy: None where nothing can be gained, and `why` says why.       measured: of it, on all samples.
    gamma: [n, steps] float64 along full guidance.       full: evaluations of full guidance an image.
    tried: (mean NFE, mean error) of every policy that was run.
    held: so many of the last images had no part in the fit; 0 where nothing was fitted, or there are too few.
    """

    policy: Policy | None
    made_for: MadeFor
    why: str | None
    full: int
    gamma: Tensor | None = None
    measured: Measured | None = None
    tried: tuple[tuple[float, float], ...] = ()
    held: int = 0

    @property
    def saved(self) -> float:
        """The part of the evaluations that is saved, mean."""
        return 0.0 if self.measured is None else 1.0 - float(self.measured.nfe.mean()) / self.full


def calibrate(
    samples: Samples,
    goal: Goal,
    *,
    name: str | None = None,
    about: str = "",
    checkpoint: Path | None = None,
    key: str = "",
    watch: Watch | None = None,
    on_note: Callable[[str], object] = lambda text: None,
) -> Calibrated:
    """Choose a policy on `samples`.

    name: of the model, for the file.       about: of the prompts, likewise.
    checkpoint: where to keep what is measured until the work is done; an interrupted call goes on from there.
    key: what else the measurements depend on, such as the dtype of the network.
    watch: is told of progress.       on_note: is told how a checkpoint was used.
    Errors: ConfigError for a target that no candidate meets; NumericsError for latents that are not finite.
    """
    check_scale(samples.scale)
    check_space(samples.space)
    watch = Nobody() if watch is None else watch
    made_for, full = _made_for(samples, goal, name, about), 2 * samples.ticks
    why = _no_guidance(samples)
    if why is not None:
        return Calibrated(None, made_for, why, samples.ticks)
    check_target(goal, samples.ticks)
    kept = Kept(checkpoint, repr((samples.prompts, samples.seeds, samples.scale, samples.space, samples.negative,
                                  samples.size, samples.batch, samples.table.solver, samples.table.schedule,
                                  samples.table.plan, made_for.weights, goal.window, goal.ridge, key)))  # fmt: skip
    if kept.note is not None:
        on_note(kept.note)
    try:
        found = _calibrate(samples, goal, made_for, full, Bench(samples, kept, watch), watch)
    except BaseException:
        kept.save()
        raise
    kept.remove()
    return found


def _calibrate(samples: Samples, goal: Goal, made_for: MadeFor, full: int, bench: Bench, watch: Watch) -> Calibrated:
    watch.expect(2 * bench.pass_ticks())
    gamma = bench.full(recorded=goal.policy == "linear" and goal.plan == "chosen")
    if bool((gamma > 1.0 - 1e-12).all()):
        why = ("the predictions with and without the prompt are the same at every step, so guidance does nothing: "
               "use guidance scale 1 and save half")  # fmt: skip
        return Calibrated(None, made_for, why, full, gamma)
    found, default = candidates(samples, goal, gamma, bench, watch)
    tried: dict[int, Measured] = {}
    policy_at = cache(lambda k: found[k].make())

    def measured(k: int) -> Measured:
        if k not in tried:
            tried[k] = bench.measure(policy_at(k))
        return tried[k]

    chosen = default
    if goal.target_nfe is not None:
        within = [k for k, candidate in enumerate(found) if candidate.nfe <= goal.target_nfe + 1e-9]
        chosen = within[-1] if within else _refuse(goal, f"the cheapest costs {found[0].nfe:g}")
    elif goal.target_fidelity is not None:
        watch.expect((len(found).bit_length() - 1) * bench.pass_ticks())
        chosen = _cheapest(goal, lambda k: float(measured(k).error.mean()), len(found))
    policy, result = policy_at(chosen), measured(chosen)
    pairs = sorted((float(m.nfe.mean()), float(m.error.mean())) for m in tried.values())
    why = None
    if float(result.nfe.mean()) >= full:
        why = "nothing is gained: gamma crosses no threshold that is near enough before the last step, so every " \
              "evaluation of full guidance is made"  # fmt: skip
    held = bench.held if goal.policy == "linear" else 0
    return Calibrated(policy, made_for, why, full, gamma, result, tuple(pairs), held)


def _cheapest(goal: Goal, error: Callable[[int], float], count: int) -> int:
    """The first of `count` candidates whose error is small enough, if errors fall."""
    assert goal.target_fidelity is not None
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if error(middle) <= goal.target_fidelity else (middle + 1, high)
    if error(low) > goal.target_fidelity:
        _refuse(goal, f"the most expensive has {error(low):.3g}")
    return low


def _refuse(goal: Goal, best: str) -> int:
    what, target = ("target_nfe", goal.target_nfe) if goal.target_nfe else ("target_fidelity", goal.target_fidelity)
    raise ConfigError(f"{what} {target:g} is not met by any {goal.policy} policy on these prompts: {best}; choose "
                      "another target or policy")  # fmt: skip


def check_target(goal: Goal, ticks: int) -> None:
    """ConfigError for a target that no policy at all can meet in a run of so many ticks."""
    full, least = 2 * ticks, ticks + 1
    if goal.policy == "linear" and ticks < 2:
        raise ConfigError("LinearAG estimates from earlier ticks, and a run of 1 tick has none: take more steps, or "
                          "another policy")  # fmt: skip
    if goal.target_nfe is not None and not least <= goal.target_nfe < full:
        raise ConfigError(f"target_nfe {goal.target_nfe:g} cannot be: full guidance costs {full} evaluations an image "
                          f"here, and one guided tick {least}; choose from {least} to {full - 1}")  # fmt: skip


def _no_guidance(samples: Samples) -> str | None:
    """Why such a run has nothing to gain, if that is known before it."""
    if samples.scale == 1.0:
        return ("nothing can be gained at guidance scale 1: it takes one evaluation a tick, and no unconditional "
                "prediction is made")  # fmt: skip
    conditions: Any = getattr(samples.network(slice(0, 1))[0], "conditions", None)
    if isinstance(conditions, dict) and "uncond" not in conditions:
        return ("nothing can be gained with this model: it has no unconditional branch (its guidance was distilled "
                "into it), so a run takes one evaluation a tick already")  # fmt: skip
    return None


def _made_for(samples: Samples, goal: Goal, name: str | None, about: str) -> MadeFor:
    count, (first, last) = len(samples.prompts), (samples.seeds[0], samples.seeds[-1])
    seeds = f"seed {first}" if count == 1 else f"seeds {first} to {last}"
    return MadeFor.of_table(
        samples.table,
        model=name,
        weights=of_pipeline(getattr(samples.backbone, "pipe", None)),
        prediction=samples.backbone.parametrisation.name,
        scale=samples.scale,
        space=samples.space if goal.policy == "adaptive" else None,
        negative=EMPTY if samples.negative is None else GIVEN,
        calibrated_on=f"{count} prompt{'s' * (count > 1)}{about and f' {about}'}, {seeds}",
    )


def quantiles(gamma: Tensor, parts: Sequence[float] = (0.1, 0.5, 0.9)) -> Tensor:
    """[parts, steps] quantiles over images of gamma [n, steps]."""
    return torch.stack([gamma.quantile(part, dim=0) for part in parts])
