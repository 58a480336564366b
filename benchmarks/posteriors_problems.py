r"""Problems whose posterior is known: `Posed` is one of them with the measurement of one seed.

P0  one Gaussian, d = 8, its covariance the identity or with eigenvalues 0.1 to 4
P1  four Gaussians in the plane, the second coordinate measured, after Delgadino et al. 2026 (our own means)
P2  25 Gaussians on a grid of spacing 8, y = A x + n, A with random singular vectors and singular values from U[0, 1]:
    the family of Cardoso et al. 2024, "Monte Carlo guided Diffusion for Bayesian linear inverse problems", with equal
    weights and sigma_y = 0.5
P3  the plane, y = |x| + n and y = x^2 + n; the posterior on a grid of cells
P4  latents of d = 8 and pixels x = W z + b of 16 with orthonormal columns: latent methods end to end

The truth is a draw of the prior, so that intervals can be checked; P1 has the measurement of its source, for all seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inverse.measurement import Measurement
from ..models.gaussian_mixture import GaussianMixture
from ..models.mixture_backbone import MixtureBackbone
from .posteriors_operators import LinearMap, Modulus, Square


@dataclass(frozen=True, eq=False)
class Posed:
    """name, seed: what it is.       exact: p(latents | y), a mixture; of small cells in P3.
    mode: latents (n, d) to the number of their mode (n,); modes: how many there are.
    linear: whether y is linear in x.       gaussian: whether prior and posterior are Gaussians.
    """

    name: str
    seed: int
    backbone: MixtureBackbone
    measurement: Measurement
    exact: GaussianMixture
    mode: Callable[[Tensor], Tensor]
    modes: int
    linear: bool = True
    gaussian: bool = False

    def latents(self, x: Tensor) -> Tensor:
        """(n, d) of pictures (n, 1, 1, D)."""
        return self.backbone.to_latents(x.double()).flatten(1)

    def chi2(self, z: Tensor) -> float:
        """Mean of |y - A(x)|^2 / (m sigma_y^2) over latents (n, d)."""
        x = self.backbone.to_pixels(z.reshape(len(z), 1, 1, -1))
        return float(self.measurement.images(len(z)).chi2(x).mean())


def one_gaussian(seed: int, *, unit: bool) -> Posed:
    g = torch.Generator().manual_seed(1000 + seed)
    d = 8
    Q = _orthogonal(d, d, g)
    eigenvalues = torch.ones(d) if unit else torch.logspace(math.log10(0.1), math.log10(4.0), d)
    prior = GaussianMixture(torch.ones(1), _normal(g, 1, d), (Q * eigenvalues.double() @ Q.T).unsqueeze(0))
    return _linear("P0 " + ("unit" if unit else "anisotropic"), seed, prior, _normal(g, 4, d) / math.sqrt(d), 0.5)


def four_modes(seed: int) -> Posed:
    means = torch.tensor([[-4.0, -2.0], [-1.5, -1.0], [1.5, -1.0], [4.0, -2.0]])
    covariances = torch.diag_embed(torch.tensor([[0.5, 0.8], [0.3, 0.8], [0.3, 0.8], [0.5, 0.8]]))
    prior = GaussianMixture(torch.ones(4), means, covariances)
    return _linear("P1 four modes", seed, prior, torch.tensor([[0.0, 1.0]]), 0.5, y=torch.tensor([-2.5]))


def grid_of_gaussians(seed: int, *, dx: int, dy: int) -> Posed:
    g = torch.Generator().manual_seed(2000 + seed)
    means = torch.tensor([[8.0 * i, 8.0 * j] for i in range(-2, 3) for j in range(-2, 3)]).repeat(1, dx // 2)
    singular = torch.rand(dy, generator=g, dtype=torch.float64).sort(descending=True).values
    A = _orthogonal(dy, dy, g) * singular @ _orthogonal(dx, dy, g).T
    return _linear(f"P2 ({dx}, {dy})", seed, GaussianMixture(torch.ones(25), means), A, 0.5)


def nonlinear(seed: int, *, operator: Any, name: str, sigma_y: float, cell: float) -> Posed:
    g = torch.Generator().manual_seed(3000 + seed)
    means = 1.5 * _normal(g, 3, 2)
    prior = GaussianMixture(torch.ones(3), means, 0.5 * torch.eye(2).unsqueeze(0))
    truth = prior.sample(1, seed).reshape(1, 1, 1, 2)
    measurement = Measurement.simulate(operator, truth, sigma_y, seeds=[seed])
    axis = torch.arange(-7.0, 7.0, cell, dtype=torch.float64) + cell / 2
    points = torch.cartesian_prod(axis, axis)
    r = measurement.images(len(points)).residual(points.reshape(-1, 1, 1, 2)).flatten(1)
    logits = prior.log_density(points) - r.square().sum(1) / (2.0 * sigma_y**2)
    weights = torch.softmax(logits, 0)
    kept = weights > 1e-5 * weights.max()
    within = torch.eye(2, dtype=torch.float64).unsqueeze(0) * cell**2 / 12  # the variance in a cell
    exact = GaussianMixture(weights[kept], points[kept], within)
    return Posed(f"P3 {name}", seed, MixtureBackbone(prior), measurement, exact,
                 lambda z: 2 * (z[:, 0] > 0) + (z[:, 1] > 0), 4, linear=False)  # fmt: skip


def linear_decoder(seed: int) -> Posed:
    g = torch.Generator().manual_seed(4000 + seed)
    d, D, m, K = 8, 16, 4, 5
    root = _normal(g, K, d, d) / math.sqrt(d)
    covariances = 0.5 * root @ root.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    prior = GaussianMixture(0.5 + torch.rand(K, generator=g), 2.0 * _normal(g, K, d), covariances)
    decoder = (_orthogonal(D, d, g), _normal(g, D))
    return _linear("P4 linear decoder", seed, prior, _normal(g, m, D) / math.sqrt(d), 0.25, decoder)


PROBLEMS: dict[str, Callable[[int], Posed]] = {
    "P0 unit": lambda seed: one_gaussian(seed, unit=True),
    "P0 anisotropic": lambda seed: one_gaussian(seed, unit=False),
    "P1 four modes": four_modes,
    "P2 (2, 1)": lambda seed: grid_of_gaussians(seed, dx=2, dy=1),
    "P2 (8, 1)": lambda seed: grid_of_gaussians(seed, dx=8, dy=1),
    "P2 (8, 4)": lambda seed: grid_of_gaussians(seed, dx=8, dy=4),
    "P3 |x|": lambda seed: nonlinear(seed, operator=Modulus(), name="|x|", sigma_y=0.3, cell=0.1),
    "P3 x^2": lambda seed: nonlinear(seed, operator=Square(), name="x^2", sigma_y=0.5, cell=0.05),
    "P4 linear decoder": linear_decoder,
    "P2 (80, 1)": lambda seed: grid_of_gaussians(seed, dx=80, dy=1),
    "P2 (80, 4)": lambda seed: grid_of_gaussians(seed, dx=80, dy=4),
}


def _linear(
    name: str, seed: int, prior: GaussianMixture, A: Tensor, sigma_y: float,
    decoder: tuple[Tensor, Tensor] | None = None, y: Tensor | None = None,
) -> Posed:  # fmt: skip
    backbone = MixtureBackbone(prior, decoder=decoder)
    operator = LinearMap(A)
    if y is None:
        truth = backbone.to_pixels(prior.sample(1, seed).reshape(1, 1, 1, -1))
        measurement = Measurement.simulate(operator, truth, sigma_y, seeds=[seed])
    else:
        measurement = Measurement(y.double().reshape(1, 1, 1, -1), operator, sigma_y)
    exact = backbone.posterior(A, measurement.y.flatten(), sigma_y)
    K = len(prior.weights)
    return Posed(name, seed, backbone, measurement, exact,
                 lambda z: exact.responsibilities(z).argmax(1), K, gaussian=K == 1)  # fmt: skip


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _orthogonal(rows: int, columns: int, g: torch.Generator) -> Tensor:
    """(rows, columns) with orthonormal columns, uniformly distributed."""
    Q, R = torch.linalg.qr(_normal(g, rows, columns))
    return Q * R.diagonal().sign()
