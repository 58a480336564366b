r"""Runs whose guidance is chosen step by step: by numbers, or by a relaxed choice that gradients flow through.

Every candidate of a step is a point on the line through the two predictions,

    out(w) = (1 - w) u + w c:      "uncond" is w = 0, "cond" is w = 1, guidance is w > 1,

so a mixture of candidates with probabilities p is out(sum_k p_k w_k), and a run is known by one w per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..samplers.engine import Network, Outputs, State, advance, start
from ..samplers.noise import Tape
from ..samplers.table import Table
from .scale import towards
from .searched import Choice, scale_of

BRANCHES = ("uncond", "cond")


class Pairs(NamedTuple):
    """A batch of (prompt, noise) pairs.

    network: with the prompts of the batch.       x: (B, ...) at the first node of the table.
    tape: for solvers that draw noise.
    """

    network: Network
    x: Tensor
    tape: Tape | None = None


def branches_of(choice: Choice) -> int:
    """What it evaluates at every tick of its step."""
    return 1 if scale_of(choice) in (0.0, 1.0) else 2


def ticks_of(table: Table) -> tuple[int, ...]:
    """The network evaluations of every step, which one branch makes."""
    counts = [0] * (table.plan.step[-1] + 1)
    for i, row in enumerate(table.rows):
        counts[table.plan.step[i]] += row.evaluates
    return tuple(counts)


def nfe_of(choices: Sequence[Choice], ticks: Sequence[int]) -> int:
    """Network evaluations of a picture."""
    return sum(n * branches_of(choice) for choice, n in zip(choices, ticks, strict=True))


def advanced(table: Table, pairs: Pairs, state: State, w: float | Tensor) -> State:
    """One tick under guidance of strength w: a number, or a tensor, 0-d or [B], that may carry a gradient."""
    i, x, carry = state
    row, node = table.row(i, len(carry)), table.plan.nodes[i]
    branches: tuple[str, ...] = ()
    weights: tuple[float | Tensor, ...] = ()
    if not row.evaluates:
        pass
    elif isinstance(w, Tensor):
        branches, weights = BRANCHES, (1.0 - w, w)
    else:
        line = towards(float(w), {"uncond": 1.0})
        branches = tuple(branch for branch in BRANCHES if branch in line)
        weights = tuple(line[branch] for branch in branches)  # type: ignore[misc]
    tensors = pairs.network(x, node, branches) if branches else ()
    prediction = Outputs(x, node, tensors, pairs.network.parametrisation, weights)
    noise = None
    if pairs.tape is not None and row.needs_noise:
        noise = pairs.tape.normal(i, node, table.plan.targets[i], x)
    return advance(table, state, prediction, noise)


@torch.no_grad()
def states_of(table: Table, pairs: Pairs, scales: Sequence[float], first: State | None = None) -> list[State]:
    """The states before every tick and after the last, from the beginning or from `first`.

    scales: w of every step.
    """
    states = [start(table, pairs.x) if first is None else first]
    while states[-1].tick < len(table):
        states.append(advanced(table, pairs, states[-1], scales[table.plan.step[states[-1].tick]]))
    return states


def relaxed(table: Table, pairs: Pairs, scales: Tensor, *, recompute: bool = True) -> Tensor:
    """The final x of a run, differentiable in its scales.

    scales: [steps], or [B, steps] where the images differ.
    recompute: keep only the states between ticks and call the network again for the gradient, so that memory does not
    grow with the network's activations of all ticks; two calls a tick and not one.
    """
    state = start(table, pairs.x)
    for i in range(len(table)):
        w = scales[..., table.plan.step[i]]
        if not recompute:
            state = advanced(table, pairs, state, w)
            continue

        def tick(x: Tensor, w: Tensor, *carry: Tensor, i: int = i) -> tuple[Tensor, ...]:
            after = advanced(table, pairs, State(i, x, carry), w)
            return (after.x, *after.carry)

        x, *carry = checkpoint(tick, state.x, w, *state.carry, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
        state = State(i + 1, x, tuple(carry))
    return state.x
