"""One run of DPM-Solver++(2M) with guidance, by every implementation that there is: from diffusers to a CUDA graph."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..guidance.cfg import CFG
from ..kernels import choice
from ..samplers import EPS, DiscreteVP, DPMpp2M, Table, linspace, solve, trace
from ..samplers.feeding import batch_of, times_of
from ..samplers.lowering import lower
from .counting import Counts, DispatchCounter, per_tick
from .overhead_peers import STABLE_DIFFUSION

SCALE = 7.5
SCHEDULE = DiscreteVP.scaled_linear()
BRANCHES = ("uncond", "cond")
SHIPPED, BEGIN_INDEX = "diffusers as shipped", "diffusers, begin index"
TORCH, COMPILED, TRITON, GRAPH = "fewstep, torch", "torch.compile", "fewstep, Triton", "fewstep, Triton, CUDA graph"

Hook = Callable[..., None]
Run = Callable[[], Tensor]


class Static:
    """A network that returns the same tensors at once."""

    schedule, parametrisation = SCHEDULE, EPS

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._parts = torch.cat([0.1 * like, 0.2 * like]).to(dtype).chunk(2)

    def forward_batch(self, batch: Tensor, time: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]:
        return self._parts


class Smooth:
    """A network with answers that depend on what it is asked, for the gates; the same for every time."""

    schedule, parametrisation = SCHEDULE, EPS

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def forward_batch(self, batch: Tensor, time: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]:
        parts = (0.1 * torch.tanh(batch)).chunk(len(branches))
        return tuple(part if b == "cond" else 0.9 * part for b, part in zip(branches, parts, strict=True))


@dataclass(frozen=True)
class Hidden:
    """A network whose own operations a counter does not see."""

    network: Any
    counter: DispatchCounter

    def forward_batch(self, batch: Tensor, time: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]:
        with self.counter.paused():
            return self.network.forward_batch(batch, time, branches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


@dataclass(frozen=True, eq=False)
class Work:
    """x: float32 (B, ...).       network: a BatchedNetwork."""

    network: Any
    x: Tensor
    ticks: int

    @property
    def device(self) -> torch.device:
        return self.x.device


@cache
def table_of(ticks: int) -> Table:
    return trace(DPMpp2M(), linspace(SCHEDULE, ticks), SCHEDULE)


def ours(kernels: str, graph: bool = False) -> Callable[[Work, Hook | None], Run]:
    """`solve` with the given FEWSTEP_KERNELS."""

    def prepare(work: Work, hook: Hook | None = None) -> Run:
        table, guidance = table_of(work.ticks), CFG(SCALE)

        def run() -> Tensor:
            with choice.forced(kernels):
                return solve(table, work.network, work.x, guidance=guidance, on_tick=hook, graph=graph).x

        return run

    return prepare


def diffusers(shipped: bool) -> Callable[[Work, Hook | None], Run]:
    """The loop of StableDiffusionPipeline. shipped: with its progress bar, and searching for the first index."""

    def prepare(work: Work, hook: Hook | None = None) -> Run:
        from diffusers import DPMSolverMultistepScheduler

        network, scheduler = work.network, DPMSolverMultistepScheduler(**STABLE_DIFFUSION, solver_order=2)
        scheduler.set_timesteps(work.ticks, device=work.device)
        if not shipped:
            scheduler.set_begin_index(0)

        @torch.no_grad()
        def loop(update: Callable[[], object]) -> Tensor:
            latents = work.x.to(network.dtype)
            for i, t in enumerate(scheduler.timesteps):
                batch = scheduler.scale_model_input(torch.cat([latents] * 2), t)
                uncond, cond = network.forward_batch(batch, t, BRANCHES)
                noise_pred = uncond + SCALE * (cond - uncond)
                latents = scheduler.step(noise_pred, t, latents, return_dict=False)[0]
                if hook is not None:
                    hook(i, latents, noise_pred)
                update()
            return latents

        return (lambda: _with_progress(loop, work.ticks)) if shipped else (lambda: loop(int))

    return prepare


def _with_progress(loop: Callable[[Callable[[], object]], Tensor], ticks: int) -> Tensor:
    from tqdm.auto import tqdm

    with open(os.devnull, "w", encoding="utf-8") as nowhere, tqdm(total=ticks, file=nowhere) as bar:
        return loop(bar.update)


def compiled(work: Work, hook: Hook | None = None) -> Run:
    """The same arithmetic as a compiled function of tensors: what torch alone can do with our tables."""
    lowered = lower(table_of(work.ticks), EPS, CFG(SCALE))
    rows = torch.tensor([step.coefficients for step in lowered.steps if step], dtype=torch.float32, device="cpu")
    matrices, times = rows.to(work.device).unbind(), times_of(table_of(work.ticks), work.device)
    network, update = work.network, _compiled_update()

    @torch.no_grad()
    def run() -> Tensor:
        x, before = work.x, torch.zeros_like(work.x)
        batch = batch_of(x, network.dtype, 2)
        for C, time in zip(matrices, times, strict=True):
            uncond, cond = network.forward_batch(batch, time, BRANCHES)
            x, before, batch = update(C, x, uncond, cond, before)
        return x

    return run


def _update(C: Tensor, x: Tensor, uncond: Tensor, cond: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, c = uncond.float(), cond.float()
    x_next = C[0, 0] * x + C[0, 1] * u + C[0, 2] * c + C[0, 3] * before
    x0 = C[1, 0] * x + C[1, 1] * u + C[1, 2] * c + C[1, 3] * before
    return x_next, x0, torch.cat([x_next, x_next]).to(uncond.dtype)


@cache
def _compiled_update() -> Callable[..., Any]:
    """Compiled for every shape and dtype by itself, which is what its code can be fastest with."""
    import torch._dynamo

    for name in ("recompile_limit", "cache_size_limit"):  # the newer name and the older
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 64)
    return torch.compile(_update, dynamic=False, fullgraph=True)


@dataclass(frozen=True)
class Rung:
    """launches: per tick, where calls do not show them but the code does.       counts: whether either does.
    waits: whether the host waits for the device."""

    name: str
    prepare: Callable[..., Run]
    launches: int | None = None
    counts: bool = True
    waits: bool = False


LADDER = (
    Rung(SHIPPED, diffusers(True), waits=True),
    Rung(BEGIN_INDEX, diffusers(False)),
    Rung(TORCH, ours("torch")),
    Rung(COMPILED, compiled, counts=False),
    Rung(TRITON, ours("triton")),
    Rung(GRAPH, ours("triton", graph=True), launches=2),  # the tick's, and one program that moves the counter
)


def available(device: torch.device) -> tuple[dict[str, Rung], list[str]]:
    """What runs here, and why the others do not."""
    problems = {}
    if find_spec("diffusers") is None:
        problems |= dict.fromkeys((SHIPPED, BEGIN_INDEX), "diffusers is not installed")
    if device.type != "cuda":
        problems |= dict.fromkeys((TRITON, GRAPH), "no CUDA device")
    elif find_spec("triton") is None:
        problems |= dict.fromkeys((TRITON, GRAPH), "Triton is not installed")
    problem = compiler_problem(device)
    if problem:
        problems[COMPILED] = f"it does not work here ({problem})"
    reasons = [f"{name}: {reason}" for name, reason in problems.items()]
    return {rung.name: rung for rung in LADDER if rung.name not in problems}, reasons


@cache
def compiler_problem(device: torch.device) -> str | None:
    try:
        return None if torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=device)).sum() == 24 else "wrong result"
    except Exception as error:  # no compiler, no headers, no Triton, ...: torch raises all kinds
        return type(error).__name__


def least_bytes(work: Work) -> int:
    """What a tick must move: x, both outputs and the remembered x0 are read; x, x0 and the next batch are written."""
    return work.x.numel() * (4 * 4 + 4 * work.network.dtype.itemsize)


def counted(work: Work, rung: Rung) -> tuple[float, float] | None:
    """Launches and bytes of a tick in steady state, without the network's: the mean over four ticks."""
    if not rung.counts:
        return None
    if rung.launches is not None:
        return rung.launches, least_bytes(work)
    snapshots: list[Counts] = []
    with DispatchCounter(work.x.numel()) as counter:
        hidden = replace(work, network=Hidden(work.network, counter))
        rung.prepare(hidden, lambda *_: snapshots.append(counter.counts))()
    found = per_tick(snapshots, len(snapshots) - 7, len(snapshots) - 3)
    return found["launches"], found["bytes"]
