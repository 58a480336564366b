"""`combine` on a device against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from ..kernels import ops, reference
from .gpu_outcome import Check, Outcome, Skipped, at_most, holds, needs_cuda

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COMMON = ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float16))
IMAGES = 2
LARGE = (2, (1 << 30) + 513)  # more than 2^31 elements
ROOM = 24e9  # bytes that must be free for it
ULP = "of eager torch's error and one unit in the last place"


def randn(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(device=device, dtype=dtype)


def pairs(device: torch.device) -> list[tuple[torch.dtype, torch.dtype]]:
    """Two dtypes: all, with those that matter most in front; these alone where Triton's interpreter takes its time."""
    others = [pair for pair in product(FLOATS, FLOATS) if pair not in COMMON]
    return [*COMMON, *(others if device.type == "cuda" else [])]


def sizes(pair: tuple[torch.dtype, torch.dtype], device: torch.device, least: int) -> tuple[int, ...]:
    """Every kind of size compiles a kernel, so dtypes that are seldom get one or two."""
    if device.type == "cpu":
        return (least,)
    return (1, 16, 1031, 65_536, 100_003, 1_000_001) if pair in COMMON else (1031, 65_536)


def registers_of(dtypes: Sequence[torch.dtype], n: int, device: torch.device) -> list[Tensor]:
    return [randn((IMAGES, n), dtype, device, seed) for seed, dtype in enumerate(dtypes)]


def exact(C: Tensor, registers: Sequence[Tensor]) -> list[Tensor]:
    """In float64, from coefficients [B or 1, M, N] rounded as the accumulation dtype rounds them."""
    C = C.to(reference.accumulation_dtype(registers)).double().to(registers[0].device)
    shape = (-1, *[1] * (registers[0].dim() - 1))
    return [sum(C[:, m, k].view(shape) * r.double() for k, r in enumerate(registers)) for m in range(C.shape[1])]  # type: ignore[misc]


def excess(found: Tensor, eager: Tensor, wanted: Tensor) -> float:
    """The error over what is allowed: eager torch's own and one unit in the last place. Infinite for NaN."""
    error, own = (float((y.double() - wanted).abs().max()) for y in (found, eager))
    allowed = own + torch.finfo(found.dtype).eps * float(wanted.abs().max())
    return error / allowed if math.isfinite(error) else math.inf


def every_dtype(device: torch.device) -> Iterator[Outcome]:
    """State and network dtype, sizes, shared and per-image matrices, with the network's next batch."""
    for state, net in pairs(device):
        worst = 0.0
        for n, images in product(sizes((state, net), device, 257), (1, IMAGES)):
            registers = registers_of((state, net, net, state), n, device)
            C = randn((images, 2, 4), torch.float64, torch.device("cpu"), 9)
            matrix = tuple(map(tuple, C[0].tolist())) if images == 1 else C
            out = (state, net)
            *found, fed = ops.combine(matrix, registers, out, ops.Feed(0, net, 2))
            eager = reference.stored(reference.combine(matrix, registers), (0, 1, 0), (*out, net), (1, 1, 2))
            wanted = exact(C, registers)
            for y, e, w in zip((*found, fed), eager, (*wanted, torch.cat([wanted[0]] * 2)), strict=True):
                worst = max(worst, excess(y, e, w))
        yield at_most(f"state {state}, network {net}".replace("torch.", ""), worst, 1.0, ULP)


def layouts(device: torch.device) -> Iterator[Outcome]:
    """Views that are not contiguous or do not begin where a wide access may."""
    for dtype in (torch.float32, torch.bfloat16):
        shifted = randn((2 * 3 * 5 * 8 + 1,), dtype, device)[1:].view(2, 3, 5, 8)
        channels_last = shifted.square().to(memory_format=torch.channels_last)
        turned = (shifted + 1).transpose(2, 3).contiguous().transpose(2, 3)
        expanded = randn((1, 1, 5, 8), dtype, device).expand(2, 3, 5, 8)
        half = randn((4, 3, 5, 8), dtype, device).chunk(2)[1]
        registers = (shifted, channels_last, turned, expanded, half)
        C = randn((1, 2, 5), torch.float64, torch.device("cpu"), 9)
        matrix = tuple(map(tuple, C[0].tolist()))
        found, eager = ops.combine(matrix, registers), reference.combine(matrix, registers)
        worst = max(map(excess, found, eager, exact(C, registers)))
        yield at_most(f"views of {dtype}".replace("torch.", ""), worst, 1.0, ULP)


def splitting(device: torch.device) -> Iterator[Outcome]:
    """More registers and lines than one launch takes."""
    registers = registers_of([(torch.float32, torch.bfloat16)[k % 2] for k in range(20)], 257, device)
    C = randn((1, 9, 20), torch.float64, torch.device("cpu"), 9)
    found = ops.combine(tuple(map(tuple, C[0].tolist())), registers)
    sizes = exact(C.abs(), [r.abs() for r in registers])
    worst = max(float(((y - w).abs() / s).max()) for y, w, s in zip(found, exact(C, registers), sizes, strict=True))
    yield at_most("20 registers, 9 lines: relative to the terms", worst, 21 * 2.0**-24)


def zeros_are_not_read(device: torch.device) -> Iterator[Outcome]:
    for n in (7, 512):
        x, nan = randn((2, n), torch.float32, device), torch.full((2, n), math.nan, device=device)
        y, z = ops.combine(((2.0, 0.0), (1.0, 1.0)), (x, nan))
        yield holds(f"a zero among numbers keeps NaN out, {n} elements", torch.equal(y, 2.0 * x) and z.isnan().all())
        C = torch.tensor([[[2.0, 0.0]], [[2.0, 1.0]]], device=device)
        y = ops.combine(C, (x, nan))[0]
        passed = torch.equal(y[0], 2.0 * x[0]) and y[1].isnan().all()
        yield holds(f"a zero column of one image keeps NaN out of it, {n} elements", passed)


def more_than_2_to_the_31_elements(device: torch.device) -> Iterator[Outcome]:
    needs_cuda(device)
    free = torch.cuda.mem_get_info(device)[0]
    if free < ROOM:
        raise Skipped(f"{free / 1e9:.0f} GB of memory are free, it takes {ROOM / 1e9:.0f}")
    x = torch.empty(LARGE, dtype=torch.bfloat16, device=device).normal_()
    y, fed = ops.combine(((0.5,),), (x,), (torch.float16,), ops.Feed(0, torch.bfloat16, 2))
    flat, chunk = x.view(-1), 1 << 28
    same = True
    for start in range(0, flat.numel(), chunk):
        part = 0.5 * flat[start : start + chunk].float()
        same = same and torch.equal(y.view(-1)[start : start + chunk], part.half())
        for copy in fed.chunk(2):
            same = same and torch.equal(copy.view(-1)[start : start + chunk], part.bfloat16())
    yield holds(f"{flat.numel():,} elements, and twice that in the batch", same)


CHECKS: tuple[Check, ...] = (every_dtype, layouts, splitting, zeros_are_not_read)
LARGE_CHECKS: tuple[Check, ...] = (more_than_2_to_the_31_elements,)
