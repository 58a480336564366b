r"""Numbers of `guidance`: paired differences with 95 % intervals, relative errors, and baselines at equal cost.

Accuracy. Of n pairs the reference's picture alone is accepted in c, the row's alone in b. The difference is
(b - c) / n, and its interval the score interval of matched proportions (Tango 1998, Statistics in Medicine 17): all
delta with

    |b - c - n delta| <= z sqrt(n (2 q + delta (1 - delta))),

q the most likely share of pairs that the row alone loses if the difference is delta, the larger root of

    2 n q^2 + ((2 n - b + c) delta - b - c) q - c delta (1 - delta) = 0.

It covers the truth as often as it says where such pairs are few, too, and is no point where there are none.
Errors and NFE: mean and 1.96 standard deviations of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .guidance_pairs import Measured

Z = 1.959963984540054  # of a two-sided interval of 95 %


class Interval95(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """Pictures that only the reference (lost), or only the row (gained) got right, of `pairs`."""

    pairs: int
    lost: int
    gained: int

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


def paired(row: Measured, reference: Measured) -> Paired:
    """Of the pairs that both have, the first ones."""
    n = min(len(row.nfe), len(reference.nfe))
    ours, theirs = row.accepted[:n], reference.accepted[:n]
    return Paired(n, int((theirs & ~ours).sum()), int((ours & ~theirs).sum()))


def relative_errors(row: Measured, reference: Measured) -> NDArray[np.float64]:
    """|x - x_ref| / |x_ref| of every pair, in latent space."""
    n = min(len(row.nfe), len(reference.nfe))
    x, ref = row.latents[:n].astype(np.float64), reference.latents[:n].astype(np.float64)
    return np.linalg.norm(x - ref, axis=1) / np.linalg.norm(ref, axis=1)


def mean_interval(values: Sequence[float] | NDArray[Any]) -> Interval95:
    """Normal interval of the mean; NaN ends for a single value."""
    v = np.asarray(values, dtype=np.float64)
    mean = float(v.mean())
    half = Z * float(v.std(ddof=1)) / math.sqrt(len(v)) if len(v) > 1 else math.nan
    return Interval95(mean, mean - half, mean + half)


class Neighbours(NamedTuple):
    """The two rows of a family between whose costs another one lies, and the share of pairs that gets the upper one.

    A sampler that gives this share of the pairs the upper policy and the others the lower one has exactly the cost.
    """

    lower: str
    upper: str
    share: float

    def at(self, values: dict[str, NDArray[np.float64]], n: int) -> NDArray[np.float64]:
        """What that sampler has, expected, for each of the first n pairs."""
        return (1.0 - self.share) * values[self.lower][:n] + self.share * values[self.upper][:n]


def neighbours(nfe: float, costs: dict[str, float]) -> Neighbours | None:
    """costs: name -> mean NFE of the rows of a family. None where nfe lies outside of what was measured."""
    below = [(cost, name) for name, cost in costs.items() if cost <= nfe]
    above = [(cost, name) for name, cost in costs.items() if cost >= nfe]
    if not below or not above:
        return None
    (low, lower), (high, upper) = max(below), min(above)
    return Neighbours(lower, upper, 0.0 if high == low else (nfe - low) / (high - low))
