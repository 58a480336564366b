r"""Numbers with the 95 % intervals that the benchmarks print.

Means: Student's interval. Accuracies, of pairs of pictures: of n pairs the reference's picture alone is right in c, the
row's alone in b. The difference is (b - c) / n, and its interval the score interval of matched proportions (Tango 1998,
Statistics in Medicine 17): all delta with

    |b - c - n delta| <= z sqrt(n (2 q + delta (1 - delta))),

q the most likely share of pairs that the row alone loses if the difference is delta, the larger root of

    2 n q^2 + ((2 n - b + c) delta - b - c) q - c delta (1 - delta) = 0.

It covers the truth as often as it says where such pairs are few, too, and is no point where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # of a two-sided interval of 95 %
_ANGLES = 200_001  # of the quadrature of Student's distribution


class Interval95(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@cache
def student(freedom: int) -> float:
    """t with P(|T| <= t) = 0.95 for Student's T.

    With T = sqrt(freedom) tan a, the density of a in (-pi/2, pi/2) is proportional to cos(a)^(freedom - 1).
    """
    angles = np.linspace(0.0, math.pi / 2, _ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, below / below[-1], angles)))


def mean_interval(values: Sequence[float] | NDArray[Any]) -> Interval95:
    """Mean and Student's interval; NaN ends for a single value."""
    v = np.asarray(values, dtype=np.float64)
    mean = float(v.mean())
    half = student(len(v) - 1) * float(v.std(ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else math.nan
    return Interval95(mean, mean - half, mean + half)


class Paired(NamedTuple):
    """Pictures that only the reference (lost), or only the row (gained) got right, of `pairs`."""

    pairs: int
    lost: int
    gained: int

    @classmethod
    def of(cls, row: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Paired:
        """Whether each picture is right, in both."""
        return cls(len(row), int((reference & ~row).sum()), int((row & ~reference).sum()))

    @property
    def difference(self) -> Interval95:
        """Accuracy of the row less that of its reference."""
        found = (self.gained - self.lost) / self.pairs
        return Interval95(found, self._end(found, -1.0), self._end(found, 1.0))

    def _end(self, inside: float, outside: float) -> float:
        """The end of the interval between a difference that is in it and one that is not."""
        for _ in range(40):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if self._score(middle) <= Z else (inside, middle)
        return inside

    def _score(self, delta: float) -> float:
        """How many standard deviations what was found lies off, if the difference is delta."""
        n, b, c = self.pairs, self.gained, self.lost
        half = ((2 * n - b + c) * delta - b - c) / (4 * n)
        q = math.sqrt(max(half * half + c * delta * (1 - delta) / (2 * n), 0.0)) - half
        variance = n * (2 * q + delta * (1 - delta))
        off = abs(b - c - n * delta)
        return off / math.sqrt(variance) if variance > 0 else math.inf if off > 0 else 0.0
