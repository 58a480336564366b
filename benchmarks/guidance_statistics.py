"""Numbers of `guidance`: paired differences, relative errors, and baselines at equal cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .guidance_pairs import Measured
from .intervals import Paired


def paired(row: Measured, reference: Measured) -> Paired:
    """Of the pairs that both have, the first ones."""
    n = min(len(row.nfe), len(reference.nfe))
    return Paired.of(row.accepted[:n], reference.accepted[:n])


def relative_errors(row: Measured, reference: Measured) -> NDArray[np.float64]:
    """|x - x_ref| / |x_ref| of every pair, in latent space."""
    n = min(len(row.nfe), len(reference.nfe))
    x, ref = row.latents[:n].astype(np.float64), reference.latents[:n].astype(np.float64)
    return np.linalg.norm(x - ref, axis=1) / np.linalg.norm(ref, axis=1)


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
