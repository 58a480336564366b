"""Per-step noise variances beta_i of discrete schedules, by diffusers' names."""

from __future__ import annotations

import math
from collections.abc import Callable


def linear(first: float, last: float, n: int) -> list[float]:
    """Equal steps (Ho, Jain, Abbeel 2020, arXiv:2006.11239)."""
    return [first + (last - first) * i / (n - 1) for i in range(n)]


def scaled_linear(first: float, last: float, n: int) -> list[float]:
    """Equal steps of the square root: Stable Diffusion's."""
    return [root**2 for root in linear(math.sqrt(first), math.sqrt(last), n)]


def cosine(n: int, largest: float = 0.999) -> list[float]:
    """alpha_i^2 = f(i + 1) / f(0), f(i) = cos^2((i / n + 0.008) / 1.008 pi / 2), every beta at most `largest`.

    Source: Nichol, Dhariwal 2021, arXiv:2102.09672, equation 17.
    """
    f = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2.0) ** 2 for i in range(n + 1)]
    return [min(1.0 - q / p, largest) for p, q in zip(f, f[1:], strict=False)]


NAMED: dict[str, Callable[[float, float, int], list[float]]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squaredcos_cap_v2": lambda first, last, n: cosine(n),
}
