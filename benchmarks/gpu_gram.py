"""`gram` on a device: its accuracy, and that it always gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..kernels import choice
from ..kernels.ops_gram import gram
from .gpu_combine import pairs, randn, sizes
from .gpu_outcome import Check, Outcome, at_most, holds, needs_cuda

BASIS = ((0.0, 1.0), (-1.0, 1.0))  # c, and c - u
REPEATS = {"cuda": 200, "cpu": 3}


def close(n: int, dtypes: tuple[torch.dtype, torch.dtype], device: torch.device, images: int = 3) -> list[Tensor]:
    """u and c, of which the second differs from the first by a thousandth."""
    u = randn((images, n), torch.float64, device, 1)
    return [u.to(dtypes[0]), (u + 1e-3 * randn((images, n), torch.float64, device, 2)).to(dtypes[1])]


def accuracy(device: torch.device) -> Iterator[Outcome]:
    for dtypes in pairs(device):
        worst = 0.0
        for n in sizes(dtypes, device, 515):
            registers = close(n, dtypes, device)
            found = gram(registers, BASIS, ones=True)
            u, c = (r.double() for r in registers)
            d = c - u if torch.float64 in dtypes else (registers[1].float() - registers[0].float()).double()
            V = torch.stack((c, d, torch.ones_like(c)), dim=1)
            wanted, size = V @ V.mT, V.abs() @ V.abs().mT
            worst = max(worst, float(((found - wanted).abs() / size.clamp_min(1e-300)).max()))
        name = f"{dtypes[0]} and {dtypes[1]}: relative to the terms".replace("torch.", "")
        yield at_most(name, worst, 1e-12, "two float64 sums in different orders")


def difference(device: torch.device) -> Iterator[Outcome]:
    """|c - u|^2 of outputs a thousandth apart, which products of c and u would lose."""
    u, c = close(4096, (torch.float32, torch.float32), device)
    found, wanted = gram((u, c), ((-1.0, 1.0),))[:, 0, 0], (c.double() - u.double()).square().sum(1)
    yield at_most("|c - u|^2, relative", float(((found - wanted).abs() / wanted).max()), 1e-6)


def same_bits(device: torch.device) -> Iterator[Outcome]:
    """Every repeat, alone and while another stream is busy with it too; the counters end where they began."""
    registers = close(65_537 if device.type == "cuda" else 700, (torch.float32, torch.bfloat16), device, 5)
    expected, found = gram(registers, BASIS, ones=True), []
    load = _load(device)
    streams: list[Any] = [nullcontext()]
    if device.type == "cuda":
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        streams.append(torch.cuda.stream(side))
    for repeat in range(REPEATS[device.type]):
        with streams[repeat % len(streams)]:
            found.append(gram(registers, BASIS, ones=True))
        load()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    yield holds(f"{len(found)} repeats give the same bits", all(torch.equal(g, expected) for g in found))
    yield holds("symmetric to the last bit", torch.equal(expected, expected.mT.contiguous()))
    if choice.use_triton(registers[0]):
        from ..kernels.triton_counters import counters

        yield holds("the counters are zero again", not counters(registers[0].shape[0], device).any())


def _load(device: torch.device) -> Any:
    """Something for a third stream to do."""
    if device.type != "cuda":
        return lambda: None
    stream, a = torch.cuda.Stream(device), torch.randn(2048, 2048, device=device)
    stream.wait_stream(torch.cuda.current_stream(device))

    def run() -> None:
        with torch.cuda.stream(stream):
            torch.mm(a, a)

    return run


def captured(device: torch.device) -> Iterator[Outcome]:
    needs_cuda(device)
    registers = close(16_384, (torch.bfloat16, torch.bfloat16), device)
    expected, graph = gram(registers, BASIS), torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        found = gram(registers, BASIS)
    same = True
    for _ in range(50):
        found.zero_()
        graph.replay()
        same = same and torch.equal(found, expected)
    yield holds("50 replays of a captured launch give the same bits", same)


CHECKS: tuple[Check, ...] = (accuracy, difference, same_bits, captured)
