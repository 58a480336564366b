"""The engine: `start`, `advance`, `edit` are pure functions of a state, `solve` is the loop over them.

`advance` is the one primitive: the loop below, the scheduler inside a diffusers pipeline, gradients and posteriors all
call it, and a tick is always one `combine`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError, NumericsError
from ..kernels import ops
from .feeding import Evaluation, version_of
from .guided import NOTHING, ConditionalOnly, Guided
from .levels import Level, NoiseSchedule
from .noise import Tape
from .policy import Policy, Run
from .prediction import Parametrisation, Prediction
from .ragged import Ragged, after_tick, fold_each, restart, row_of
from .report import Report, Result, TickRecord
from .table import Table, Weights, check_same_schedule, compact, numbers_of, weighted


class Network(Protocol):
    """A diffusion or flow network with its conditioning.

    __call__ returns one raw output of x's shape per branch; one forward may batch the branches. x is float32 or
    float64; the network casts to its own dtype. rows: which images of the batch to evaluate, or None for all.
    """

    @property
    def schedule(self) -> NoiseSchedule: ...
    @property
    def parametrisation(self) -> Parametrisation: ...
    def __call__(
        self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None
    ) -> tuple[Tensor, ...]: ...


class BatchedNetwork(Network, Protocol):
    """A Network that evaluates its branches in one batch of its own dtype.

    `solve` then writes that batch, cast and once per branch, in the launch that makes x; only this can be captured in
    a CUDA graph. It calls `forward_batch` in place of `__call__`, if the class has it.
    time: float32 on the batch's device, 0-d; or one per row, for networks with `select`.
    batch: must not be written to, x may be a view of it.
    Returns one raw output (B, ...) per branch.
    """

    @property
    def dtype(self) -> torch.dtype: ...
    def forward_batch(self, batch: Tensor, time: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]: ...


class State(NamedTuple):
    """Where a run stands: the next tick, x (B, ...) at its node, and what the solver remembers, newest first."""

    tick: int
    x: Tensor
    carry: tuple[Tensor, ...] = ()


class Outputs(NamedTuple):  # made every tick: a NamedTuple costs a third of a frozen dataclass
    """A prediction that still is what the network returned; `advance` folds it, `x0` and `eps` compute it."""

    x: Tensor
    level: Level
    tensors: tuple[Tensor, ...]
    parametrisation: Parametrisation
    weights: Weights = (1.0,)

    @property
    def x0(self) -> Tensor:
        """The guided prediction of the clean image, of x's shape and dtype."""
        return self._row(*self.parametrisation.x0_row(self.level))

    @property
    def eps(self) -> Tensor:
        """The guided prediction of the noise, of x's shape and dtype."""
        return self._row(*self.parametrisation.eps_row(self.level))

    def _row(self, of_x: Any, of_out: Any) -> Tensor:
        if not self.tensors:
            raise NumericsError(f"this tick evaluates nothing, so there is no prediction at {self.level}")
        line = [of_x, *(of_out * w for w in numbers_of(self.weights))]
        folded = weighted(compact([line], movable=[False] * len(line)), self.weights)
        registers = (self.x, *self.tensors)
        return ops.combine(folded.matrix, [registers[k] for k in folded.live])[0]


def start(table: Table, x: Tensor, tick: int = 0) -> State:
    """The state of a run that begins at `tick` with x (B, ...); half precision becomes float32."""
    if not 0 <= tick < len(table):
        raise ConfigError(f"tick {tick} does not exist: this run has {len(table)} ticks, 0 to {len(table) - 1}")
    return State(tick, as_state(x))


def advance(table: Table, state: State, prediction: Prediction | Outputs, noise: Tensor | None = None) -> State:
    """One tick. Pure: no argument is written to, equal arguments give equal results.

    prediction: at table.plan.nodes[state.tick] and state.x.       noise: N(0, I) of x's shape where the row needs it.
    After the last tick nothing is remembered: the carry is empty.
    """
    return advance_and_feed(table, state, prediction, noise)[0]


def advance_and_feed(
    table: Table,
    state: State,
    prediction: Prediction | Outputs,
    noise: Tensor | None = None,
    batch: tuple[torch.dtype, int] | None = None,
) -> tuple[State, Tensor | None]:
    """`advance`, and with `batch` = (dtype, copies) the new x in that dtype, that often along the batch.

    Both come from one launch; where the new x is no new tensor, the second is None.
    """
    i, x, carry = state
    uneven = isinstance(carry, Ragged)
    if isinstance(prediction, Outputs):
        if len(prediction.tensors) != len(prediction.weights):
            raise IncompatibleError(f"{len(prediction.tensors)} outputs cannot have {len(prediction.weights)} weights")
        kind, weights, tensors = prediction.parametrisation, prediction.weights, prediction.tensors
        folded = fold_each(table, i, carry, kind, weights) if uneven else table.fold(i, len(carry), kind, weights)
    else:
        tensors = (prediction.x0, prediction.eps)
        folded = fold_each(table, i, carry, None, (1.0, 1.0)) if uneven else table.unfolded(i, len(carry))
    registers = (x, *tensors, *carry, noise)
    live = [registers[k] for k in folded.live]
    if noise is None and len(registers) - 1 in folded.live:
        raise ConfigError(f"tick {i} of {table.solver} needs noise: pass noise= (or tape= to solve)")
    moved, line = folded.sources[0]
    feed = None if batch is None or moved else ops.Feed(line, *batch)
    computed: tuple[Tensor, ...] = ops.combine(folded.matrix, live, None, feed) if live else ()  # type: ignore[arg-type]
    outputs = [registers[k] if moved else computed[k] for moved, k in folded.sources]
    kept = after_tick(table, i, carry, outputs[1:]) if uneven else tuple(outputs[1:])  # type: ignore[arg-type]
    after = State(i + 1, outputs[0], kept)  # type: ignore[arg-type]
    return after, computed[-1] if computed and feed is not None else None


