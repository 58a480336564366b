"""The Gaussian mixture that posteriors are judged by: its closed forms against autograd, Bayes' rule and torch."""

import pytest
import torch

from fewstep.benchmarks.posteriors_operators import LinearMap
from fewstep.benchmarks.posteriors_problems import PROBLEMS
from fewstep.errors import ConfigError
from fewstep.models.gaussian_mixture import GaussianMixture
from fewstep.models.mixture_backbone import MixtureBackbone
from fewstep.samplers import EPS, FLOW, X0, DiscreteVP, Level, V, predict

SCHEDULE = DiscreteVP.linear()
LEVELS = [SCHEDULE.level(30), SCHEDULE.level(400), Level(0.5, 0.5, 0.5), Level(3.0, 1.0, 3.0)]  # VP, flow, EDM


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(kind):
    """Four components in three dimensions; their covariances are their own, one for all, or the identity."""
    root = normal(4, 3, 3, seed=1)
    C = root @ root.mT + 0.3 * torch.eye(3, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.1, 0.4, 0.2, 0.3]), 2.0 * normal(4, 3, seed=2),
                           {"own": C, "shared": C[:1], "unit": None}[kind])  # fmt: skip


@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize("kind", ["own", "shared", "unit"])
def test_the_prediction_is_the_score_of_the_density(kind, level):
    prior = mixture(kind)
    x = normal(6, 3, seed=3).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_density(x, level).sum(), x)
    p = prior.prediction(x, level)
    torch.testing.assert_close(p.eps, -level.sigma * score, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_the_density_is_torchs(kind):
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

    prior, x, level = mixture(kind), normal(6, 3, seed=4), LEVELS[1]
    C = level.alpha**2 * prior.covariances.expand(4, 3, 3) + level.sigma**2 * torch.eye(3, dtype=torch.float64)
    expected = MixtureSameFamily(Categorical(prior.weights), MultivariateNormal(level.alpha * prior.means, C))
    torch.testing.assert_close(prior.log_density(x, level), expected.log_prob(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_tweedies_covariance_is_that_of_the_denoisers_jacobian(kind):
    prior, level = mixture(kind), LEVELS[1]
    x = normal(5, 3, seed=5).requires_grad_()
    x0 = prior.prediction(x, level).x0
    J = torch.stack([torch.autograd.grad(x0[:, j].sum(), x, retain_graph=True)[0] for j in range(3)], 1)
    expected = J * level.sigma**2 / level.alpha
    torch.testing.assert_close(prior.tweedie_covariance(x.detach(), level), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_the_posterior_is_bayes_rule(kind):
    prior, A, sigma_y = mixture(kind), normal(2, 3, seed=6), 0.4
    y, x = normal(2, seed=7), normal(8, 3, seed=8)
    posterior = prior.posterior(A, y, sigma_y)
    likelihood = -(y - x @ A.T).square().sum(1) / (2.0 * sigma_y**2)
    constant = posterior.log_density(x) - prior.log_density(x) - likelihood
    torch.testing.assert_close(constant, constant[:1].expand(8), rtol=0, atol=1e-10)


def test_samples_have_the_moments_of_the_mixture():
    prior, n = mixture("own"), 40_000
    z = prior.sample(n, 3)
    error = (torch.diagonal(prior.covariance) / n).sqrt()
    assert bool(((z.mean(0) - prior.mean).abs() < 5.0 * error).all())
    assert (
        float((torch.cov(z.T) - prior.covariance).norm() / prior.covariance.norm()) < 5.0 * (4 / n) ** 0.5
    )  # about sqrt((d + 1) / n)
    assert torch.equal(z, prior.sample(n, 3)) and not torch.equal(z, prior.sample(n, 4))


@pytest.mark.parametrize("kind", [EPS, X0, V, FLOW], ids=str)
@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_every_parametrisation_says_the_same(kind, level):
    prior, x = mixture("own"), normal(5, 1, 1, 3, seed=9)
    network = MixtureBackbone(prior, SCHEDULE, kind).network()
    (out,) = network(x, level, ("cond",))
    found, expected = predict(kind, level, x, out), prior.prediction(x.flatten(1), level)
    torch.testing.assert_close(found.x0.flatten(1), expected.x0, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.eps.flatten(1), expected.eps, rtol=1e-10, atol=1e-11)


def test_rows_and_branches_are_those_asked_for():
    network, x, level = MixtureBackbone(mixture("own")).network(), normal(5, 1, 1, 3), LEVELS[1]
    cond, uncond = network(x, level, ("cond", "uncond"), torch.tensor([1, 3]))
    (alone,) = network(x, level, ("cond",))
    assert cond.shape == (2, 1, 1, 3) and torch.equal(cond, uncond)
    torch.testing.assert_close(cond, alone[[1, 3]], rtol=1e-12, atol=1e-13)
    assert network(x.float(), level, ("cond",))[0].dtype == torch.float32


def test_a_linear_decoder_has_an_exact_inverse_and_posterior():
    posed = PROBLEMS["P4 linear decoder"](0)
    backbone, y = posed.backbone, posed.measurement
    z = normal(6, 8, seed=1)
    x = backbone.to_pixels(z.reshape(6, 1, 1, 8))
    torch.testing.assert_close(backbone.to_latents(x).flatten(1), z, rtol=1e-12, atol=1e-12)
    likelihood = -y.images(6).residual(x).flatten(1).square().sum(1) / (2.0 * y.sigma_y**2)
    constant = posed.exact.log_density(z) - backbone.prior.log_density(z) - likelihood
    torch.testing.assert_close(constant, constant[:1].expand(6), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("m", "d"), [(2, 5), (5, 5), (7, 4)])
def test_a_dense_map_is_a_linear_operator(m, d):
    A = LinearMap(normal(m, d, seed=m))
    x, y, gamma = normal(3, 1, 1, d, seed=1), normal(3, 1, 1, m, seed=2), torch.tensor([0.0, 0.5, 40.0])
    torch.testing.assert_close((A.A(x) * y).sum(), (x * A.A_adjoint(y)).sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(A.A(A.A_dagger(A.A(x))), A.A(x), rtol=1e-10, atol=1e-10)
    u = A.prox_l2(x, y, gamma)
    torch.testing.assert_close(gamma.double().view(-1, 1, 1, 1) * A.A_adjoint(A.A(u) - y) + u, x, rtol=1e-9, atol=1e-9)


def test_the_grids_posterior_is_that_of_the_integral():
    """P3: mean of |x| under the posterior, by an independent quadrature on a finer grid."""
    posed = PROBLEMS["P3 |x|"](0)
    axis = torch.arange(-7.0, 7.0, 0.037, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    r = posed.measurement.y.flatten() - points.abs()
    w = torch.softmax(posed.backbone.prior.log_density(points) - r.square().sum(1) / (2 * 0.3**2), 0)
    torch.testing.assert_close(posed.exact.mean, w @ points, rtol=0, atol=2e-3)


def test_what_is_no_mixture_is_refused():
    with pytest.raises(ConfigError, match="weights"):
        GaussianMixture(torch.ones(2), torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="positive definite"):
        GaussianMixture(torch.ones(1), torch.zeros(1, 2), -torch.eye(2).unsqueeze(0))
    with pytest.raises(ConfigError, match="sigma_y must be positive"):
        mixture("unit").posterior(torch.eye(3), torch.zeros(3), 0.0)
    with pytest.raises(ConfigError, match="orthonormal"):
        MixtureBackbone(mixture("unit"), decoder=(2.0 * torch.eye(3), torch.zeros(3)))
    with pytest.raises(ConfigError, match="1 x 3"):
        MixtureBackbone(mixture("unit")).encode([""], height=1, width=4)
