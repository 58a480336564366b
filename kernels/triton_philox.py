"""The noise of reference_philox in one launch: nothing is read but seeds and tick, every element is written once.

The grid is (blocks, images). A thread runs Philox once and owns four consecutive elements, one 128-bit store. Triton
proves that a store may be that wide from the strides it is given, and loses the proof under a mask: so only the last
block of an image masks, and the stride from image to image comes in units of 4 elements where n % 4 = 0. Where it is
not, the images of a batch begin at addresses that are not aligned, and their stores are 32 bits wide.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import reference_philox as spec
from .triton_combine import on_device

_MAX_IMAGES = 1 << 15  # per launch: the second axis of a grid ends at 65,535

_LN2 = tl.constexpr(spec.LN2)
_LOG = tl.constexpr(spec.LOG)
_SIN = tl.constexpr(spec.SIN)
_COS = tl.constexpr(spec.COS)
_RADIANS = tl.constexpr(spec.RADIANS)
_SQRT_HALF_BITS = tl.constexpr(spec.SQRT_HALF_BITS)


@triton.jit
def _horner(C: tl.constexpr, LENGTH: tl.constexpr, x):
    total = x * C[LENGTH - 1] + C[LENGTH - 2]
    for k in tl.static_range(3, LENGTH + 1):
        total = total * x + C[LENGTH - k]
    return total


@triton.jit
def _log(u):
    bits = u.to(tl.int32, bitcast=True)
    k = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (k << 23)).to(tl.float32, bitcast=True) - 1.0
    return k.to(tl.float32) * _LN2 + ((_horner(_LOG, 8, f) * f - 0.5) * (f * f) + f)


@triton.jit
def _cos_sin(word):
    shifted = word + (1 << 29)
    quadrant = shifted >> 30
    theta = ((shifted & ((1 << 30) - 1)).to(tl.int32) - (1 << 29)).to(tl.float32) * _RADIANS
    square = theta * theta
    sin = _horner(_SIN, 3, square) * square * theta + theta
    cos = (_horner(_COS, 3, square) * square - 0.5) * square + 1.0
    odd = (quadrant & 1) != 0
    x, y = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return tl.where(((quadrant + 1) & 2) != 0, -x, x), tl.where((quadrant & 2) != 0, -y, y)


@triton.jit
def _box_muller(radius_word, angle_word):
    u = radius_word.to(tl.float32) * (1.0 / (1 << 32)) + (1.0 / (1 << 33))
    radius = tl.sqrt_rn(_log(u) * -2.0)
    cos, sin = _cos_sin(angle_word)
    return radius * cos, radius * sin


@triton.jit
def philox_words(seed, tick, block, COUNTERS: tl.constexpr):
    """Four blocks of uint32 words: counters block * COUNTERS and following."""
    first = block.to(tl.int64) * COUNTERS
    c0 = first.to(tl.uint32) + tl.arange(0, COUNTERS).to(tl.uint32)  # no carry: `first` is a multiple of COUNTERS
    zero = c0 * 0
    return tl.philox(seed, c0, (first >> 32).to(tl.uint32) + zero, tick.to(tl.uint32) + zero, zero)


@triton.jit(do_not_specialize_on_alignment=["seeds", "tick"])  # one element of a table of ticks will do
def normal_kernel(
    seeds,  # int64 [B]
    tick,  # an integer in device memory, so that a captured graph can replay with another
    out,  # float32 [B, n]
    n,
    stride,  # elements from image to image, divided by UNIT
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    w0, w1, w2, w3 = philox_words(tl.load(seeds + image), tl.load(tick), block, BLOCK // 4)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    z = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [BLOCK])  # z0 z1 z2 z3 z0 ...: registers of one thread
    first = block.to(tl.int64) * BLOCK
    at = out + image * stride * UNIT + first + tl.arange(0, BLOCK)
    if first + BLOCK <= n:
        tl.store(at, z)
    else:
        tl.store(at, z, mask=first + tl.arange(0, BLOCK) < n)


def launch_options(n: int) -> dict[str, int]:
    """Compile-time arguments for images of n elements.

    A block is one counter per thread and no more, so that even small latents are many blocks.
    """
    return {"UNIT": 4 if n % 4 == 0 else 1, "BLOCK": 512, "num_warps": 4}


def normal(seeds: Tensor, tick: Tensor, out: Tensor) -> None:
    """Fills out, contiguous float32 (B, n), on the current stream.

    seeds: int64 [B], contiguous.       tick: one integer; both on out's device, and read when the kernel runs.
    """
    images, n = out.shape
    if out.numel() == 0:
        return
    options = launch_options(n)
    stride = n // options["UNIT"] if images > 1 else 0  # a single image starts where the memory does: aligned
    blocks = triton.cdiv(n, options["BLOCK"])
    with on_device(out.device):
        for k in range(0, images, _MAX_IMAGES):
            normal_kernel[(blocks, min(_MAX_IMAGES, images - k))](
                seeds[k:] if k else seeds, tick, out[k:] if k else out, n, stride, **options, enable_fp_fusion=True
            )
