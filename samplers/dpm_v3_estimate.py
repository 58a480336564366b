r"""Estimation of the empirical model statistics of a network.

With the Jacobian J of eps in x, y = x / alpha and F = e^{-lam} eps, at each lam and over x of the model's marginal:

    l    = argmin E || sigma J - diag(l) ||_F^2             = E diag(sigma J)                                (5, C.1.1)
    f    = F - l y,   df/dlam along the ODE dy/dlam = -F    = dF/dlam - l' y + l F                           (62)
    s, b = argmin E || df/dlam - s f - b ||^2               = Cov(f, df/dlam) / Var f,   E df/dlam - s E f   (60, 61)

The diagonal is estimated by E_v [v * (J v)] over v of random signs (57), J v by forward-mode differentiation. For one
number a lam the same minima are taken over all elements together, which is ours; so is what follows. dF/dlam is a
difference of fourth order along the tangent of the ODE: a network need not be differentiable in time. All lams use the
same noise and the same v, so that l', a difference over five knots, is one of correlated estimates. Where f is constant
over the samples to rounding (Gaussian data), any s with b = E df/dlam - s f is a minimum; s = 0 is taken. As in the
authors' experiments (appendix D), x is drawn by noising data.

Source: Zheng, Lu, Chen, Zhu 2023, arXiv:2310.13268, equations in brackets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ConfigError, IncompatibleError, NumericsError
from .dpm_v3_statistics import EmpiricalStatistics, Slopes
from .engine import Network, Outputs
from .levels import Level, NoiseSchedule, level_at

_HALF = 2  # the difference in lam uses 2 * _HALF + 1 points


@torch.no_grad()
def estimate_statistics(
    network: Network,
    x0: Tensor,
    lams: Sequence[float],
    *,
    seed: int = 0,
    batch: int | None = None,
    probes: int = 1,
    per_element: bool = False,
    bias: bool = True,
    difference: float = 0.02,
    branch: str = "cond",
) -> EmpiricalStatistics:
    """The statistics of `network` at `lams` from K clean samples x0 (K, ...).

    The authors find those of the model without guidance good for guided runs at usual scales (section 3.4), and take
    120 to 1200 lams and 1024 to 4096 samples.

    lams: increasing, from the noisiest to the cleanest level that runs will use; their ends must be finite.
    batch: images in one call of the network (default K, of which it must be a divisor); a network with one
    conditioning per image has that of one batch.       probes: sign vectors for each sample and lam.
    per_element: one number for each element and lam instead of one a lam.       bias: False for the best s with b = 0,
    which may become a table.       difference: distance in lam of the points of dF/dlam; errors of 1e-16 / difference
    and difference^4 (float64; 1e-7 instead of 1e-16 in float32). Networks fluctuate in time (section 4.2): for few lams
    take a wider difference, a quarter of their distance, which averages over that.
    Cost for each lam: 5 K evaluations, K probes of twice their cost, and the memory of K images a few times. x0's dtype
    and device are those of the network's input.
    Errors: ConfigError for lams or a batch that cannot work; NumericsError for a result that is not finite.
    """
    size = _check(network.schedule, x0, lams, batch, probes, difference)
    x0 = x0.contiguous()  # PyTorch's forward mode of group_norm refuses channels-last tensors
    samples = _Samples(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0), size, branch)
    l = torch.stack([_linear(network, samples, lam, probes, per_element, seed + 1) for lam in lams])  # noqa: E741
    grid = torch.tensor(list(lams), dtype=torch.float64)
    rates = Slopes.of(grid).at(l, torch.arange(len(grid)))
    fits = [_fit(network, samples, lam, l[k], rates[k], bias, difference) for k, lam in enumerate(lams)]
    s, b = (torch.stack(column) for column in zip(*fits, strict=True))
    for name, value in (("l", l), ("s", s), ("b", b)):
        if not bool(value.isfinite().all()):
            where = int((~value.isfinite()).reshape(len(grid), -1).any(1).nonzero()[0])
            raise NumericsError(f"the estimate of {name} is not finite at lam {lams[where]:g}; does the network give "
                                "finite outputs there?")  # fmt: skip
    return EmpiricalStatistics(grid, l, s, b, network.schedule.describe())


class _Samples(NamedTuple):
    x0: Tensor
    z: Tensor
    size: int
    branch: str

    def batches(self, level: Level) -> list[Tensor]:
        """x at the level, a batch at a time."""
        pairs = zip(self.x0.split(self.size), self.z.split(self.size), strict=True)
        return [level.alpha * x0 + level.sigma * z for x0, z in pairs]


def _noise(network: Network, x: Tensor, level: Level, branch: str) -> Tensor:
    """The predicted noise."""
    return Outputs(x, level, network(x, level, (branch,)), network.parametrisation).eps


def _linear(network: Network, samples: _Samples, lam: float, probes: int, per_element: bool, seed: int) -> Tensor:
    """l at lam, float64: 0-d or of one image's shape."""
    level = level_at(network.schedule, lam)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(samples.x0.shape[1:], dtype=torch.float64)
    for x in samples.batches(level):
        for _ in range(probes):
            v = (2 * torch.randint(0, 2, x.shape, generator=generator) - 1).to(x)
            total += (v * _directional(network, x, v, level, samples.branch)).double().sum(0).cpu()
    diagonal = float(level.sigma) * total / (probes * len(samples.x0))
    return diagonal if per_element else diagonal.mean()


