"""Counter-based standard normal noise in plain torch: the specification, and the path that runs without Triton.

Random words: Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011).
    key = (seed mod 2^32, seed >> 32)       counter = (j mod 2^32, j >> 32, tick, stream), the stream is 0
Element e of an image, counted over its flattened shape, is lane e mod 4 of counter j = e // 4. It depends on (seed,
tick, e) alone: not on the batch, the number of elements or the device.

Normals: Box and Muller (1958), in float32. Words (0, 1) make lanes (0, 1), words (2, 3) make lanes (2, 3).
    first word -> u = r 2^-32 + 2^-33 in (0, 1], R = sqrt(-2 ln u) <= 6.77
    second word -> 2 pi r / 2^32 = q pi/2 + theta with |theta| <= pi/4; q and the units of theta are whole numbers
    lanes (R cos, R sin)
ln, sin and cos are the polynomials below: integer operations, additions, multiplications and one square root. So a
GPU differs from a CPU by the rounding of multiplications that it fuses with additions, and of the root. Over every u
and theta that there is, R is within 1.14e-7 of itself relatively, cos and sin are within 1.13e-7 absolutely. With the
rounding of the product a normal is within 3e-7 R of Box and Muller's for its words.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

# Least squares at 512 Chebyshev points, weighted such that what is fitted is the relative error of ln, sin and cos,
# then rounded to float32 (tests/test_philox.py repeats the fit). Errors of the polynomials themselves: below 2^-26.
LN2 = 0.6931472
LOG = (0.33333355, -0.25000852, 0.19999826, -0.1662137, 0.14227115, -0.13202104, 0.12620327, -0.07362868)
SIN = (-0.16666655, 0.008332166, -0.00019515953)
COS = (0.041666646, -0.0013887342, 2.4435853e-05)
RADIANS = 1.4629181e-09
"""pi/2 / 2^30: a quarter turn is 2^30 units of the second word."""

SQRT_HALF_BITS = 0x3F3504F3

_CHUNK = 1 << 16
"""Counters at a time: more would leave the cache, fewer would leave other cores idle."""


def philox_words(seed: int, tick: int, count: int) -> Tensor:
    """The words of counters 0..count - 1 of an image, int64 (count, 4) in 0..2^32 - 1."""
    j = torch.arange(count, device="cpu")
    key = (seed & MASK, seed >> 32 & MASK)
    words = philox_4x32((j & MASK, j >> 32, torch.full_like(j, tick & MASK), torch.zeros_like(j)), key)
    return torch.stack(words, dim=1)


def normal(seeds: Tensor, tick: Tensor, n: int) -> Tensor:
    """(B, n) float32 standard normal on the seeds' device.

    seeds: int64 [B], one key per image.       tick: one integer on the same device, of which the low 32 bits count.
    """
    images = seeds.shape[0]
    out = torch.empty((images, n), dtype=torch.float32, device=seeds.device)
    if out.numel() == 0:
        return out
    key = (seeds[:, None] & MASK, seeds[:, None] >> 32 & MASK)
    low_tick = tick.reshape(1).to(torch.int64) & MASK
    chunk = max(1, _CHUNK // images)
    for first in range(0, -(-n // 4), chunk):
        j = torch.arange(first, min(first + chunk, -(-n // 4)), device=seeds.device)
        words = philox_4x32((j & MASK, j >> 32, low_tick, torch.zeros_like(low_tick)), key)
        lanes = (*box_muller(words[0], words[1]), *box_muller(words[2], words[3]))
        elements = torch.stack(lanes, dim=-1).flatten(1)
        out[:, 4 * first : 4 * first + elements.shape[1]] = elements[:, : n - 4 * first]
    return out


def philox_4x32(counter: tuple[Tensor, ...], key: tuple[Tensor | int, Tensor | int]) -> tuple[Tensor, ...]:
    """Philox 4x32-10 of int64 tensors that hold 32-bit words and broadcast; four words in 0..2^32 - 1.

    Products and keys keep the bits above 32 until the next mask: int64 wraps, and the low 64 bits of a product are
    all that the words are made of.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) ^ (c1 ^ k0)) & MASK, p1, ((p0 >> 32) ^ (c3 ^ k1)) & MASK, p0
        k0, k1 = k0 + KEY_STEPS[0], k1 + KEY_STEPS[1]
    return c0, c1 & MASK, c2, c3 & MASK


def box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent float32 normals from two int64 tensors of words in 0..2^32 - 1."""
    u = radius_word.to(torch.float32).mul_(2.0**-32).add_(2.0**-33)
    radius = log(u).mul_(-2.0).sqrt_()
    cos, sin = cos_sin(angle_word)
    return cos.mul_(radius), sin.mul_(radius)


def log(u: Tensor) -> Tensor:
    """ln u of float32 u in (0, 1], within 1.2e-7 of it relatively.

    u = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), and ln u = k ln 2 + log1p(f). Near u = 1, k is 0 and f exact.
    """
    bits = u.view(torch.int32)
    k = (bits - SQRT_HALF_BITS) >> 23  # rounds down: the sign is shifted in
    f = (bits - (k << 23)).view(torch.float32) - 1.0
    square = f * f
    rest = _horner(LOG, f).mul_(f).sub_(0.5).mul_(square).add_(f)
    return k.to(torch.float32).mul_(LN2).add_(rest)


def cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin) of the angle 2 pi word / 2^32, each float32 and within 1.13e-7."""
    shifted = word + (1 << 29)
    quadrant = shifted >> 30
    theta = ((shifted & ((1 << 30) - 1)) - (1 << 29)).to(torch.float32).mul_(RADIANS)
    square = theta * theta
    sin = _horner(SIN, square).mul_(square).mul_(theta).add_(theta)
    cos = _horner(COS, square).mul_(square).sub_(0.5).mul_(square).add_(1.0)
    odd = (quadrant & 1) != 0
    x, y = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    return torch.where((quadrant + 1) & 2 != 0, -x, x), torch.where(quadrant & 2 != 0, -y, y)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """coefficients[0] + coefficients[1] x + ..."""
    total = x * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        total.mul_(x).add_(c)
    return total
