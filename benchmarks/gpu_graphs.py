"""CUDA graphs of whole runs: the same bits as the loop, what is refused, and how many kernels a tick is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..guidance.cfg import CFG
from ..samplers import GeneratorTape, NoiseTape, graph
from ..samplers.lowering import lower
from .gpu_outcome import Check, Outcome, Skipped, equals, holds, needs_cuda
from .gpu_runs import GUIDANCE, SCALE, Net, run, start_of, table_of
from .kernels_ladder import GRAPH, LADDER, TRITON, Static, Work, available, counted

SOLVERS = {"2m": torch.bfloat16, "unipc-3": torch.float32, "sde-2m": torch.bfloat16}


def replayed(name: str, guidance: Any, device: torch.device, net: Net) -> Tensor:
    """A run with graph=True. On a CPU: its captured ticks, called instead of replayed."""
    if device.type == "cuda":
        return run(name, guidance, device, net, graph=True)
    table, x = table_of(name, device.type), start_of(device)
    lowered = lower(table, net.parametrisation, guidance)
    return graph.Captured(table, lowered, net, x, lambda body, reset: body).run(x, NoiseTape((5, 6))).x


def same_bits(device: torch.device) -> Iterator[Outcome]:
    for name, dtype in SOLVERS.items():
        for title, guidance in [*GUIDANCE.items()] if device.type == "cuda" else [*GUIDANCE.items()][-1:]:
            net = Net(dtype)
            expected = run(name, guidance, device, net)
            same = all(torch.equal(replayed(name, guidance, device, net), expected) for _ in range(2))
            yield holds(f"{name}, {title}: replays equal the loop bit by bit", same)


def refused(device: torch.device) -> Iterator[Outcome]:
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("on_tick", {"on_tick": lambda *_: None}),
        ("NoiseTape", {"tape": GeneratorTape()}),
        ("CUDA tensors", {}),
    )
    for words, options in cases:
        where = torch.device("cpu") if not options else device
        yield _refuses(words, lambda where=where, options=options: run("2m", None, where, Net(), graph=True, **options))


def _refuses(words: str, call: Any) -> Outcome:
    try:
        call()
    except IncompatibleError as error:
        return holds(f"refused with a reason that names {words}", words in str(error))
    return holds(f"refused with a reason that names {words}", False, "nothing was raised")


class Reader(Net):
    """Reads a value of the GPU on the host, as networks with hooks do."""

    def forward_batch(self, batch: Tensor, time: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]:
        return super().forward_batch(batch * float(batch.flatten()[0].item() != 12345.0), time, branches)


def readers_are_refused(device: torch.device) -> Iterator[Outcome]:
    needs_cuda(device)
    yield _refuses("cannot repeat", lambda: run("2m", CFG(SCALE), device, Reader(), graph=True))
    net = Net()
    expected = run("2m", CFG(SCALE), device, net)
    yield holds("afterwards a loop runs", expected.isfinite().all())
    yield holds("and a graph can be captured", torch.equal(replayed("2m", CFG(SCALE), device, net), expected))


def calls_per_tick(device: torch.device) -> Iterator[Outcome]:
    """One call, and not a byte more than a tick must move: x, both outputs and x0 in; x, x0 and the batch out."""
    x, triton = start_of(device), next(rung for rung in LADDER if rung.name == TRITON)
    for dtype, bytes_per_element in ((torch.bfloat16, 24), (torch.float32, 28)):
        launches, moved = counted(Work(Static(x, dtype), x, 10), triton) or (0, 0)
        yield equals(f"calls per tick, network {dtype}".replace("torch.", ""), launches, 1)
        yield equals(f"bytes per element, network {dtype}".replace("torch.", ""), moved / x.numel(), bytes_per_element)


def kernels_per_tick(device: torch.device) -> Iterator[Outcome]:
    """As the profiler counts them, around a network that launches nothing. The others' are there to compare."""
    needs_cuda(device)
    x, wanted = start_of(device), {TRITON: 1, GRAPH: 2}
    for name, rung in available(device)[0].items():
        short, long = (_kernels(partial(rung.prepare, Work(Static(x, torch.bfloat16), x, n))) for n in (10, 20))
        if not long:
            raise Skipped("the profiler sees no kernels here")
        found = (long - short) / 10
        title = f"kernels per tick, {name}"
        yield equals(title, found, wanted[name]) if name in wanted else Outcome(title, True, found)


def _kernels(prepare: Any) -> int:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    prepare()()
    call = prepare()
    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
    except RuntimeError as error:
        raise Skipped(f"the profiler does not work here ({str(error).splitlines()[0]})") from error
    on_device = [e.name for e in profiler.events() or () if e.device_type == DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset", "Activity", "Context")) for name in on_device)


CHECKS: tuple[Check, ...] = (same_bits, refused, readers_are_refused, calls_per_tick, kernels_per_tick)
