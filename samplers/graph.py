"""A whole run from CUDA graphs: one captured graph holds network and sampler, and is replayed tick by tick.

Ticks that evaluate other branches have a graph of their own.

For networks whose time between two ticks is launches and host work rather than arithmetic. What a captured graph
repeats is fixed: the same shapes, the same kernels, no reading of the GPU by the host.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..kernels import choice
from ..kernels.ops_philox import philox_normal
from ..kernels.upload import to_device
from .engine import BatchedNetwork, start
from .feeding import batch_of, is_batched, times_of
from .lowering import Branches, Lowered, Step, lower
from .noise import NoiseTape, Tape
from .policy import Policy
from .report import Report, Result, TickRecord
from .table import Table

WARM_UPS = 3  # before a capture: kernels are compiled, libraries set up and tuned
_ALIGNMENT = 16  # elements; slots begin where a 128-bit access may
Capture = Callable[[Callable[[], None], Callable[[], None]], Callable[[], None]]

_KEPT: dict[int, tuple[weakref.ref[Any], Captured]] = {}  # the newest of every network, by id
_LOCK = threading.Lock()


def solve_captured(
    table: Table,
    network: Any,
    x: Tensor,
    guidance: Policy | None,
    tape: Tape | None,
    on_tick: Any,
    first_tick: int,
) -> Result:
    """`solve` with graph=True. The graphs of a network object's newest run are kept and serve again for the same
    coefficients, times, shapes and dtypes. Else all is captured anew, which evaluates the network four times per set of
    branches; the report does not count those. The graphs hold addresses: weights that are moved or exchanged need a new
    network object. One run at a time: threads wait for each other.

    Errors: IncompatibleError, with the reason, for what cannot be captured.
    """
    for problem, instead in (
        (on_tick is not None, "on_tick runs Python between two ticks: leave it out"),
        (not is_batched(network), f"{type(network).__name__} has no forward_batch (see BatchedNetwork)"),
        (tape is not None and not isinstance(tape, NoiseTape), "its noise must come from NoiseTape(seeds)"),
        (x.device.type != "cuda", f"it needs CUDA tensors, x is on {x.device.type!r}"),
        (
            torch.is_autocast_enabled("cuda"),
            "autocast frees the casts of weights that a graph would read: load the "
            "network in the dtype it shall run in",
        ),
    ):
        if problem:
            raise IncompatibleError(f"graph=True cannot capture this run: {instead}, or use graph=False")
    if not choice.use_triton(x):
        raise IncompatibleError("graph=True needs the Triton kernels: install triton, and do not set "
                                f"{choice.VARIABLE}=torch")  # fmt: skip
    x = start(table, x, first_tick).x
    lowered = lower(table, network.parametrisation, guidance, first_tick)
    with _LOCK, torch.cuda.device(x.device), torch.inference_mode(False), torch.no_grad():
        captured = _kept(network)
        if captured is None or not captured.serves(table, lowered, network, x):
            _KEPT.pop(id(network), None)  # its memory before the new one's
            captured = Captured(table, lowered, network, x, cuda_graph(x.device))
            _keep(network, captured)
        return captured.run(x, tape)  # type: ignore[arg-type]  # checked above: NoiseTape or None


def _kept(network: Any) -> Captured | None:
    reference, captured = _KEPT.get(id(network), (None, None))
    return captured if reference is not None and reference() is network else None


def _keep(network: Any, captured: Captured) -> None:
    """By identity, for networks may compare by value; until the network is gone."""
    key = id(network)
    with suppress(TypeError):  # a class without weak references: its graphs are not kept
        _KEPT[key] = weakref.ref(network, lambda _: _KEPT.pop(key, None)), captured


class Captured:
    """The graphs of a run and the memory they work in."""

    def __init__(
        self,
        table: Table,
        lowered: Lowered,
        network: BatchedNetwork,
        x: Tensor,
        capture: Capture,
    ) -> None:
        """capture(body, reset) -> replay: records `body`, which may be run first, after `reset` each time."""
        from ..kernels import triton_tick

        self._nodes, self._lowered = table.plan.nodes, lowered
        self._like, self._dtype = (x.shape, x.dtype, x.device), network.dtype
        self._tick = triton_tick
        self._memory = _allocate(table, lowered, x, network.dtype)
        self._seeds = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        self._replays: dict[Branches, Callable[[], None]] = {}
        for i, step in enumerate(lowered.steps):
            if step is not None and step.branches not in self._replays:
                body, reset = self._body(network, step.branches), self._resetter(i)
                self._replays[step.branches] = capture(body, reset)

    def serves(self, table: Table, lowered: Lowered, network: BatchedNetwork, x: Tensor) -> bool:
        """Whether a run of these is this one."""
        same = lowered == self._lowered and table.plan.nodes == self._nodes and network.dtype == self._dtype
        return same and (x.shape, x.dtype, x.device) == self._like

    def run(self, x: Tensor, tape: NoiseTape | None) -> Result:
        """Replays the whole run; the result is a copy that the next run leaves alone."""
        memory, steps = self._memory, self._lowered.steps
        report = Report(batch=x.shape[0])
        if tape is not None:
            if len(tape.seeds) != x.shape[0]:
                raise ConfigError(f"the tape has {len(tape.seeds)} seeds for a batch of {x.shape[0]} images")
            self._seeds.copy_(to_device(tape.seeds, x.device, torch.int64))
        self._resetter(self._lowered.first_tick)()
        self._slot(0).copy_(x)
        memory.feed.copy_(batch_of(x, memory.feed.dtype, self._lowered.copies))
        clock = time.perf_counter()
        for i in range(self._lowered.first_tick, len(steps)):
            branches = steps[i].branches  # type: ignore[union-attr]
            self._replays[branches]()
            now = time.perf_counter()
            report.ticks.append(TickRecord(i, self._nodes[i], branches, 1e3 * (now - clock)))
            clock = now
        return Result(self._slot(self._lowered.result).clone(), report)

    def _slot(self, k: int) -> Tensor:
        shape = self._like[0]
        return self._memory.arena[k, : shape.numel()].view(shape)

    def _resetter(self, i: int) -> Callable[[], None]:
        def reset() -> None:
            self._memory.counter.fill_(i)

        return reset

    def _body(self, network: BatchedNetwork, branches: Branches) -> Callable[[], None]:
        memory, (shape, dtype, device) = self._memory, self._like
        batch = memory.feed[: len(branches) * shape[0]]

        def body() -> None:
            self._tick.begin(memory)
            tensors = network.forward_batch(batch, memory.time, branches) if branches else ()
            if any(t.shape != shape for t in tensors) or len(tensors) != len(branches):
                raise IncompatibleError(f"the network must return a tensor of shape {tuple(shape)} per branch")
            noise = ()
            if self._lowered.noisy:
                noise = (philox_normal(self._seeds, memory.tick, shape[1:], device=device, dtype=dtype),)
            outputs = [t.contiguous() for t in tensors]
            self._tick.advance(memory, shape.numel(), outputs, noise, self._lowered.carries)

        return body


def _allocate(table: Table, lowered: Lowered, x: Tensor, dtype: torch.dtype) -> Any:
    from ..kernels.triton_tick import Memory

    stride = -(-x.numel() // _ALIGNMENT) * _ALIGNMENT
    coefficients, slots = _rows(lowered, x.dtype)
    integer = torch.zeros(2, 1, dtype=torch.int32, device=x.device)
    return Memory(
        arena=torch.zeros(lowered.slots, stride, dtype=x.dtype, device=x.device),
        feed=torch.zeros(lowered.copies * x.shape[0], *x.shape[1:], dtype=dtype, device=x.device),
        coefficients=coefficients.to(x.device),
        slots=slots.to(x.device),
        counter=integer[0],
        tick=integer[1],
        times=times_of(table, x.device),
        time=torch.zeros((), dtype=torch.float32, device=x.device),
    )


def _rows(lowered: Lowered, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The coefficients [ticks, widest] and slots [ticks, ...]; rows of ticks that are not run stay zero."""
    steps: list[Step] = [s for s in lowered.steps if s is not None]
    width = max(len(s.coefficients) * len(s.coefficients[0]) for s in steps)
    coefficients = torch.zeros(len(lowered.steps), width, dtype=dtype, device="cpu")
    slots = torch.zeros(len(lowered.steps), len(steps[0].slots), dtype=torch.int32, device="cpu")
    for i, step in enumerate(lowered.steps):
        if step is not None:
            flat = [c for line in step.coefficients for c in line]
            coefficients[i, : len(flat)] = torch.tensor(flat, dtype=dtype, device="cpu")
            slots[i] = torch.tensor(step.slots, dtype=torch.int32, device="cpu")
    return coefficients, slots


def cuda_graph(device: torch.device) -> Capture:
    """Captures into CUDA graphs of `device` that share one pool of memory."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def capture(body: Callable[[], None], reset: Callable[[], None]) -> Callable[[], None]:
        active = sys.exception()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                reset()
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):  # torch's own stream is of the first device used
                body()
        except RuntimeError as error:
            first = error
            while first.__context__ not in (None, active):  # ending a capture that failed fails too, and says less
                first = first.__context__
            reason = (str(first).strip() or type(first).__name__).splitlines()[0]
            raise IncompatibleError(
                f"graph=True: the network does something that a CUDA graph cannot repeat ({reason}). Networks with "
                "offload hooks, or that read GPU values on the host, need graph=False"
            ) from error
        return graph.replay

    return capture
