"""CUDA graphs of whole runs: the same bits as the loop, what is refused, and how many kernels a tick is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..guidance.cfg import CFG
from ..samplers import GeneratorTape, NoiseTape, graph, solve
from ..samplers.lowering import lower
from .gpu_outcome import Check, Outcome, Skipped, equals, holds, needs_cuda
from .gpu_runs import GUIDANCE, SCALE, Net, run, start_of, table_of
from .kernels_ladder import Static

SOLVERS = {"2m": torch.bfloat16, "unipc-3": torch.float32, "sde-2m": torch.bfloat16}


def replayed(name: str, guidance: Any, device: torch.device, net: Net) -> Tensor:
    """A run with graph=True. On a CPU: its captured ticks, called instead of replayed."""
    if device.type == "cuda":
        return run(name, guidance, device, net, graph=True)
    table, x = table_of(name, device.type), start_of(device)
    lowered = lower(table, net.parametrisation, guidance)
    return graph.Captured(table, lowered, net, x, guidance, lambda body, reset: body).run(x, NoiseTape((5, 6))).x


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


def kernels_per_tick(device: torch.device) -> Iterator[Outcome]:
    """As the profiler counts them, around a network that launches nothing."""
    needs_cuda(device)
    x = start_of(device)
    for captured, wanted in ((False, 1), (True, 2)):
        counts = []
        for ticks in (10, 20):
            network = Static(x, torch.bfloat16)
            counts.append(_kernels(lambda t=ticks, n=network, g=captured: _run_of(t, n, x, g)))
        if not counts[1]:
            raise Skipped("the profiler sees no kernels here")
        yield equals(f"kernels per tick, graph={captured}", (counts[1] - counts[0]) / 10, wanted)


def _run_of(ticks: int, network: Static, x: Tensor, captured: bool) -> Tensor:
    return solve(table_of("2m", "cuda", ticks), network, x, guidance=CFG(SCALE), graph=captured).x


def _kernels(call: Any) -> int:
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
    except RuntimeError as error:
        raise Skipped(f"the profiler does not work here ({str(error).splitlines()[0]})") from error
    on_device = [e.name for e in profiler.events() if e.device_type == DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset", "Activity", "Context")) for name in on_device)


CHECKS: tuple[Check, ...] = (same_bits, refused, readers_are_refused, kernels_per_tick)