def edit(table: Table, state: State, x: Tensor) -> State:
    """The state after x was changed from outside (inpainting, a callback, a data step).

    A solver that would discard the change (see Solver.keeps_edits) starts again from it with an empty carry.
    """
    if x.shape != state.x.shape:
        raise IncompatibleError(f"an edit must keep the shape {tuple(state.x.shape)}, got {tuple(x.shape)}")
    return State(state.tick, as_state(x), state.carry if table.keeps_edits else ())


class AdaptiveSolver(Protocol):
    """A solver that chooses its steps while it runs, and therefore has no table."""

    def run(self, network: Network, x: Tensor, *, guidance: Policy | None = None) -> Result: ...


OnTick = Callable[[int, State, Outputs], State | None]


@torch.no_grad()
def solve(
    table: Table | AdaptiveSolver,
    network: Network,
    x: Tensor,
    *,
    guidance: Policy | None = None,
    tape: Tape | None = None,
    on_tick: OnTick | None = None,
    first_tick: int = 0,
    graph: bool = False,
) -> Result:
    """Run `table` on `network` from x (B, ...) at the first node to the last target.

    table: a Table, or a solver that chooses its steps while it runs (AdaptiveDPM), which takes guidance alone.
    guidance: a policy, or None for the conditional branch alone.       tape: noise for stochastic solvers.
    on_tick(i, state, prediction): called after tick i with the state it led to and the prediction (x0, eps) it used;
    may return another state (see `edit`).
    first_tick: begin here (an image-to-image run).
    graph: capture network and sampler in CUDA graphs and replay those (see samplers.graph for what that asks for).
    Gradients are off; differentiate through `advance` instead.
    Errors: ConfigError for missing noise; IncompatibleError for a table of another schedule, a network whose outputs
    are not one tensor of x's shape per branch, an on_tick that returns something else than a State of the next tick,
    or a graph where one cannot be captured.
    """
    if not isinstance(table, Table):
        if tape is not None or on_tick is not None or first_tick or graph:
            raise IncompatibleError(f"{type(table).__name__} has no ticks that are known before it runs: of solve's "
                                    "options it takes guidance alone")  # fmt: skip
        return table.run(network, x, guidance=guidance)
    if table.origin is not network.schedule:
        check_same_schedule(table.schedule, network.schedule)
    if tape is None and any(table.noisy[first_tick:]):
        raise ConfigError(f"{table.solver} draws noise: pass tape=NoiseTape(seeds) to solve")
    if graph:
        from .graph import solve_captured

        return solve_captured(table, network, x, guidance, tape, on_tick, first_tick)
    state = start(table, x, first_tick)
    nodes, targets, last = table.plan.nodes, table.plan.targets, len(table) - 1
    kind = network.parametrisation
    run = Run(x.shape[0], nodes, table.plan.step, table.plan.stage, kind, first=first_tick)
    guided = Guided(ConditionalOnly() if guidance is None else guidance, run)
    report = Report(x.shape[0], guided=guided)
    evaluate = Evaluation(network, table, state.x)
    asked = guided.asked(first_tick)
    clock = time.perf_counter()
    for i in range(first_tick, len(table)):
        if guided.restarting:
            state = restart(table, state, guided.restarts(i))
        row = row_of(table, state)
        asked, tensors, weights = asked if row.evaluates else NOTHING, (), ()
        if asked.branches:
            tensors, weights = guided.prediction(i, state.x, evaluate(i, state.x, asked))
        prediction = Outputs(state.x, nodes[i], tensors, kind, weights)
        noise = tape.normal(i, nodes[i], targets[i], state.x) if tape is not None and row.needs_noise else None
        following = guided.asked(i + 1) if i < last else NOTHING
        state, evaluate.batch = advance_and_feed(table, state, prediction, noise, evaluate.wanted(following))
        if on_tick is not None:
            version = version_of(state.x)
            changed = on_tick(i, state, prediction)
            if changed is not None or state.x.is_inference() or version_of(state.x) != version:
                # the batch is not, or may no longer be, what x is
                state, evaluate.batch = _checked(state if changed is None else changed, state), None
        now = time.perf_counter()
        report.ticks.append(TickRecord(i, nodes[i], asked.branches, 1e3 * (now - clock), asked.images))
        asked, clock = following, now
    guided.end()
    return Result(state.x, report)


def _checked(changed: Any, state: State) -> State:
    if not isinstance(changed, State) or changed.tick != state.tick:
        raise IncompatibleError(
            f"on_tick must return None or a State of tick {state.tick}, such as edit(table, state, x); got "
            f"{f'tick {changed.tick}' if isinstance(changed, State) else type(changed).__name__}"
        )
    return changed


def as_state(x: Tensor) -> Tensor:
    """x as a state is kept: float32 or float64."""
    if not x.is_floating_point():
        raise IncompatibleError(f"x must be a floating-point tensor, got {x.dtype}")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
