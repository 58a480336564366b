"""Grids that were found by optimisation, as numbers; `grids` makes levels of them.

Align Your Steps (Sabour, Fidler, Kreis 2024, arXiv:2404.14507) publishes levels for 10 steps and three models. For
Stable Diffusion 1.5 and SDXL they are trained times, for Stable Video Diffusion values of sigma / alpha. The last
number is the cleanest trained level, where the authors' own example ends; diffusers' table ends at sigma = 0 instead.
"""

from __future__ import annotations

AYS_SD_TIMES = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)
AYS_SDXL_TIMES = (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0)
AYS_SVD_SIGMAS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)

SD_ENDS = (14.6146412293, 0.0291671582)  # sigma / alpha of Stable Diffusion's schedule at its times 999 and 0


def places(count: int, n: int) -> list[tuple[int, float]]:
    """n + 1 equally spaced places on `count` numbered knots, as (knot k, fraction f of the way to knot k + 1)."""
    quotients = (divmod(i * (count - 1), n) for i in range(n + 1))
    return [(k, rest / n) for k, rest in quotients]
