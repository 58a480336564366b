"""Problems with known answers: they evaluate themselves, count their evaluations and know their exact solutions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.samplers import EPS, Level, NoiseSchedule, Parametrisation


def network_output(parametrisation: Parametrisation, level: Level, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """What a network of this parametrisation would return, given both predictions (which agree with x)."""
    a, b = _try(parametrisation.x0_row, level)
    if b:
        return (x0 - a * x) / b
    c, d = parametrisation.eps_row(level)
    return (eps - c * x) / d


def _try(row, level):
    try:
        return row(level)
    except ArithmeticError:
        return 0.0, 0.0


@dataclass
class Mixture:
    """x0 ~ sum_k w_k N(m_k, s_k^2) per element. The probability-flow ODE moves quantiles to quantiles, so with the
    marginal's distribution function F the exact flow map is x_t = F_t^{-1}(F_s(x_s))."""

    schedule: NoiseSchedule
    parametrisation: Parametrisation = EPS
    weights: tuple[float, ...] = (0.35, 0.65)
    means: tuple[float, ...] = (-0.8, 0.6)
    stds: tuple[float, ...] = (0.35, 0.25)
    calls: int = field(default=0, init=False)

    def components(self, level: Level):
        for w, m, s in zip(self.weights, self.means, self.stds, strict=True):
            yield w, level.alpha * m, math.hypot(level.alpha * s, level.sigma), m, s

    def predictions(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Exact posterior means of x0 and eps given x."""
        logs, x0s, epss = [], [], []
        for w, mean, std, m, s in self.components(level):
            z = (x - mean) / std
            logs.append(math.log(w) - math.log(std) - 0.5 * z * z)
            x0s.append(m + level.alpha * s * s / std * z)
            epss.append(level.sigma / std * z)
        p = torch.softmax(torch.stack(logs), dim=0)
        return (p * torch.stack(x0s)).sum(0), (p * torch.stack(epss)).sum(0)

    def __call__(self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None):
        self.calls += 1
        x = x if rows is None else x[rows]
        out = network_output(self.parametrisation, level, x, *self.predictions(x, level))
        return tuple(out.clone() for _ in branches)

    def cdf(self, x: Tensor, level: Level) -> Tensor:
        root2 = math.sqrt(2.0)
        parts = [0.5 * w * torch.erfc((mean - x) / (std * root2)) for w, mean, std, _, _ in self.components(level)]
        return torch.stack(parts).sum(0)

    def flow(self, x: Tensor, s: Level, t: Level) -> Tensor:
        """The exact solution at t of the ODE from x at s, by bisection in float64 to the last bit."""
        if s == t:
            return x
        target = self.cdf(x, s)
        low, high = torch.full_like(x, -60.0), torch.full_like(x, 60.0)
        for _ in range(60):
            mid = 0.5 * (low + high)
            below = self.cdf(mid, t) < target
            low, high = torch.where(below, mid, low), torch.where(below, high, mid)
        return 0.5 * (low + high)


@dataclass
class Polynomial:
    """x0 = sum_j c_j lam^j whatever x is: solved exactly by every data-prediction method of sufficient degree."""

    schedule: NoiseSchedule
    parametrisation: Parametrisation
    coefficients: tuple[float, ...]
    calls: int = field(default=0, init=False)

    def value(self, lam: float) -> float:
        return sum(c * lam**j for j, c in enumerate(self.coefficients))

    def __call__(self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None):
        self.calls += 1
        x0 = torch.full_like(x, self.value(level.lam))
        out = network_output(self.parametrisation, level, x, x0, (x - level.alpha * x0) / level.sigma)
        return tuple(out.clone() for _ in branches)

    def flow(self, x: Tensor, s: Level, t: Level) -> Tensor:
        """x_t = (sigma_t / sigma_s) x_s + sigma_t int_{lam_s}^{lam_t} e^l x0(l) dl, integrated by parts."""
        return (t.sigma / s.sigma) * x + t.sigma * (self._primitive(t.lam) - self._primitive(s.lam))

    def _primitive(self, lam: float) -> float:
        total, derivative, sign = 0.0, list(self.coefficients), 1.0
        while derivative:
            total += sign * sum(c * lam**j for j, c in enumerate(derivative))
            derivative = [j * c for j, c in enumerate(derivative)][1:]
            sign = -sign
        return math.exp(lam) * total


@dataclass
class PolynomialNoise:
    """eps = sum_j c_j lam^j whatever x is: solved exactly by every noise-prediction method of sufficient degree."""

    schedule: NoiseSchedule
    parametrisation: Parametrisation
    coefficients: tuple[float, ...]

    def __call__(self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None):
        eps = torch.full_like(x, sum(c * level.lam**j for j, c in enumerate(self.coefficients)))
        out = network_output(self.parametrisation, level, x, (x - level.sigma * eps) / level.alpha, eps)
        return tuple(out.clone() for _ in branches)

    def flow(self, x: Tensor, s: Level, t: Level) -> Tensor:
        """x_t = (alpha_t / alpha_s) x_s - alpha_t int_{lam_s}^{lam_t} e^{-l} eps(l) dl, integrated by parts."""
        return (t.alpha / s.alpha) * x - t.alpha * (self._primitive(t.lam) - self._primitive(s.lam))

    def _primitive(self, lam: float) -> float:
        total, derivative = 0.0, list(self.coefficients)
        while derivative:
            total -= sum(c * lam**j for j, c in enumerate(derivative))
            derivative = [j * c for j, c in enumerate(derivative)][1:]
        return math.exp(-lam) * total


@dataclass
class LinearSlope:
    """eps = c0 + c1 sigma / alpha whatever x is: what a trapezoidal rule in sigma / alpha solves exactly."""

    schedule: NoiseSchedule
    c0: float = 0.3
    c1: float = -0.7
    parametrisation: Parametrisation = EPS

    def __call__(self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None):
        return tuple(torch.full_like(x, self.c0 + self.c1 * level.sigma / level.alpha) for _ in branches)

    def flow(self, x: Tensor, s: Level, t: Level) -> Tensor:
        a, b = s.sigma / s.alpha, t.sigma / t.alpha
        return t.alpha * (x / s.alpha + self.c0 * (b - a) + 0.5 * self.c1 * (b * b - a * a))
