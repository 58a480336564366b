r"""How far samples are from a posterior that is known. All compare (n, d) latents in float64.

sw1, sw2: sliced Wasserstein distances of order 1 and 2, over 1,000 random directions that are the same for all rows,
between the n samples and 20 n exact draws, so that nearly all of the floor is the samples' own.
tv: total variation between how often each mode is visited and how often it should be.
mean, cov: of the samples in each mode against that mode's own, weighted by what the mode should have: |difference of
means| / sqrt(trace of the exact covariance), Frobenius norm of the difference of covariances over that of the exact.
variance: trace of the covariance in a mode over the exact one, weighted in the same way: 1 is right.
cover: how much of the exact posterior lies in the samples' central 90 % interval, mean over the directions: 0.9 is
right.
w2: Wasserstein distance of order 2 between Gaussians with the samples' moments and the exact ones (P0):

    W2^2 = |m - m'|^2 + tr(C + C' - 2 (C'^(1/2) C C'^(1/2))^(1/2)).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .posteriors_problems import Posed

SLICES = 1000
MANY = 20  # exact draws for each sample stand for the posterior
SCARCE = 5  # samples in a mode from which it has a mean and a covariance to compare


class Moments(NamedTuple):
    """mean (d,), covariance (d, d)."""

    mean: Tensor
    covariance: Tensor


def metrics(posed: Posed, z: Tensor, seed: int = 0) -> dict[str, float]:
    """Of latents z (n, d), against draws of the exact posterior by `seed`."""
    n, d = z.shape
    exact, along = reference(posed, MANY * n, 10_000 + seed)
    mine = z @ directions_of(d)
    found = {"chi2": posed.chi2(z), **sliced(mine, along), **by_mode(posed, z, exact), "cover": coverage(mine, along)}
    if posed.gaussian:
        found["w2"] = gaussian_w2(moments(z), Moments(posed.exact.mean, posed.exact.covariance))
    return found


@lru_cache(maxsize=2)
def reference(posed: Posed, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n exact draws (n, d), and their projections (n, slices), sorted."""
    exact = posed.exact.sample(n, seed)
    return exact, (exact @ directions_of(posed.exact.dimension)).sort(0).values


def directions_of(d: int) -> Tensor:
    """(d, SLICES), of length 1."""
    g = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn((d, SLICES), generator=g, dtype=torch.float64), dim=0)


def sliced(a: Tensor, b: Tensor) -> dict[str, float]:
    """sw1 and sw2 of projections a (n, slices) and b (m n, slices), b sorted.

    In one dimension sorting is the best transport: the i-th of a goes to m of b.
    """
    apart = (a.sort(0).values.unsqueeze(1) - b.reshape(len(a), -1, b.shape[1])).abs()
    return {"sw1": float(apart.mean()), "sw2": math.sqrt(float(apart.square().mean()))}


def by_mode(posed: Posed, z: Tensor, exact: Tensor) -> dict[str, float]:
    """tv, mean, cov and variance. Modes with fewer than SCARCE samples count in tv alone."""
    mine, theirs = posed.mode(z), posed.mode(exact)
    share = torch.bincount(mine, minlength=posed.modes) / len(z)
    wanted = torch.bincount(theirs, minlength=posed.modes) / len(exact)
    total, sums = 0.0, [0.0, 0.0, 0.0]
    for k in range(posed.modes):
        a, b = z[mine == k], exact[theirs == k]
        if len(a) < SCARCE or len(b) < 100:
            continue
        p, q = moments(a), moments(b)
        size = float(q.covariance.trace())
        values = (float((p.mean - q.mean).norm()) / math.sqrt(size),
                  float((p.covariance - q.covariance).norm() / q.covariance.norm()),
                  float(p.covariance.trace()) / size)  # fmt: skip
        total += float(wanted[k])
        sums = [s + float(wanted[k]) * v for s, v in zip(sums, values, strict=True)]
    inside = [s / total if total else math.nan for s in sums]
    return {
        "tv": 0.5 * float((share - wanted).abs().sum()),
        **dict(zip(("mean", "cov", "variance"), inside, strict=True)),
    }


def coverage(a: Tensor, exact: Tensor) -> float:
    """The part of `exact` that lies between the 5 % and the 95 % quantile of a; both are projections (., slices)."""
    low, high = torch.quantile(a, torch.tensor([0.05, 0.95], dtype=a.dtype), dim=0)
    return float(((exact >= low) & (exact <= high)).sum()) / exact.numel()


def moments(z: Tensor) -> Moments:
    """Of samples (n, d)."""
    return Moments(z.mean(0), torch.cov(z.T).reshape(z.shape[1], z.shape[1]))


def gaussian_w2(a: Moments, b: Moments) -> float:
    root = _root(b.covariance)
    cross = _root(root @ a.covariance @ root)
    squared = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance - 2.0 * cross).trace()
    return math.sqrt(max(float(squared), 0.0))


def _root(C: Tensor) -> Tensor:
    """Of a symmetric matrix without negative eigenvalues."""
    values, axes = torch.linalg.eigh((C + C.T) / 2)
    return axes * values.clamp_min(0.0).sqrt() @ axes.T
