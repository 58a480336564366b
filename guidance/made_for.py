"""What a saved policy was calibrated for, and the refusal of anything else.

What is checked, for each policy:

LinearAG, SearchedPolicy    everything: their numbers belong to the ticks of one run of one model, at one scale.
AdaptiveGuidance            model, prediction, scale, space: gamma is a property of the network's two predictions and of
                            the states that this scale leads to. Solver, schedule and number of steps may be others:
                            the threshold still means the same agreement.
DeltaReuse                  model, prediction, scale, and the number of steps if it has a gain for each.
CFG, Interval               nothing: they hold for any model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import IncompatibleError
from ..samplers import SOLVERS, Level, Policy, Run, Table
from .fingerprint import Fingerprint, of_pipeline
from .scale import own_scale

EMPTY, GIVEN = "empty", "given"
_EVERYTHING = ("model", "prediction", "schedule", "steps", "solver", "levels", "scale", "space", "negative")
_OF_MODEL = ("model", "prediction", "scale", "space")
CHECKED: dict[str, tuple[str, ...]] = {
    "LinearAG": _EVERYTHING,
    "SearchedPolicy": _EVERYTHING,
    "AdaptiveGuidance": _OF_MODEL,
    "DeltaReuse": _OF_MODEL,
}


@dataclass(frozen=True)
class MadeFor:
    """A run as far as a policy depends on it; None for what is not known.

    model: its name, for messages.       weights: of its network.       prediction: of its parametrisation, "eps".
    schedule: NoiseSchedule.describe().       solver: the solver's repr.
    levels: of every tick.       steps: which several ticks may share.
    scale: guidance scale w.       space: in which predictions are compared.       negative: "empty", or "given" for a
    negative prompt of the user's.       calibrated_on: in words.
    """

    model: str | None = None
    weights: Fingerprint | None = None
    prediction: str | None = None
    schedule: Mapping[str, float | int | str] | None = None
    solver: str | None = None
    levels: tuple[Level, ...] | None = None
    steps: int | None = None
    scale: float | None = None
    space: str | None = None
    negative: str | None = None
    calibrated_on: str | None = None

    @classmethod
    def of_table(cls, table: Table, **others: Any) -> MadeFor:
        """A run of `table`.       others: the fields that no table knows."""
        plan = table.plan
        return cls(schedule=table.schedule, solver=table.solver, levels=plan.nodes, steps=plan.step[-1] + 1, **others)

    @classmethod
    def of_run(cls, run: Run, pipe: Any = None, **others: Any) -> MadeFor:
        """A run inside a pipeline.       pipe: it, for the weights of its denoiser."""
        weights = None if pipe is None else of_pipeline(pipe)
        known = {"levels": run.nodes, "steps": run.steps} if run.nodes else {}
        return cls(weights=weights, prediction=run.parametrisation.name, **known, **others)


def check(policy: Policy, made_for: MadeFor | None, here: MadeFor, name: str = "the policy") -> None:
    """IncompatibleError where `policy`, calibrated for `made_for`, is used for something else, `here`.

    made_for: None for a policy that nobody calibrated, which is not checked.       name: for the message.
    What either side does not know is not compared. Scale and space, where `here` does not say them, are the policy's.
    """
    if made_for is None:
        return
    own = own_scale(policy)
    scale = own if here.scale is None and isinstance(own, float) else here.scale
    space = getattr(policy, "space", None) if here.space is None else here.space
    for what in checked(policy):
        then, now = (_value(m, what) for m in (made_for, here))
        now = {"scale": scale, "space": space}.get(what, now)
        if then is not None and now is not None and not _same(what, then, now):
            made, again = "calibrated", "calibrate again for this run (fewstep calibrate)"
            if type(policy).__name__ == "SearchedPolicy":
                made, again = "searched", "search again for this run (fewstep search)"
            raise IncompatibleError(f"{name} was {made} for {_words(what, then, now, made_for, here)}: {again}, or run "
                                    "what it was made for")  # fmt: skip


def checked(policy: Policy) -> tuple[str, ...]:
    """The fields of MadeFor that a run with this policy must share."""
    found = CHECKED.get(type(policy).__name__, ())
    return (*found, "steps") if isinstance(getattr(policy, "gain", None), tuple) else found


def _value(made_for: MadeFor, what: str) -> Any:
    return made_for.weights if what == "model" else getattr(made_for, what)


def _same(what: str, then: Any, now: Any) -> bool:
    if what == "model":
        return then.same(now)
    if what == "levels":
        return len(then) == len(now) and all(map(_close, then, now))
    return then == now


def _close(then: Level, now: Level) -> bool:
    """Whether two levels are one: a pipeline's scheduler may keep its numbers in float32."""
    return all(math.isclose(float(a), float(b), rel_tol=1e-5, abs_tol=1e-5) for a, b in zip(then, now, strict=True))


def _words(what: str, then: Any, now: Any, made_for: MadeFor, here: MadeFor) -> str:
    """What it was for, and what there is."""
    if what == "model":
        there = f"another model than {here.model}" if here.model not in (None, made_for.model) else "another model"
        return f"{there}, {made_for.model or 'one without a name'} with other weights (a LoRA counts)"
    if what == "schedule":
        keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        return f"another noise schedule (other {', '.join('levels' if key == 'sha256' else key for key in keys)})"
    if what == "levels":
        return "other noise levels (another --schedule, strength or shift)"
    if what == "negative":
        return ("runs without a negative prompt, and this one has one" if then == EMPTY
                else "runs with a negative prompt of its own, and this one has none")  # fmt: skip
    shown = {
        "prediction": "a model that predicts",
        "steps": "a run of",
        "solver": "the solver",
        "scale": "the guidance scale",
        "space": "predictions compared in the space",
    }[what]
    unit = " steps" if what == "steps" else ""
    if what == "solver":
        then, now = solver_name(then), solver_name(now)
    return f"{shown} {_short(then)}{unit}, and this is {_short(now)}{unit}"


def solver_name(text: str) -> str:
    """The name of a solver, "2m", of its repr; where none is, the repr."""
    return _solver_names().get(text, text)


@lru_cache(maxsize=1)
def _solver_names() -> dict[str, str]:
    return {repr(make()): name for name, make in reversed(SOLVERS.items())}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
