"""``fewstep table``: what a run computes, tick by tick, without loading a weight."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from ..names import GRID_NAMES, SOLVER_NAMES
from . import checks, options
from .console import Console, emit

if TYPE_CHECKING:
    from ..samplers import Level, Table

EXAMPLES = """\b
Examples:
  fewstep table --solver 2m --steps 5
  fewstep table --solver unipc-3 --schedule karras -m stable-diffusion-v1-5/stable-diffusion-v1-5
  fewstep table --solver heun --format json

\b
Only the scheduler config of the model is read.
"""


def table(
    solver: options.Solver = "2m",
    schedule: options.Schedule = "lambda",
    steps: options.Steps = 10,
    model: options.Model = "tiny-sd",
    revision: options.Revision = None,
    format: options.Format = "human",
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Show the table of a run: its noise levels and coefficients."""
    from .model_ref import find_model
    from .run import trace_of

    checks.one_of("--format", format, checks.FORMATS)
    checks.one_of("--solver", solver, SOLVER_NAMES)
    checks.one_of("--schedule", schedule, GRID_NAMES)
    checks.whole("--steps", steps, 1, checks.MAX_STEPS)
    ref = find_model(model, None, revision)
    with Console(verbose=verbose).hushed():
        traced = trace_of(ref, solver, schedule, steps)
    if format == "human":
        emit(traced.explain())
    else:
        head = {"model": ref.identity(), "solver": solver, "schedule": schedule, "steps": steps}
        emit(json.dumps(head | as_json(traced), allow_nan=False))
    return 0


def as_json(table: Table) -> dict[str, Any]:
    """The table as JSON-able values; an infinite lam is null."""
    plan = table.plan
    ticks = [
        {
            "tick": i,
            "step": plan.step[i],
            "stage": plan.stage[i],
            "from": _level(plan.nodes[i]),
            "to": _level(plan.targets[i]),
            "inputs": list(row.inputs),
            "coefficients": [list(line) for line in row.coefficients],
        }
        for i, row in enumerate(table.rows)
    ]
    return {"noise_schedule": table.schedule, "evaluations": table.evaluations, "ticks": ticks}


def _level(level: Level) -> dict[str, float | None]:
    lam = float(level.lam)
    named = {"time": float(level.time), "alpha": float(level.alpha), "sigma": float(level.sigma)}
    return {**named, "lam": lam if math.isfinite(lam) else None}
