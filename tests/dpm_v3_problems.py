"""Statistics and problems for the tests of DPM-Solver-v3."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fewstep.samplers import EPS, X0, EmpiricalStatistics, Level, NoiseSchedule, Parametrisation

from .problems import network_output
from .solver_rows import DOUBLE, VP


def wavy(knots: int = 400) -> EmpiricalStatistics:
    """Smooth statistics that belong to no model."""
    lam = torch.linspace(-6.0, 5.0, knots, dtype=DOUBLE)
    l, s, b = 0.6 + 0.4 * torch.sin(1.3 * lam + 0.2), 0.5 * torch.cos(0.9 * lam), 0.4 * torch.sin(1.7 * lam)  # noqa: E741
    return EmpiricalStatistics.of(lam, l, s, b)


def per_element(statistics: EmpiricalStatistics, *shape: int) -> EmpiricalStatistics:
    n = len(statistics.lam)
    l, s, b = (v.reshape(n, *[1] * len(shape)).expand(n, *shape) for v in (statistics.l, statistics.s, statistics.b))  # noqa: E741
    return EmpiricalStatistics.of(statistics.lam, l, s, b)


@dataclass
class PolynomialG:
    """A network whose g is a polynomial whatever x is, for constant statistics l, s, b (s != 0)."""

    coefficients: tuple[float, ...]
    l: float = 0.4  # noqa: E741
    s: float = -0.7
    b: float = 0.3
    schedule: NoiseSchedule = VP
    parametrisation: Parametrisation = EPS

    def f(self, lam):
        polynomial = sum(c * lam**j for j, c in enumerate(self.coefficients))
        return np.exp(self.s * lam) * polynomial + self.b * np.expm1(self.s * lam) / self.s

    def __call__(self, x, level, branches, rows=None):
        eps = (level.alpha * float(self.f(level.lam)) + self.l * x) / level.sigma
        return tuple(eps for _ in branches)

    def flow(self, x, s, t):
        """y_t = e^{-l h} y_s - int e^{-l (lam_t - lam)} f dlam, by Gauss-Legendre of 60 nodes."""
        u, w = np.polynomial.legendre.leggauss(60)
        h = t.lam - s.lam
        lam = s.lam + h * (u + 1) / 2
        integral = float((w * np.exp(-self.l * (t.lam - lam)) * self.f(lam)).sum() * h / 2)
        return t.alpha * (math.exp(-self.l * h) * x / s.alpha - integral)


@dataclass
class Gaussian:
    """x0 ~ N(means, covariance) over vectors: eps = sigma (alpha^2 covariance + sigma^2)^{-1} (x - alpha means)."""

    means: torch.Tensor
    covariance: torch.Tensor
    schedule: NoiseSchedule = VP
    parametrisation: Parametrisation = X0

    def precision(self, level: Level) -> torch.Tensor:
        eye = torch.eye(len(self.means), dtype=DOUBLE)
        return torch.linalg.inv(level.alpha**2 * self.covariance + level.sigma**2 * eye)

    def __call__(self, x, level, branches, rows=None):
        eps = level.sigma * (x - level.alpha * self.means) @ self.precision(level)
        x0 = (x - level.sigma * eps) / level.alpha
        return tuple(network_output(self.parametrisation, level, x, x0, eps) for _ in branches)

    def flow(self, x, s, t):
        """For a diagonal covariance: every element keeps its z-score."""
        z = (x - s.alpha * self.means) * self.precision(s).diagonal().sqrt()
        return t.alpha * self.means + z / self.precision(t).diagonal().sqrt()
