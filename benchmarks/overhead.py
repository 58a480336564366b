"""Host time per tick of `fewstep.solve` and of diffusers' schedulers, around a network that does nothing.

    python -m fewstep.benchmarks.overhead --minutes 2 --output overhead

Ours is `solve` itself, with its report and an `on_tick` hook. A peer is the plain loop that a pipeline runs (with
set_begin_index(0), scale_model_input, return_dict=False, a hook, no progress bar), its set_timesteps outside the clock.
Both call the same network, which returns fresh tensors; with guidance one [2B] tensor, chunked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..guidance.cfg import CFG
from ..samplers import EPS, SOLVERS, DiscreteVP, GeneratorTape, Level, Parametrisation, Table, linspace, solve, trace
from .counting import Counts, DispatchCounter, per_tick
from .harness import OURS, Benchmark, Case, Gate, host_clock, main
from .overhead_peers import PEER, peers

TICKS = 20
SCALE = 7.5
SCHEDULE = DiscreteVP.scaled_linear()
COMMON = (1, 4, 64, 64)
OTHERS = ((1, 4, 8, 8), (1, 4, 128, 128), (4, 4, 64, 64))
TWO_TICKS_A_STEP = ("2s", "heun")
TOLERANCE = 1e-5
TICK = "A tick around a network that does nothing"
SET_UP = "Once per run, before the first tick"
REAL = "A tick with a small real network"
NOTES = (
    "On a CPU the time includes the arithmetic on the latents: 8x8 shows the bookkeeping alone, 128x128 mostly memory.",
    "Calls are dispatcher calls on latent-sized tensors, scalar calls those on smaller ones (0-dimensional, mostly), "
    "both of a tick in steady state without the network's own. A host read is an `item()` or the like.",
    "Times are CPU time of the calling thread, so that other work on the machine counts for nobody; in the last table "
    "they are wall time. The last two tables are where nothing is gained: preparing a run, and a real network.",
)


_NOTHING = nullcontext()


@dataclass(frozen=True)
class NoOp:
    """A network that returns fresh, uninitialised tensors: one batched output for all branches, chunked."""

    schedule: DiscreteVP = SCHEDULE
    parametrisation: Parametrisation = EPS

    def __call__(self, x: Tensor, level: Any, branches: tuple[str, ...], rows: Any = None) -> tuple[Tensor, ...]:
        if len(branches) == 1:
            return (torch.empty_like(x),)
        return x.new_empty((len(branches) * x.shape[0], *x.shape[1:])).chunk(len(branches))


@dataclass(frozen=True)
class Uncounted(NoOp):
    """The same, hidden from a counter."""

    counter: DispatchCounter | None = None

    def __call__(self, x: Tensor, level: Any, branches: tuple[str, ...], rows: Any = None) -> tuple[Tensor, ...]:
        with self.counter.paused() if self.counter else nullcontext():
            return super().__call__(x, level, branches)


class Mixture(NamedTuple):
    """The exact networks of data N(0, 1) (uncond) and of two narrower bumps (cond), for the gate; float32."""

    schedule: DiscreteVP = SCHEDULE
    parametrisation: Parametrisation = EPS

    def __call__(self, x: Tensor, level: Any, branches: tuple[str, ...], rows: Any = None) -> tuple[Tensor, ...]:
        exact = SCHEDULE.level(float(level.time if isinstance(level, Level) else level))
        alpha, sigma = float(exact.alpha), float(exact.sigma)
        mean, variance = 0.5, 0.75 * alpha**2 + sigma**2
        cond = (x - alpha * mean * torch.tanh(x * (alpha * mean / variance))) * (sigma / variance)
        return tuple(cond if branch == "cond" else sigma * x for branch in branches)


class UNet(NamedTuple):
    """A UNet2DConditionModel with 1.0 M random weights: two resolutions, cross-attention at the lower one."""

    unet: Any
    text: Tensor  # (branches, tokens, width)
    schedule: DiscreteVP = SCHEDULE
    parametrisation: Parametrisation = EPS

    @classmethod
    @cache
    def random(cls, branches: int) -> UNet:
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=64,
        )
        return cls(unet.eval(), torch.randn(branches, 16, 64))

    def __call__(self, x: Tensor, level: Any, branches: tuple[str, ...], rows: Any = None) -> tuple[Tensor, ...]:
        time = level.time if isinstance(level, Level) else level
        batched = torch.cat([x] * len(branches))
        return self.unet(batched, time, self.text, return_dict=False)[0].chunk(len(branches))


Hook = Callable[[int, Any, Any], None]


@cache
def table_of(name: str, ticks: int = TICKS) -> Table:
    return trace(SOLVERS[name](), linspace(SCHEDULE, ticks // 2 if name in TWO_TICKS_A_STEP else ticks), SCHEDULE)


def ours(name: str, x: Tensor, guidance: CFG | None, ticks: int, network: Any, on_tick: Hook) -> Callable[[], Tensor]:
    """A run of `solve`, ready to be called; stochastic solvers draw as diffusers does."""
    table = table_of(name, ticks)
    tape = GeneratorTape() if any(table.noisy) else None
    return lambda: solve(table, network, x, guidance=guidance, tape=tape, on_tick=on_tick).x


def theirs(name: str, x: Tensor, guidance: CFG | None, ticks: int, network: Any, on_tick: Hook) -> Callable[[], Tensor]:
    return peers()[name].run(network, x, guidance, on_tick, ticks)


Build = Callable[[Any, Hook], Callable[[], Tensor]]


def sides(name: str, x: Tensor, guidance: CFG | None, ticks: int = TICKS) -> Iterator[tuple[str, Build]]:
    """Ours, and diffusers' where there is one: (implementation, (network, hook) -> run)."""
    yield OURS, partial(ours, name, x, guidance, ticks)
    if name in peers():
        yield PEER, partial(theirs, name, x, guidance, ticks)


