"""The gradient of STSL's trace term, by the code that restores images, against third derivatives in closed form."""

import pytest
import torch

from fewstep.benchmarks.posteriors_problems import PROBLEMS
from fewstep.inverse.problem import Problem
from fewstep.inverse.stsl import STSL
from fewstep.models.mixture_backbone import MixtureBackbone
from fewstep.samplers import GRIDS, LinearVP, trace


class Probes:
    """A tape whose draws are given: image k has the probe of row k."""

    def __init__(self, u):
        self.u = u

    def draw(self, tick, x):
        return self.u.reshape(x.shape)


def moved(posterior, posed, level, z, u):
    """What one inner iteration without a data term subtracts from z (B, d), by the production code."""
    backbone, n = posed.backbone, len(z)
    table = trace(posterior.solver, GRIDS["time"](backbone.schedule, 10), backbone.schedule)
    measurement = posed.measurement.images(n)
    problem = Problem(backbone, measurement, backbone.network(), table, tuple(range(n)), 1.0)
    problem.tape = Probes(u)
    x = z.reshape(n, 1, 1, -1)
    after, _ = posterior._inner(problem, x, level, 0, 0)
    return (x - after).flatten(1)


def components(prior, z, level):
    """r_k, P_k and g_k = -P_k (z - alpha m_k) of the mixture at the level, with dense inverses."""
    alpha, sigma = level.alpha, level.sigma
    d = z.shape[1]
    C = prior.covariances.expand(len(prior.weights), d, d)
    S = alpha**2 * C + sigma**2 * torch.eye(d, dtype=z.dtype)
    P = torch.linalg.inv(S)
    apart = z.unsqueeze(1) - alpha * prior.means
    g = -torch.einsum("kde,bke->bkd", P, apart)
    logits = prior.weights.log() + 0.5 * torch.einsum("bkd,bkd->bk", g, apart) - 0.5 * torch.logdet(S)
    return torch.softmax(logits, 1), P, g


def hessian(prior, z, level):
    """Of log p: sum_k r_k (g_k g_k^T - P_k) - s s^T, s = sum_k r_k g_k."""
    r, P, g = components(prior, z, level)
    s = torch.einsum("bk,bkd->bd", r, g)
    return torch.einsum("bk,bkd,bke->bde", r, g, g) - torch.einsum("bk,kde->bde", r, P) - s[:, :, None] * s[:, None, :]


def laplacian_gradient(prior, z, level):
    """Third derivatives: sum_k r_k ((g_k - s)(|g_k|^2 - tr P_k) - 2 P_k g_k) - 2 H s, for grad r_k = r_k (g_k - s)."""
    r, P, g = components(prior, z, level)
    s = torch.einsum("bk,bkd->bd", r, g)
    size = g.square().sum(-1) - P.diagonal(dim1=1, dim2=2).sum(-1)
    inner = (g - s.unsqueeze(1)) * size.unsqueeze(-1) - 2.0 * torch.einsum("kde,bke->bkd", P, g)
    return torch.einsum("bk,bkd->bd", r, inner) - 2.0 * torch.einsum("bde,be->bd", hessian(prior, z, level), s)


def near(posed, level, n, seed):
    """States (n, d) that are likely at the level, where several components matter."""
    z = posed.backbone.prior.sample(n, seed)
    return level.alpha * z + level.sigma * torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("weight", ["constant", "variance"])
@pytest.mark.parametrize("probe", ["unit", "sigma"])
@pytest.mark.parametrize("time", [5, 100, 400, 900])
def test_the_trace_terms_gradient_is_closed_form(time, probe, weight):
    """For a given u the gradient of u^T (s(z + delta u) - s(z)) is (H(z + delta u) - H(z)) u, times eta / (d delta)."""
    posed = PROBLEMS["P4 linear decoder"](0)
    level, prior, eta = posed.backbone.schedule.level(time), posed.backbone.prior, 0.02
    z = near(posed, level, 6, time)
    u = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).double()
    delta = 1.0 if probe == "unit" else level.sigma
    scale = eta * (level.sigma**2 if weight == "variance" else 1.0) / (z.shape[1] * delta)
    expected = scale * torch.einsum("bde,be->bd", hessian(prior, z + delta * u, level) - hessian(prior, z, level), u)
    posterior = STSL(zeta=0.0, eta=eta, probe=probe, trace_weight=weight, weighting="norm")
    found = moved(posterior, posed, level, z, u)
    exact = expected.norm(dim=1)
    # z is of the order of 1 and the term is what was taken from it, so it is known to 1e-16, not to 1e-16 of itself.
    assert bool(((found - expected).norm(dim=1) < 1e-6 * exact + 1e-14).all()), (found - expected).norm(dim=1) / exact


def test_small_probes_give_the_gradient_of_the_laplacian():
    """Summed over +-e_j the probes of size sigma give grad tr H to O(sigma^2), the closed form of third derivatives."""
    posed = PROBLEMS["P4 linear decoder"](0)
    prior, d, errors = posed.backbone.prior, 8, []
    posterior = STSL(zeta=0.0, eta=1.0, probe="sigma", trace_weight="constant", weighting="norm")
    z = near(posed, LinearVP().level(0.05), 1, 3)
    eye = torch.eye(d, dtype=torch.float64)
    for time in (1e-3, 4e-3):
        level = LinearVP().level(time)
        backbone = MixtureBackbone(prior, LinearVP(), decoder=(posed.backbone.W, posed.backbone.b))
        of = type(posed)(**{**vars(posed), "backbone": backbone})
        found = d / 2.0 * moved(posterior, of, level, z.expand(2 * d, d).clone(), torch.cat([eye, -eye])).sum(0)
        expected = laplacian_gradient(prior, z, level)[0]
        errors.append((float((found - expected).norm() / expected.norm()), level.sigma))
    (small, sigma), (large, sigma4) = errors
    assert small < 0.02, errors
    assert abs(large / small / (sigma4 / sigma) ** 2 - 1.0) < 0.2, errors


def test_the_laplacians_closed_form_is_right():
    """The closed forms above, against central differences: of s for H, of tr H for its gradient."""
    posed = PROBLEMS["P4 linear decoder"](0)
    level, prior, h = posed.backbone.schedule.level(100), posed.backbone.prior, 1e-5
    z, eye = near(posed, level, 3, 2), torch.eye(8, dtype=torch.float64)

    def score(x):
        return -prior.prediction(x, level).eps / level.sigma

    H = torch.stack([(score(z + h * e) - score(z - h * e)) / (2 * h) for e in eye], -1)
    torch.testing.assert_close(hessian(prior, z, level), H, rtol=1e-6, atol=1e-7)

    def laplacian(x):
        return hessian(prior, x, level).diagonal(dim1=1, dim2=2).sum(-1)

    gradient = torch.stack([(laplacian(z + h * e) - laplacian(z - h * e)) / (2 * h) for e in eye], -1)
    torch.testing.assert_close(laplacian_gradient(prior, z, level), gradient, rtol=1e-5, atol=1e-6)
