"""``fewstep table``: what a run computes, tick by tick, without loading a weight."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..files import write_atomic
from . import checks, options
from .console import Console, emit
from .own_files import writable, writing

if TYPE_CHECKING:
    from ..samplers import Level, Table

EXAMPLES = """\b
Examples:
  fewstep table --solver 2m --steps 5
  fewstep table --solver unipc-3 --schedule karras -m stable-diffusion-v1-5/stable-diffusion-v1-5
  fewstep table --solver heun --format json
  fewstep table --solver 3m --steps 6 --save my.safetensors

\b
Only the scheduler config of the model is read.
"""


def table(
    solver: options.TableSolver = None,
    schedule: options.Schedule = None,
    steps: options.Steps = None,
    strength: options.TableStrength = None,
    model: options.Model = "tiny-sd",
    revision: options.Revision = None,
    save: options.Save = None,
    format: options.Format = "human",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Show the table of a run: its noise levels and coefficients."""
    from .how import choose
    from .model_ref import find_model
    from .plan import counted, schedule_of, trace_of
    from .shell import shown
    from .table_ref import digest_of, find_table

    checks.one_of("--format", format, checks.FORMATS)
    how = choose(solver, schedule, steps)
    if how.schedule == "adaptive":
        raise ConfigError(f"--solver {how.solver} chooses its steps while it runs: there is no table to show")
    checks.strength(strength)
    ref = find_model(model, None, revision)
    target = None if save is None else writable("--save", save, "table", find_table)
    console = Console(quiet, verbose)
    with console.hushed():
        from ..samplers.table_file import encode

        traced = trace_of(ref, how.solver, how.schedule, how.steps, strength=1.0 if strength is None else strength)
        marks = {"parametrisation": schedule_of(ref)[1], "steps": str(how.steps), "solver": how.solver}
        data = encode(traced, marks | ({} if strength is None else {"strength": f"{strength:g}"}))
    for note in how.notes:
        console.note(note)
    digest = digest_of(data)
    if target is not None:
        with writing("--save", target):
            write_atomic(target, data)
        words = ["fewstep", "sample", "a prompt", *ref.words, "--table", str(save)]
        words += [] if strength in (None, 1.0) else ["--init-image", "FILE"]
        console.note(f"{target} holds this table ({digest}): run it with {shown(words)}")
    joined = traced.plan.step[-1] + 1
    if joined != how.steps:
        fewer = counted(joined, "step")
        console.note(f"{how.solver} joins a grid of {how.steps} steps to {fewer} of several evaluations")
    if format == "human":
        emit(traced.explain())
    else:
        head = {"model": ref.identity(), "solver": how.solver, "schedule": how.schedule, "steps": how.steps}
        head |= {"digest": digest} | ({} if strength is None else {"strength": strength})
        emit(json.dumps({**head, "file": None if target is None else str(target), **as_json(traced)}, allow_nan=False))
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
