"""Time on a device: what the host spends, what the device spends, and how fast it copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import median

import torch

CPU = torch.device("cpu")
_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
_REPEATS = 3
_CYCLES_PER_SECOND = 2e9  # of a GPU, at most


def default_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


def synchronized(device: torch.device) -> Callable[[], float]:
    """A wall clock that waits for the device first."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


Prepare = Callable[[], Callable[[], object]]  # what is not timed; returns what is


def host_seconds(prepare: Prepare, device: torch.device) -> float:
    """How long the host takes to enqueue a call, from an empty queue; on a CPU, to do it."""
    clock, times = synchronized(device), []
    for _ in range(_REPEATS):
        call = prepare()
        start = clock()
        call()
        times.append(time.perf_counter() - start)
    clock()
    return median(times)


def device_seconds(prepare: Prepare, device: torch.device) -> float:
    """How long the device takes, by its own events. On a CPU: wall time.

    The device is kept busy while the host enqueues, else its waiting for the host would be counted. That works for
    calls that never wait for the device and enqueue fewer launches than a queue holds (about a thousand).
    """
    host = host_seconds(prepare, device)
    if device.type != "cuda":
        return host
    times = []
    for _ in range(_REPEATS):
        call = prepare()
        torch.cuda.synchronize(device)
        torch.cuda._sleep(int(2.0 * host * _CYCLES_PER_SECOND))
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        times.append(1e-3 * start.elapsed_time(end))
    return median(times)


@cache
def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = torch.zeros(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / device_seconds(lambda: lambda: target.copy_(source), device)
