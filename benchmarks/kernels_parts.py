"""The noise of a tick and the statistics of guidance, each by itself beside what torch has for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..kernels import choice
from ..kernels.ops_gram import gram
from ..kernels.ops_philox import philox_normal
from .device import device_seconds, synchronized
from .harness import Case

NOISE = "The noise of a tick"
STATISTICS = "Inner products of the conditional output and the guidance direction"
BATCH = 2
RANDN, FLOAT64, FLOAT32 = "torch.randn", "torch, float64", "torch, float32"
BASIS = ((0.0, 1.0), (-1.0, 1.0))  # c, and c - u


def noise_cases(name: str, latent: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """Ours depends on seed, tick and element alone; torch's on the device and on what was drawn before."""
    draw = partial(philox_normal, tuple(range(BATCH)), 3, latent, device=device)
    yield from _cases(NOISE, name, device, RANDN, {
        RANDN: lambda: torch.randn((BATCH, *latent), device=device), **_both("philox_normal", draw, device)
    })  # fmt: skip


def statistics_cases(name: str, latent: tuple[int, ...], device: torch.device) -> Iterator[Case]:
    """The three inner products that adaptive guidance asks for, image by image."""

    @cache
    def outputs() -> tuple[Tensor, Tensor]:
        u, c = torch.randn((2, BATCH, *latent), generator=torch.Generator().manual_seed(0)).to(device)
        return u, c

    ours = _both("gram", lambda: gram(outputs(), BASIS), device)
    double, single = (partial(lambda t: products(*outputs(), t), t) for t in (torch.float64, torch.float32))
    yield from _cases(STATISTICS, name, device, FLOAT64, {FLOAT64: double, FLOAT32: single, **ours})


def products(u: Tensor, c: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """<c, c>, <c, c - u>, <c - u, c - u> [B] as one writes them in torch."""
    u, c = u.to(dtype), c.to(dtype)
    d = c - u
    return tuple((a * b).flatten(1).sum(1) for a, b in ((c, c), (c, d), (d, d)))


def _both(name: str, call: Callable[[], Any], device: torch.device) -> dict[str, Callable[[], Any]]:
    found = {f"{name}, torch": forced("torch", call)}
    if device.type == "cuda":
        found[f"{name}, Triton"] = forced("triton", call)
    return found


def forced(kernels: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with choice.forced(kernels):
            return call()

    return run


def _cases(
    table: str, name: str, device: torch.device, peer: str, calls: dict[str, Callable[[], Any]]
) -> Iterator[Case]:
    for implementation, call in calls.items():

        def facts(call: Callable[[], Any] = call) -> dict[str, float]:
            return {"device us": 1e6 * device_seconds(lambda: call, device)} if device.type == "cuda" else {}

        key = {"latent": name, "batch": str(BATCH)}
        yield Case(
            table, key, implementation, lambda call=call: call, unit="us", peer=peer,
            clock=synchronized(device), facts=torch.no_grad()(facts),
        )  # fmt: skip
