"""A tick of DPM-Solver++(2M) with guidance, from diffusers to one launch a tick and to CUDA graphs.

    python -m fewstep.benchmarks.kernels --minutes 5 --output kernels

Around a network that returns the same tensors at once, so that only the sampler is timed; then with whole networks of
random weights, where most rows gain nothing; then the noise and the statistics by themselves. On a CPU only what a CPU
can show: the rows that need CUDA are listed as skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache, partial
from math import prod

import torch
from torch import Tensor

from .device import copy_bandwidth, default_device, device_seconds, host_seconds, synchronized
from .harness import Benchmark, Case, Gate, main
from .kernels_ladder import (
    BEGIN_INDEX,
    COMPILED,
    GRAPH,
    SHIPPED,
    TORCH,
    TRITON,
    Rung,
    Smooth,
    Static,
    Work,
    available,
    counted,
    least_bytes,
)
from .kernels_networks import NETWORKS, Whole
from .kernels_parts import noise_cases, statistics_cases

LATENTS = {
    "SD 1.5, 512": (4, 64, 64),
    "SDXL, 1024": (4, 128, 128),
    "SD 3 and Flux, 1024": (16, 128, 128),
    "Wan, 480p": (16, 21, 60, 104),
    "Wan, 720p": (16, 21, 90, 160),
}
BATCHES = (1, 8)
TICKS = 20
NETWORK_TICKS = 10
LARGEST_ON_CPU = 1 << 19  # elements; more take seconds a run
LARGE = 1 << 20  # elements, from where on a tick is memory traffic more than anything else
TOLERANCE = 1e-5
SAMPLER = "A tick around a network that returns at once, network dtype {}"
WHOLE = "A tick with a whole network of random weights"
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
NOTES = (
    "2M with guidance 7.5, our state in float32; diffusers keeps its state in the network's dtype. A run is 20 ticks "
    "(10 with whole networks), and a time is the wall clock of a run, the device waited for at both ends. `host us` is "
    "the time until the host has enqueued a tick, `device us` what the device needs where it does not wait for it.",
    "`launches` are calls on latent-sized tensors that are neither views nor allocations, `MB` what they read and "
    "write, both of a tick in steady state without the network's own. Of a CUDA graph they follow from what was "
    "captured: the tick's kernel and one more, of one program, that moves the counter of the tick. What a compiled "
    "function launches calls do not show. `of a copy`, for large latents: the bytes that a tick must move by the "
    "device's time, as a share of what a large copy reaches.",
    "What is drawn in advance or compiled is not timed. `diffusers as shipped` is the loop of its pipeline with the "
    "progress bar, and with the search for the first index; its arithmetic is the next row's.",
)


def sampler_cases(
    name: str, batch: int, dtype: torch.dtype, rungs: dict[str, Rung], device: torch.device
) -> Iterator[Case]:
    shape = (batch, *LATENTS[name])
    work = cache(lambda: _static(shape, dtype, device))
    for rung in rungs.values():
        yield Case(
            SAMPLER.format(NAMES[dtype]), {"latent": name, "batch": str(batch)}, rung.name,
            lambda rung=rung: rung.prepare(work()), TICKS,
            clock=synchronized(device), facts=lambda rung=rung: facts(work(), rung),
        )  # fmt: skip


def _static(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Work:
    x = noise(shape, device)
    return Work(Static(x, dtype), x, TICKS)


def noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def facts(work: Work, rung: Rung) -> dict[str, float]:
    """The columns beside the time of a run."""
    count = counted(work, rung)
    found = {} if count is None else {"launches": count[0], "MB": 1e-6 * count[1]}
    if work.device.type == "cuda":
        found["host us"] = 1e6 * host_seconds(partial(rung.prepare, work), work.device) / work.ticks
    if rung.waits:  # its device time would contain the waiting
        return found
    seconds = device_seconds(partial(rung.prepare, work), work.device) / work.ticks
    if work.device.type == "cuda":
        found["device us"] = 1e6 * seconds
    if work.x.numel() >= LARGE:
        found["of a copy"] = least_bytes(work) / seconds / copy_bandwidth(work.device)
    return found


def network_cases(whole: Whole, rungs: dict[str, Rung], device: torch.device) -> Iterator[Case]:
    work = cache(lambda: Work(whole.build(device), noise(whole.latent, device), NETWORK_TICKS))
    key = {"network": whole.name, "latent": "x".join(map(str, whole.latent))}
    for name in (SHIPPED, BEGIN_INDEX, TORCH, TRITON, GRAPH):
        if name in rungs:
            prepare = partial(lambda rung: rung.prepare(work()), rungs[name])
            yield Case(WHOLE, key, name, prepare, NETWORK_TICKS, clock=synchronized(device))


def differs(rungs: dict[str, Rung], a: str, b: str, device: torch.device, tolerance: float) -> str | None:
    """Both runs' ends from one noise, with the network of the gates; bitwise where the tolerance is zero."""
    for dtype in (torch.float32, torch.bfloat16) if tolerance == 0.0 else (torch.float32,):
        for shape in ((2, 4, 64, 64), (1, 3, 5, 7)):
            work = Work(Smooth(dtype), noise(shape, device), TICKS)
            first, second = (rungs[name].prepare(work)() for name in (a, b))
            error = float((first - second).abs().max() / second.abs().max())
            if not error <= tolerance:
                return f"relative difference {error:.1e} in {dtype} at {shape}, more than {tolerance:g}"
    return None


def gates(rungs: dict[str, Rung], device: torch.device) -> list[Gate]:
    pairs = ((TORCH, BEGIN_INDEX), (COMPILED, TORCH), (TRITON, TORCH), (GRAPH, TRITON))
    found = []
    for a, b in pairs:
        if a in rungs and b in rungs:
            tolerance = 0.0 if a == GRAPH else TOLERANCE
            how = "bit by bit" if a == GRAPH else f"to {TOLERANCE:g} in float32"
            found.append(Gate(f"'{a}' ends where '{b}' does {how}", partial(differs, rungs, a, b, device, tolerance)))
    return found


def build(device: torch.device | None = None) -> Benchmark:
    """The benchmark on `device`, default: CUDA where there is any."""
    device = device or default_device()
    rungs, skipped = available(device)
    on_cpu = device.type == "cpu"
    if on_cpu:
        skipped.append("networks in bfloat16: no CUDA device")

    def cases() -> Iterator[Case]:
        for dtype in (torch.float32,) if on_cpu else (torch.bfloat16, torch.float32):
            for name, latent in LATENTS.items():
                for batch in BATCHES:
                    if on_cpu and batch * prod(latent) > LARGEST_ON_CPU:
                        skipped.append(f"{name}, batch {batch}: too large for a CPU to time")
                    else:
                        yield from sampler_cases(name, batch, dtype, rungs, device)
        for whole in NETWORKS:
            problem = whole.problem(device)
            if problem:
                skipped.append(f"{whole.name}: {problem}")
            else:
                yield from network_cases(whole, rungs, device)
        for name, latent in LATENTS.items():
            if not on_cpu or prod(latent) <= LARGEST_ON_CPU:
                yield from noise_cases(name, latent, device)
                yield from statistics_cases(name, latent, device)

    peer = BEGIN_INDEX if BEGIN_INDEX in rungs else TORCH
    title = "A tick, from diffusers to one launch"
    return Benchmark("kernels", title, gates(rungs, device), cases, peer, NOTES, skipped)


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    sys.exit(main(build))
