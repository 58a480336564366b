"""Whole runs on a device: against plain torch, under torch.compile, on several streams, and without ever waiting."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..guidance.cfg import CFG
from ..guidance.interval import Interval
from ..kernels import choice, ops
from ..samplers import EPS, SOLVERS, DiscreteVP, NoiseSchedule, NoiseTape, Table, solve, trace
from ..samplers.grids import uniform_lambda
from .gpu_combine import randn
from .gpu_outcome import Check, Outcome, at_most, holds, needs_cuda

VP = DiscreteVP.scaled_linear()
SCALE = 7.5
SHAPES = {"cuda": (2, 4, 64, 64), "cpu": (2, 4, 4, 4)}
TICKS = {"cuda": 10, "cpu": 3}
TOLERANCE = 3e-5


class Net:
    """Its outputs are small and flat in x, so that a run does little but grow with alpha."""

    schedule: NoiseSchedule = VP
    parametrisation = EPS

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def __call__(self, x: Tensor, level: Any, branches: tuple[str, ...], rows: Any = None) -> tuple[Tensor, ...]:
        raise NotImplementedError("it is called with batches")

    def forward_batch(self, batch: Tensor, time: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]:
        parts = torch.tanh(batch * 0.05 * (1.0 + time / 1000.0)).chunk(len(branches))
        scaled = [0.9 * part if b == "uncond" else part for b, part in zip(branches, parts, strict=True)]
        return torch.cat(scaled).to(self.dtype).chunk(len(branches))


GUIDANCE = {"no guidance": None, "CFG": CFG(SCALE), "guidance in an interval": Interval(SCALE, start=0.34, stop=0.67)}


@cache
def table_of(name: str, device: str, ticks: int = 0) -> Table:
    return trace(SOLVERS[name](), uniform_lambda(VP, ticks or TICKS[device]), VP)


def start_of(device: torch.device) -> Tensor:
    return randn(SHAPES[device.type], torch.float32, device, 3)


def run(name: str, guidance: Any, device: torch.device, net: Net, **options: Any) -> Tensor:
    options.setdefault("tape", NoiseTape((5, 6)))
    return solve(table_of(name, device.type), net, start_of(device), guidance=guidance, **options).x


def every_solver(device: torch.device) -> Iterator[Outcome]:
    for name in SOLVERS:
        worst = 0.0
        for guidance in (None, CFG(SCALE)) if name == "2m" else (CFG(SCALE),):
            found = run(name, guidance, device, Net())
            with choice.forced("torch"):
                wanted = run(name, guidance, device, Net())
            worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
        yield at_most(f"{name}: Triton against plain torch, relative", worst, TOLERANCE)


def compiled(device: torch.device) -> Iterator[Outcome]:
    """A function that calls the op compiles in one piece. Without a GPU only as far as its own backend matters."""
    x, u, c = (randn((2, 4, 8, 8), torch.float32, device, seed) for seed in range(3))

    def update(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
        return ops.combine(((0.5, -6.5, 7.5),), (x * 2.0, u, c))[0] + 1.0

    with torch.no_grad():
        for backend in ("inductor", "aot_eager") if device.type == "cuda" else ("aot_eager",):
            torch.compiler.reset()
            found = torch.compile(update, fullgraph=True, backend=backend)(x, u, c)
            error = float((found - update(x, u, c)).abs().max())
            yield at_most(f"torch.compile(fullgraph=True), backend {backend}, absolute", error, 1e-5)


def streams(device: torch.device) -> Iterator[Outcome]:
    needs_cuda(device)
    net, expected = Net(torch.bfloat16), run("unipc-3", CFG(SCALE), device, Net(torch.bfloat16))
    found = []
    for _ in range(8):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            found.append(run("unipc-3", CFG(SCALE), device, net))
    torch.cuda.synchronize(device)
    yield holds("8 runs on 8 streams give the same bits", all(torch.equal(x, expected) for x in found))


def never_waits(device: torch.device) -> Iterator[Outcome]:
    """torch raises where the host waits for the device. The first run uploads what later ones find there."""
    needs_cuda(device)
    net, count = Net(torch.bfloat16), TICKS["cuda"]

    def watch(i: int, state: Any, prediction: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if i + 1 < count else "default")

    for name in ("2m", "unipc-3", "sde-2m"):
        run(name, CFG(SCALE), device, net)
        try:
            run(name, CFG(SCALE), device, net, on_tick=watch)
            problem = ""
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield holds(f"{name}: the loop does not wait from its first tick's end to its last", not problem, problem)


def never_waits_replayed(device: torch.device) -> Iterator[Outcome]:
    needs_cuda(device)
    net = Net(torch.bfloat16)
    run("2m", CFG(SCALE), device, net, tape=None, graph=True)
    try:
        torch.cuda.set_sync_debug_mode("error")
        run("2m", CFG(SCALE), device, net, tape=None, graph=True)
        problem = ""
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    yield holds("2m: a replayed run never waits", not problem, problem)


CHECKS: tuple[Check, ...] = (every_solver, compiled, streams, never_waits, never_waits_replayed)
