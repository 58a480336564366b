"""Parts of a run in steps. All count from the step that the run begins with."""

from __future__ import annotations

from ..samplers.policy import Run


def first_step(run: Run) -> int:
    """The number, in the table, of the step that the run begins with."""
    return run.step[run.first] if run.step else 0


def step_of(i: int, run: Run) -> int:
    """The step of tick i."""
    return run.step[i] - first_step(run)


def steps_of(run: Run) -> int:
    """How many steps the run has."""
    return run.steps - first_step(run)


def steps_within(part: float, run: Run) -> int:
    """`whole_steps` of the steps of a run."""
    return whole_steps(part, steps_of(run))


def whole_steps(part: float, steps: int) -> int:
    """int(part n) of n steps, where 0.29 of 100 are 29, whose product is 28.99... in float64; k / n of n are k."""
    return int(part * steps + 1e-9)
