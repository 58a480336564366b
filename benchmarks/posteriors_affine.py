r"""One Gaussian: the law of a posterior sampler without a sample, and the answer that DPS should give.

With a Gaussian prior and a linear measurement every tick of these samplers is x <- L x + b + up z, so its mean and
covariance follow from what the production code does to 0, to the basis vectors, and to 0 with a known z:

    m <- L m + b,        P <- L P L^T + up^2 I.

What DPS with the likelihood's own weight converges to, where the prior's covariance has the axes that A measures: along
an axis with prior variance c, y = a x + sigma_y n, and rho = a^2 c / sigma_y^2 (x and y less their prior means),

    mean      (y / a) (1 - e^{-rho}),              exactly it is (y / a) rho / (1 + rho),
    variance  c (1 - e^{-2 rho}) / (2 rho),        exactly it is c / (1 + rho).

Derivation (ours): with u = alpha^2, v = 1 + u (c - 1) and k = a^2 c^2 / sigma_y^2 the reverse SDE with that score has
dV/du = ((1 - 2/v - 2 k u / v^2) V + 1) / u. In w = u / v, dw = du / v^2, V is (v^2 / u) e^{-2 k w} times the integral
of e^{2 k w}; w goes from 0 to 1 / c. The mean likewise, with half the exponent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..inverse.dps import ANCESTRAL
from ..inverse.measurement import Measurement
from ..inverse.posterior import Done, Posterior
from ..inverse.problem import Problem
from ..models.gaussian_mixture import GaussianMixture
from ..models.mixture_backbone import MixtureBackbone, MixtureNetwork
from ..samplers import Level, Solver, State, trace
from ..samplers.solver_config import grid_of, solver_of
from .posteriors_metrics import Moments
from .posteriors_operators import LinearMap


class ProbeTape:
    """Noise of the solver: 1 everywhere in the last image, 0 in the others. A method's own noise: 0."""

    def normal(self, i: int, s: Level, t: Level, x: Tensor) -> Tensor:
        noise = torch.zeros_like(x)
        noise[-1] = 1.0
        return noise

    def draw(self, tick: int, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True, kw_only=True)
class Unguided(Posterior):
    """The network alone: with the exact posterior's network it is the oracle."""

    steps: int = 1000
    solver: Solver | str = ANCESTRAL

    step_size: ClassVar[str] = "steps"

    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        p = problem.predict(state.x, problem.level(state.tick))
        return Done(problem.advance(state, p), p, torch.zeros(len(state.x)))


def propagate(
    posterior: Posterior, backbone: MixtureBackbone, measurement: Measurement, network: MixtureNetwork | None = None
) -> Moments:
    """Mean (d,) and covariance (d, d) of what the posterior returns, begun from N(0, I); latents, in float64.

    measurement: of one image, linear.       network: another than the prior's, such as the exact posterior's.
    """
    d = backbone.prior.dimension
    n = d + 2
    table = trace(
        solver_of(posterior.solver), grid_of(posterior.grid)(backbone.schedule, posterior.steps), backbone.schedule
    )
    network = backbone.network() if network is None else network
    problem = Problem(backbone, measurement.images(n), network, table, tuple(range(n)), 1.0)
    problem.tape = ProbeTape()  # type: ignore[assignment]
    eye = torch.eye(d, dtype=torch.float64)
    x = torch.cat([torch.zeros(1, d), eye, torch.zeros(1, d)]).reshape(n, 1, 1, d)
    m, P, memory = torch.zeros(d, dtype=torch.float64), eye, posterior.begin(problem)
    for i in range(len(table)):
        done = posterior.tick(problem, State(i, x), memory)
        after, memory = done.state.x.flatten(1), done.memory
        b, up = after[0], after[-1, 0] - after[0, 0]
        L = (after[1:-1] - b).T
        m, P = L @ m + b, L @ P @ L.T + up**2 * eye
    return Moments(m, P)


@dataclass(frozen=True, eq=False)
class Aligned:
    """One Gaussian whose axes are those that A measures.

    variances: c (8,).       gains: a (m,), of the first m axes Q[:, :m].
    """

    backbone: MixtureBackbone
    measurement: Measurement
    variances: Tensor
    gains: Tensor
    Q: Tensor

    @property
    def exact(self) -> Moments:
        posterior = self.posterior
        return Moments(posterior.mean, posterior.covariance)

    @property
    def posterior(self) -> GaussianMixture:
        y = self.measurement.y.flatten()
        return self.backbone.posterior(self.measurement.operator.matrix, y, self.measurement.sigma_y)

    @property
    def dps(self) -> Moments:
        """What DPS with the likelihood's own weight converges to."""
        measured = len(self.gains)
        mean0 = self.backbone.prior.means[0]
        a, c, Q = self.gains, self.variances[:measured], self.Q
        y = self.measurement.y.flatten() - self.measurement.operator.matrix @ mean0
        rho = a.square() * c / self.measurement.sigma_y**2
        mean, variance = torch.zeros_like(self.variances), self.variances.clone()
        mean[:measured] = y / a * -torch.expm1(-rho)
        variance[:measured] = c * -torch.expm1(-2.0 * rho) / (2.0 * rho)
        return Moments(mean0 + Q @ mean, Q * variance @ Q.T)


def aligned(*, unit: bool, sigma_y: float = 0.5) -> Aligned:
    """The problem of the tests and of the benchmark: d = 8, four axes measured, with gains 0.25 to 1."""
    g = torch.Generator().manual_seed(5)
    Q = torch.linalg.qr(torch.randn((8, 8), generator=g, dtype=torch.float64)).Q
    spread = torch.tensor([0.1, 2.0, 0.5, 4.0, 0.1, 0.3, 1.0, 3.0], dtype=torch.float64)
    c = torch.ones_like(spread) if unit else spread
    gains = torch.tensor([1.0, 0.7, 0.4, 0.25], dtype=torch.float64)
    prior = GaussianMixture(torch.ones(1), torch.randn((1, 8), generator=g), (Q * c @ Q.T).unsqueeze(0))
    truth = prior.sample(1, 7).reshape(1, 1, 1, 8)
    measurement = Measurement.simulate(LinearMap(gains.unsqueeze(1) * Q[:, :4].T), truth, sigma_y, seeds=[7])
    return Aligned(MixtureBackbone(prior), measurement, c, gains, Q)
