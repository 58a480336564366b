"""Numbers of `restore`: means and paired differences with Student's 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .guidance_statistics import Interval95, Paired

_ANGLES = 200_001  # of the quadrature of Student's distribution


@cache
def student(freedom: int) -> float:
    """t with P(|T| <= t) = 0.95 for Student's T.

    With T = sqrt(freedom) tan a, the density of a in (-pi/2, pi/2) is proportional to cos(a)^(freedom - 1).
    """
    angles = np.linspace(0.0, math.pi / 2, _ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, below / below[-1], angles)))


def mean_of(values: Sequence[float] | NDArray[Any]) -> Interval95:
    """Mean and Student's interval; NaN ends for a single value."""
    v = np.asarray(values, dtype=np.float64)
    mean = float(v.mean())
    half = student(len(v) - 1) * float(v.std(ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else math.nan
    return Interval95(mean, mean - half, mean + half)


def accuracies(row: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Paired:
    """Pictures that one of the two alone got right."""
    return Paired(len(row), int((reference & ~row).sum()), int((row & ~reference).sum()))
