"""The solvers under test, one row each, and what the tests over them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fewstep.samplers import (
    DDIM,
    DEIS,
    DPM2M,
    DPM2S,
    DPM3M,
    DPM3S,
    DPM2Ancestral,
    DPMFast,
    DPMpp2M,
    DPMpp2S,
    DPMpp2SAncestral,
    DPMpp3M,
    DPMpp3MAsReleased,
    DPMpp3S,
    DPMppFast,
    DPMppSDE,
    Euler,
    GeneratorTape,
    Heun,
    LinearVP,
    Outputs,
    SDEDPMpp1,
    SDEDPMpp2M,
    SDEDPMpp3M,
    State,
    UniPC,
    advance,
    level_at,
    predict,
    trace_tick,
)

VP = LinearVP()
DOUBLE = torch.float64


@dataclass(frozen=True)
class Row:
    """order: proven slope.  degree: highest polynomial x0(lam) that is solved exactly (-1: see `exact_slope`).
    history: vectors of x0 that a full-order start needs; `state`: whether the carry begins with the previous state."""

    name: str
    solver: Any
    order: float
    degree: int
    ticks_a_step: int = 1
    history: int = 0
    state: bool = False
    corrected: int = -1  # degree of the corrected state, for predictor-corrector methods
    noisy: bool = False
    of: str = "x0"  # the prediction that the method takes for a polynomial
    overshoots: bool = False  # on long steps in lam: 12 steps of equal model time are too few for it

    def __str__(self) -> str:
        return self.name


ROWS = [
    Row("ddim", DDIM(), 1, 0),
    Row("euler", Euler(), 1, 0),
    Row("heun", Heun(), 2, 0, ticks_a_step=2),
    Row("2m", DPMpp2M(lower_order_final=False), 2, 0, history=1),
    Row("2m-taylor", DPMpp2M("taylor", lower_order_final=False), 2, 1, history=1),
    Row("3m", DPMpp3M(lower_order_final=False), 3, 2, history=2),
    Row("3m-as-released", DPMpp3MAsReleased(lower_order_final=False), 2, 1, history=2),
    Row("dpm-2m", DPM2M(lower_order_final=False), 2, 0, history=1, of="eps"),
    Row("dpm-2m-taylor", DPM2M("taylor", lower_order_final=False), 2, 1, history=1, of="eps"),
    Row("dpm-3m", DPM3M(lower_order_final=False), 3, 2, history=2, of="eps"),
    Row("deis-2", DEIS(2, lower_order_final=False), 2, 1, history=1, of="eps"),
    Row("deis-3", DEIS(3, lower_order_final=False), 3, 2, history=2, of="eps"),
    Row("deis-4", DEIS(4, lower_order_final=False), 4, 3, history=3, of="eps"),
    Row("2s", DPMpp2S(), 2, 0, ticks_a_step=2),
    Row("2s-taylor", DPMpp2S(r1=0.4, solver_type="taylor"), 2, 1, ticks_a_step=2),
    Row("3s", DPMpp3S(), 3, 1, ticks_a_step=3),
    Row("3s-taylor", DPMpp3S(0.45, "taylor"), 3, 2, ticks_a_step=3),
    Row("dpm-2s", DPM2S(), 2, 0, ticks_a_step=2, of="eps"),
    Row("dpm-2s-taylor", DPM2S(r1=0.4, solver_type="taylor"), 2, 1, ticks_a_step=2, of="eps"),
    Row("dpm-3s", DPM3S(), 3, 1, ticks_a_step=3, of="eps"),
    Row("dpm-3s-taylor", DPM3S(0.2, "taylor"), 3, 2, ticks_a_step=3, of="eps"),
    Row("fast", DPMFast(), 2.8, 0, of="eps"),
    Row("fast++", DPMppFast("taylor"), 2.8, 0),
    Row("unipc-1", UniPC(1), 2, 0, history=1, state=True, corrected=0),
    Row("unipc-2", UniPC(2, lower_order_final=False), 3, 0, history=2, state=True, corrected=2),
    Row("unipc-2-bh1", UniPC(2, "bh1", lower_order_final=False), 3, 0, history=2, state=True, corrected=2),
    Row("unipc-3", UniPC(3, lower_order_final=False), 3.45, 2, history=3, state=True, corrected=3),
    Row("unipc-2-vary", UniPC(2, "vary", lower_order_final=False), 3, 1, history=2, state=True, corrected=2),
    Row("unipc-4", UniPC(4, lower_order_final=False), 5, 3, history=4, state=True, corrected=4, overshoots=True),
    Row("sde-2m-eta0", SDEDPMpp2M(0.0, lower_order_final=False), 2, 0, history=1),
    Row("sde-2m-taylor-eta0", SDEDPMpp2M(0.0, "taylor", lower_order_final=False), 2, 1, history=1),
    Row("ddpm", DDIM(1.0), 1, -1, noisy=True),
    Row("sde-1", SDEDPMpp1(), 1, -1, noisy=True),
    Row("sde-2m", SDEDPMpp2M(lower_order_final=False), 1, -1, history=1, noisy=True),
    Row("sde-3m", SDEDPMpp3M(lower_order_final=False), 1, -1, history=2, noisy=True, overshoots=True),
    Row("dpmpp-sde", DPMppSDE(), 1, -1, ticks_a_step=2, noisy=True),
    Row("dpm2-a", DPM2Ancestral(), 1, -1, ticks_a_step=2, noisy=True, of="eps"),
    Row("2s-a", DPMpp2SAncestral(), 1, -1, ticks_a_step=2, noisy=True),
]
ODE = [row for row in ROWS if not row.noisy]
every = pytest.mark.parametrize("row", ROWS, ids=str)
every_ode = pytest.mark.parametrize("row", ODE, ids=str)


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def tape(seed: int = 0) -> GeneratorTape:
    return GeneratorTape(torch.Generator().manual_seed(seed))


def warm_start(row: Row, table, network, x) -> State:
    """The state at tick `history`, everything in it exact: x, and the carry the solver would have there."""
    k, nodes = row.history, table.plan.nodes
    xs = [network.flow(x, nodes[0], node) for node in nodes[: k + 1]]
    predictions = []
    for node, y in zip(nodes[:k], xs, strict=False):
        out = network(y, node, ("cond",))[0]
        p = predict(network.parametrisation, node, y, out)
        predictions.append(p.x0 if row.of == "x0" else p.eps)
    carry = tuple(reversed(predictions))
    return State(k, xs[k], ((xs[k - 1], *carry) if row.state else carry) if k else ())


def run_from(table, network, state: State, leave_out: int = 0) -> State:
    """The state after all but the last `leave_out` ticks."""
    while state.tick < len(table) - leave_out:
        level = table.plan.nodes[state.tick]
        outputs = Outputs(state.x, level, network(state.x, level, ("cond",)), network.parametrisation)
        state = advance(table, state, outputs)
    return state


def relative(a, b) -> float:
    return float((a - b).abs().max() / b.abs().max())


def uneven_levels(n: int, schedule=VP):
    """n steps over a grid without any regularity, so that nothing cancels by symmetry."""
    generator = torch.Generator().manual_seed(3)
    gaps = 0.5 + torch.rand(n, generator=generator, dtype=DOUBLE)
    lams = [-2.5 + 4.0 * float(v) for v in torch.cat([torch.zeros(1, dtype=DOUBLE), gaps.cumsum(0)]) / gaps.sum()]
    return tuple(level_at(schedule, lam) for lam in lams)


def eager(solver, levels, network, x, tape=None):
    """The readable reference: the solver's own formulas on tensors, no table."""
    plan = solver.plan(levels, network.schedule)
    carry = ()
    for i, s in enumerate(plan.nodes):
        p = predict(network.parametrisation, s, x, network(x, s, ("cond",))[0])
        noisy = tape is not None and trace_tick(solver, plan, i, len(carry)).needs_noise
        x, carry = solver.step(plan, i, x, p, carry, tape.normal(i, s, plan.targets[i], x) if noisy else None)
    return x