def hook(i: int, state: Any, prediction: Any) -> None:
    """A hook that does nothing."""


def counted(build: Build, latent: int) -> dict[str, float]:
    """Dispatcher calls of a steady-state tick: the mean over an even number of ticks in the middle of a run."""
    snapshots: list[Counts] = []
    with DispatchCounter(latent) as counter:
        build(Uncounted(counter=counter), lambda *_: snapshots.append(counter.counts))()
    last = len(snapshots) - 4
    found = per_tick(snapshots, last - 10, last)
    return {"calls": found["latent"], "scalar calls": found["scalar"], "host reads": found["host_reads"]}


def evaluations(build: Build) -> int:
    """How many ticks a run has."""
    seen: list[int] = []
    build(NoOp(), lambda i, *_: seen.append(i))()
    return len(seen)


def noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def named(guidance: CFG | None) -> str:
    return f"CFG {guidance.scale:g}" if guidance is not None else "none"


def tick_cases(name: str, shape: tuple[int, ...], guidance: CFG | None) -> Iterator[Case]:
    """`name` at one latent size around the network that does nothing."""
    key = {"solver": name, "guidance": named(guidance), "latent": "x".join(map(str, shape))}
    for implementation, build in sides(name, noise(shape), guidance):
        facts = partial(counted, build, noise(shape).numel())
        yield Case(
            TICK, key, implementation, partial(build, NoOp(), hook), evaluations(build), clock=host_clock(), facts=facts
        )


def set_up_cases(name: str) -> Iterator[Case]:
    """What happens once, before a run: tracing and folding a table; set_timesteps."""

    def trace_and_fold() -> None:
        table = trace(SOLVERS[name](), linspace(SCHEDULE, TICKS), SCHEDULE)
        for i, row in enumerate(table.rows):
            table.fold(i, len(row.inputs) - 4, EPS, (1.0 - SCALE, SCALE))

    key = {"solver": name, "ticks": str(TICKS)}
    yield Case(SET_UP, key, OURS, lambda: trace_and_fold, unit="us", clock=host_clock())
    yield Case(SET_UP, key, PEER, lambda: partial(peers()[name].prepare, TICKS), unit="us", clock=host_clock())


def network_cases(name: str, guidance: CFG | None, ticks: int = 10) -> Iterator[Case]:
    """The same with a real network, which takes nearly all of the time."""
    key = {"solver": name, "guidance": named(guidance), "network": "UNet, 1.0 M parameters", "latent": "1x4x32x32"}
    branches = 1 if guidance is None else 2
    for implementation, build in sides(name, noise((1, 4, 32, 32)), guidance, ticks):
        prepare = partial(lambda build: build(UNet.random(branches), hook), build)
        yield Case(REAL, key, implementation, prepare, ticks)


def same_as_diffusers(name: str, guidance: CFG | None) -> str | None:
    """The gate: our final x and diffusers', on the same grid, from the same noise."""
    a, b = (build(Mixture(), hook)() for _, build in sides(name, noise(COMMON), guidance))
    error = float((a - b).abs().max() / b.abs().max())
    return None if error <= TOLERANCE else f"relative difference {error:.1e}, more than {TOLERANCE:g}"


def build() -> Benchmark:
    """The benchmark."""
    policies = (None, CFG(SCALE))
    gates = [
        Gate(f"{n} ends where diffusers' does to {TOLERANCE:g} (guidance {named(g)})", partial(same_as_diffusers, n, g))
        for n in ("2m", "unipc-2")
        for g in policies
    ]

    def cases() -> Iterator[Case]:
        for shape, names in ((COMMON, tuple(SOLVERS)), *((other, ("2m",)) for other in OTHERS)):
            for name in names:
                for guidance in policies:
                    yield from tick_cases(name, shape, guidance)
        yield from set_up_cases("2m")
        for guidance in policies:
            yield from network_cases("2m", guidance)

    return Benchmark("overhead", "Host time per tick", gates, cases, PEER, NOTES)


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # what uninitialised memory holds should not cost time
    sys.exit(main(build))