def _directional(network: Network, x: Tensor, v: Tensor, level: Level, branch: str) -> Tensor:
    """J v: the derivative of the predicted noise in the direction v."""
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():  # fused attentions have no forward-mode derivative
        try:
            output = network(forward_ad.make_dual(x, v), level, (branch,))[0]
            derivative = forward_ad.unpack_dual(output).tangent
        except NotImplementedError as error:
            raise IncompatibleError(f"the network has no forward-mode derivative: {error}") from error
    if derivative is None:  # detached inside, or run in inference mode
        raise IncompatibleError("the network's output does not depend on x for forward-mode differentiation: it must "
                                "neither detach nor run in inference mode")  # fmt: skip
    of_x, of_out = network.parametrisation.eps_row(level)
    return of_x * v + of_out * derivative


def _fit(
    network: Network,
    samples: _Samples,
    lam: float,
    l: Tensor,  # noqa: E741
    rate: Tensor,
    bias: bool,
    difference: float,
) -> tuple[Tensor, Tensor]:
    """s and b at lam for this l and l' = rate, float64, each of l's shape."""
    fs, dfs, largest = [], [], 0.0
    for x in samples.batches(level_at(network.schedule, lam)):
        y, F, dF = (v.double().cpu() for v in _along_the_flow(network, x, lam, difference, samples.branch))
        fs.append(F - l * y)
        dfs.append(dF - rate * y + l * F)
        largest = max(largest, float(F.abs().max()))
    f, df = torch.cat(fs), torch.cat(dfs)
    dims = (0,) if l.dim() else tuple(range(f.dim()))
    f_mean, df_mean = (f.mean(dims), df.mean(dims)) if bias else (torch.zeros_like(l), torch.zeros_like(l))
    variance = ((f - f_mean) ** 2).mean(dims)
    covariance = ((f - f_mean) * (df - df_mean)).mean(dims)
    rounding = 64 * torch.finfo(samples.x0.dtype).eps * largest
    known = variance > rounding * rounding
    s = torch.where(known, covariance / torch.where(known, variance, 1.0), 0.0)
    return s, df_mean - s * f_mean


def _along_the_flow(
    network: Network, x: Tensor, lam: float, difference: float, branch: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y, F and dF/dlam along the ODE through x at lam, each of x's shape."""
    level = level_at(network.schedule, lam)
    y = x / level.alpha
    F = (level.sigma / level.alpha) * _noise(network, x, level, branch)
    offsets = _stencil(network.schedule, lam, difference)
    weights = _difference_weights(offsets)
    dF = weights[offsets.index(0)] * F
    for offset, weight in zip(offsets, weights, strict=True):
        if offset and weight:
            at = level_at(network.schedule, lam + offset * difference)
            moved = at.alpha * (y - (offset * difference) * F)
            dF = dF + (weight * at.sigma / at.alpha) * _noise(network, moved, at, branch)
    return y, F, dF / difference


def _ends(schedule: NoiseSchedule) -> tuple[float, float]:
    return float(schedule.noisiest.lam), float(schedule.cleanest.lam)


def _stencil(schedule: NoiseSchedule, lam: float, difference: float) -> list[int]:
    """Five offsets around 0, moved so that none leaves the schedule."""
    low, high = _ends(schedule)
    first = -_HALF
    while first < 0 and lam + first * difference < low:
        first += 1
    while first > -2 * _HALF and lam + (first + 2 * _HALF) * difference > high:
        first -= 1
    return [first + k for k in range(2 * _HALF + 1)]


def _difference_weights(offsets: list[int]) -> list[float]:
    """w of sum_k w_k p(offset_k) = p'(0) for every polynomial p of degree 4."""
    points = torch.tensor(offsets, dtype=torch.float64)
    powers = torch.stack([points**k for k in range(len(offsets))])
    slope = torch.zeros(len(offsets), dtype=torch.float64)
    slope[1] = 1.0
    return [round(12.0 * w) / 12.0 for w in torch.linalg.solve(powers, slope).tolist()]  # they are twelfths


def _check(
    schedule: NoiseSchedule, x0: Tensor, lams: Sequence[float], batch: int | None, probes: int, difference: float
) -> int:
    """The batch size."""
    if x0.dim() < 2 or len(x0) < 2 or x0.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"x0 must be 2 or more samples (K, ...) in float32 or float64, got {tuple(x0.shape)}, {x0.dtype}"
        )
    size = len(x0) if batch is None else batch
    if size < 1 or len(x0) % size:
        raise ConfigError(f"batch must divide the {len(x0)} samples, got {batch!r}")
    if probes < 1 or not 0.0 < difference < 1.0:
        raise ConfigError(f"expected probes >= 1 and 0 < difference < 1, got {probes!r} and {difference!r}")
    low, high = _ends(schedule)
    if len(lams) < 3 or not all(-math.inf < a < b < math.inf for a, b in zip(lams, lams[1:], strict=False)):
        raise ConfigError(f"lams must be 3 or more finite increasing numbers, got {list(lams)[:4]} ...")
    if not low - 1e-9 <= lams[0] or not lams[-1] <= high + 1e-9 or high - low < 4 * difference:
        raise ConfigError(f"lams must lie in the trained range [{low:g}, {high:g}], got {lams[0]:g} to {lams[-1]:g}")
    return size
