r"""A Gaussian mixture as a prior with known answers: p(x0) = sum_k w_k N(m_k, C_k), everything in closed form.

At x = alpha x0 + sigma eps component k is N(alpha m_k, S_k) with S_k = alpha^2 C_k + sigma^2 I. With the
responsibilities r_k(x) of the components there,

    score      = -sum_k r_k S_k^-1 (x - alpha m_k),          eps = -sigma score,
    E[x0 | x]  = sum_k r_k mu_k,                             mu_k = m_k + alpha C_k S_k^-1 (x - alpha m_k),
    Cov[x0 | x] = sum_k r_k (sigma^2 C_k S_k^-1 + mu_k mu_k^T) - E[x0 | x] E[x0 | x]^T,

and for y = A x0 + sigma_y n the posterior is a mixture again:

    C'_k = (C_k^-1 + A^T A / sigma_y^2)^-1,   m'_k = m_k + C_k A^T (A C_k A^T + sigma_y^2 I)^-1 (y - A m_k),
    w'_k ~ w_k N(y; A m_k, A C_k A^T + sigma_y^2 I).

So the posterior has a denoiser of its own: run it instead of a posterior sampler, and what is left is the error of the
steps (`mixture_backbone`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..samplers import Level, Prediction


class _At(NamedTuple):
    """The components at a level, in the eigenvectors of their covariances; k' is 1 where they share one, else K.

    precision: (k', d) of S_k.       mean: (K, d), alpha m_k.       constant: (K,), what does not depend on x in
    log w_k N(x; alpha m_k, S_k).
    """

    precision: Tensor
    mean: Tensor
    constant: Tensor


class GaussianMixture:
    """A mixture of K Gaussians in d dimensions, in float64.

    weights: (K,), positive; divided by their sum.       means: (K, d).
    covariances: (K, d, d), (1, d, d) for one that all share, which is much faster, or None for the identity.
    Everything below takes x (B, d) and is differentiable in it.
    Errors: ConfigError for shapes or values that are no mixture.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor | None = None) -> None:
        self.weights, self.means = weights.double() / weights.double().sum(), means.double()
        K, d = self.means.shape
        eye = torch.eye(d, dtype=torch.float64).unsqueeze(0)
        self.covariances = eye if covariances is None else covariances.double()
        if self.weights.shape != (K,) or self.covariances.shape not in ((K, d, d), (1, d, d)):
            got = f"{tuple(weights.shape)}, {tuple(means.shape)} and {tuple(self.covariances.shape)}"
            raise ConfigError(
                f"a mixture has weights (K,), means (K, d) and covariances (K, d, d) or (1, d, d), got {got}"
            )
        eigenvalues, self._axes = torch.linalg.eigh(self.covariances)
        if not bool((self.weights > 0.0).all()) or not bool((eigenvalues > 0.0).all()):
            raise ConfigError("weights must be positive, covariances symmetric and positive definite")
        self._eigenvalues = eigenvalues
        self._along = torch.einsum("ked,ke->kd", self._axes.expand(K, d, d), self.means)  # means in those axes

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    @property
    def mean(self) -> Tensor:
        """(d,)"""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """(d, d) of the whole mixture."""
        return _mixed(self.weights.unsqueeze(0), self.means.unsqueeze(0), self.covariances)[0]

    def sample(self, n: int, seed: int) -> Tensor:
        """n independent draws (n, d); the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn((n, self.dimension), generator=generator, dtype=torch.float64)
        shared = k * 0 if len(self.covariances) == 1 else k
        spread = (self._axes * self._eigenvalues.sqrt().unsqueeze(1))[shared]
        return self.means[k] + torch.einsum("bde,be->bd", spread, z)

    def log_density(self, x: Tensor, level: Level | None = None) -> Tensor:
        """log p(x) (B,) at the level, without noise where none is given."""
        at, u = self._components(x, level)
        return torch.logsumexp(self._log_joint(at, u), 1)

    def responsibilities(self, x: Tensor, level: Level | None = None) -> Tensor:
        """(B, K): the probability of each component given x."""
        at, u = self._components(x, level)
        return torch.softmax(self._log_joint(at, u), 1)

    def prediction(self, x: Tensor, level: Level) -> Prediction:
        """E[x0 | x] and E[eps | x], both (B, d); neither divides by alpha or sigma."""
        at, u = self._components(x, level)
        r = torch.softmax(self._log_joint(at, u), 1)
        if len(self.covariances) == 1:  # then sum_k r_k (u - mean_k) needs no (B, K, d)
            pull = at.precision * (u - (r @ at.mean).unsqueeze(1))
        else:
            pull = r.unsqueeze(-1) * at.precision * (u - at.mean)
        towards = torch.einsum("ked,bkd->be", self._axes, self._eigenvalues * pull)
        score = -torch.einsum("ked,bkd->be", self._axes, pull)
        return Prediction(r @ self.means + float(level.alpha) * towards, -float(level.sigma) * score)

    def tweedie_covariance(self, x: Tensor, level: Level) -> Tensor:
        """Cov[x0 | x] (B, d, d)."""
        at, u = self._components(x, level)
        r = torch.softmax(self._log_joint(at, u), 1)
        gain = float(level.alpha) * self._eigenvalues * at.precision
        mu = self.means + torch.einsum("ked,bkd->bke", self._axes.expand(len(r[0]), -1, -1), gain * (u - at.mean))
        left = self._eigenvalues * at.precision * float(level.sigma) ** 2
        return _mixed(r, mu, torch.einsum("ked,kd,kfd->kef", self._axes, left, self._axes))

    def posterior(self, A: Tensor, y: Tensor, sigma_y: float) -> GaussianMixture:
        """p(x0 | y) for y = A x0 + sigma_y n.       A: (m, d).       y: (m,).

        Errors: ConfigError where sigma_y is 0: then the posterior has no density.
        """
        if not sigma_y > 0.0:
            raise ConfigError(f"the exact posterior needs noise: sigma_y must be positive, got {sigma_y!r}")
        A, y = A.double(), y.double()
        cross = self.covariances @ A.T  # (k', d, m)
        S = A @ cross + sigma_y**2 * torch.eye(len(y), dtype=torch.float64)
        factor = torch.linalg.cholesky(S)
        r = (y - self.means @ A.T).unsqueeze(-1)  # (K, m, 1)
        white = torch.linalg.solve_triangular(factor, r, upper=False)
        determinant = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        logits = self.weights.log() - determinant - 0.5 * white.squeeze(-1).square().sum(-1)
        means = self.means + (cross @ torch.cholesky_solve(r, factor)).squeeze(-1)
        gain = torch.cholesky_solve(cross.transpose(-1, -2), factor)  # S^-1 A C
        covariances = self.covariances - cross @ gain
        weights = torch.softmax(logits, 0).clamp_min(torch.finfo(torch.float64).tiny)
        return GaussianMixture(weights, means, (covariances + covariances.transpose(-1, -2)) / 2)

    def _components(self, x: Tensor, level: Level | None) -> tuple[_At, Tensor]:
        """The components at the level, and x in their axes (B, k', d)."""
        alpha, sigma = (1.0, 0.0) if level is None else (float(level.alpha), float(level.sigma))
        precision = 1.0 / (alpha**2 * self._eigenvalues + sigma**2)
        mean = alpha * self._along
        quadratic = (precision * mean * mean).sum(-1) - precision.log().sum(-1)
        constant = self.weights.log() - 0.5 * (quadratic + self.dimension * math.log(2.0 * math.pi))
        return _At(precision, mean, constant), torch.einsum("ked,be->bkd", self._axes, x)

    def _log_joint(self, at: _At, u: Tensor) -> Tensor:
        """log w_k N(x; alpha m_k, S_k), (B, K)."""
        linear = torch.einsum("bkd,kd->bk", u, at.precision * at.mean)
        return at.constant + linear - 0.5 * (at.precision * u * u).sum(-1)


def _mixed(weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """(B, d, d) of mixtures with weights (B, K), means (B, K, d) and covariances (K or 1, d, d)."""
    mean = torch.einsum("bk,bkd->bd", weights, means)
    between = torch.einsum("bk,bkd,bke->bde", weights, means, means) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    shared = len(covariances) == 1
    return between + (covariances if shared else torch.einsum("bk,kde->bde", weights, covariances))
