"""Estimates of the statistics of DPM-Solver-v3 against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.samplers import (
    DDIM,
    EPS,
    X0,
    DPMv3,
    estimate_statistics,
    level_at,
    solve,
    solve_v3,
    trace,
)
from fewstep.samplers.dpm_v3_estimate import _along_the_flow

from .dpm_v3_problems import Gaussian
from .problems import Mixture
from .solver_rows import DOUBLE, VP, relative, states

# ---------------------------------------------------------------- estimation


ONE = Gaussian(torch.full((3,), 0.7, dtype=DOUBLE), 0.25 * torch.eye(3, dtype=DOUBLE))
MANY = Gaussian(torch.tensor([0.7, -0.2, 0.4], dtype=DOUBLE), torch.diag(torch.tensor([0.04, 0.25, 1.0], dtype=DOUBLE)))
ENDS = tuple(level_at(VP, lam) for lam in (-2.8, 1.9))


def grid(n: int) -> list[float]:
    return torch.linspace(-3.0, 2.0, n + 1, dtype=DOUBLE).tolist()


def true_l(network: Gaussian, lams) -> torch.Tensor:
    """l = sigma^2 / (alpha^2 v + sigma^2), (n, elements)."""
    return 1.0 / (1.0 + network.covariance.diagonal() * torch.tensor(lams, dtype=DOUBLE).mul(2).exp().unsqueeze(1))


@pytest.mark.parametrize("network", [ONE, MANY], ids=["isotropic", "anisotropic"])
def test_statistics_of_gaussians(network):
    """J is diagonal, so that one sign vector gives l exactly; f = -l mean is constant, so s = 0 and b = -l' mean."""
    lams, rate = grid(80), None
    statistics = estimate_statistics(network, states(6, 3), lams, per_element=True)
    l = true_l(network, lams)  # noqa: E741
    rate = -2.0 * l * (1.0 - l)
    assert float((statistics.l - l).abs().max()) < 1e-12
    assert float(statistics.s.abs().max()) == 0.0
    # The five-point difference of l errs by (1/16)^4 |l^(5)| / 5 at the ends, where |l^(5)| < 10.
    assert float((statistics.b + rate * network.means).abs().max()) < 10 / 16**4 / 5
    assert statistics.schedule == VP.describe()


def test_statistics_of_a_gaussian_as_one_number_a_lam():
    lams = grid(80)
    l = true_l(ONE, lams)[:, 0]  # noqa: E741
    found = estimate_statistics(ONE, states(6, 3), lams)
    assert found.shape == () and float((found.l - l).abs().max()) < 1e-12
    without = estimate_statistics(ONE, states(6, 3), lams, bias=False)
    assert not without.biased  # f^(1) = s f with s = l' / l
    assert float((without.s + 2.0 * (1.0 - l)).abs().max()) < 10 / 16**4 / 5 / float(l.min())


@pytest.mark.parametrize(("network", "elements"), [(ONE, False), (ONE, True), (MANY, True)])
def test_one_first_order_step_is_exact_for_gaussians(network, elements):
    """What is left is the interpolation between knots, of fourth order: l and b are right at the knots."""
    x, errors = states(5, 3), []
    exact = network.flow(x, *ENDS)
    for n in (20, 40, 80):
        statistics = estimate_statistics(network, states(2, 3), grid(n), per_element=elements, difference=0.002)
        errors.append(relative(solve_v3(DPMv3(statistics, 1), network, ENDS, x).x, exact))
    assert errors[2] < 1e-6 and errors[0] / errors[2] > 100
    assert relative(solve(trace(DDIM(), ENDS, VP), network, x).x, exact) > 0.1


def test_a_table_of_a_gaussian_is_exact_in_one_step():
    statistics = estimate_statistics(ONE, states(6, 3), grid(80), bias=False)
    x = states(5, 3)
    assert relative(solve(trace(DPMv3(statistics, 1), ENDS, VP), ONE, x).x, ONE.flow(x, *ENDS)) < 1e-6


def test_the_diagonal_of_a_full_jacobian():
    """Off-diagonal elements of J are noise of the estimate: 5 standard errors over 400 x 4 sign vectors."""
    rotation = torch.linalg.qr(states(4, 4, seed=3))[0]
    covariance = rotation @ torch.diag(torch.tensor([0.02, 0.1, 0.5, 2.0], dtype=DOUBLE)) @ rotation.T
    network, lams = Gaussian(torch.zeros(4, dtype=DOUBLE), covariance), [-1.0, 0.0, 1.0]
    found = estimate_statistics(network, states(400, 4), lams, per_element=True, probes=4, batch=100).l
    for lam, row in zip(lams, found, strict=True):
        level = level_at(VP, lam)
        J = level.sigma**2 * network.precision(level)
        error = ((J**2).sum(1) - J.diagonal() ** 2).sqrt() / math.sqrt(1600)
        assert bool(((row - J.diagonal()).abs() < 5 * error).all())


@pytest.mark.parametrize("lam", [-4.0, 0.3, float(VP.noisiest.lam), float(VP.cleanest.lam)])
def test_the_derivative_along_the_flow(lam):
    """dF/dlam against differences of F along the exact solution, at the schedule's ends too."""
    network, x, d = Mixture(VP), states(16), 1e-4
    side = 1.0 if lam < 0 else -1.0  # away from the end
    level = level_at(VP, lam)
    x = level.alpha * 0.5 * x + level.sigma * states(16, seed=1)

    def F(at):
        y = network.flow(x, level, at)
        return (at.sigma / at.alpha) * network(y, at, ("cond",))[0]

    _, _, found = _along_the_flow(network, x, lam, 0.01, "cond")
    near = [F(level_at(VP, lam + side * k * d)) for k in range(3)]
    expected = side * (-1.5 * near[0] + 2.0 * near[1] - 0.5 * near[2]) / d
    assert relative(found, expected) < 2e-6


def test_estimates_do_not_depend_on_the_batch_and_follow_the_seed():
    x0, lams = 0.5 * states(8, 3), [-1.0, 0.0, 1.0, 1.5]
    one, two = (estimate_statistics(Mixture(VP), x0, lams, batch=n, per_element=True) for n in (8, 2))
    assert all(relative(a, b) < 1e-12 for a, b in zip((two.l, two.s, two.b), (one.l, one.s, one.b), strict=True))
    other = estimate_statistics(Mixture(VP), x0, lams, per_element=True, seed=1)
    assert relative(other.l, one.l) > 1e-6


def test_a_network_with_attention():
    """Forward-mode differentiation passes through a UNet's attention; l agrees with differences in float32."""
    from fewstep.samplers.backbones.sd import StableDiffusion

    from .tiny import LATENT_SHAPE, tiny_sd

    network = StableDiffusion.of(tiny_sd()).encode(["a", "b"], None, height=16, width=16)
    x0 = states(2, *LATENT_SHAPE).float().contiguous(memory_format=torch.channels_last)
    found = estimate_statistics(network, x0, [-1.0, -0.5, 0.0], per_element=True, difference=0.05)
    level = level_at(network.schedule, -0.5)
    x = level.alpha * x0 + level.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    v = (2 * torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(1)) - 1).float()
    with torch.no_grad():
        up, down = (network(x + h * v, level, ("cond",))[0] for h in (0.01, -0.01))
    expected = level.sigma * (v * (up - down) / 0.02).mean(0)
    assert float((found.l[1] - expected).abs().max()) < 1e-3 * max(1.0, float(expected.abs().max()))


@dataclass
class Through(Mixture):
    """A mixture behind another function of x."""

    function: Callable = torch.detach

    def __call__(self, x, level, branches, rows=None):
        return super().__call__(self.function(x), level, branches)


class NoTangent(torch.autograd.Function):
    forward = staticmethod(lambda x: x + 0.0)
    setup_context = staticmethod(lambda *a: None)


@pytest.mark.parametrize(
    ("function", "message"), [(torch.detach, "does not depend on x"), (NoTangent.apply, "no forward-mode derivative")]
)
def test_networks_without_a_derivative_are_refused(function, message):
    """A derivative that is lost on the way must not become l = 0."""
    for parametrisation in (EPS, X0):
        network = Through(VP, parametrisation, function=function)
        with pytest.raises(IncompatibleError, match=message):
            estimate_statistics(network, states(2, 3), [-1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lams": [0.0, 1.0]}, "lams must be"),
        ({"lams": [0.0, 1.0, 1.0]}, "lams must be"),
        ({"lams": [-1.0, 0.0, 9.0]}, "trained range"),
        ({"batch": 4}, "batch must divide"),
        ({"probes": 0}, "probes >= 1"),
        ({"x0": torch.zeros(6, 3, dtype=torch.float16)}, "float32 or float64"),
    ],
)
def test_estimates_that_cannot_work_are_refused(changes, message):
    arguments = {"x0": states(6, 3), "lams": [-1.0, 0.0, 1.0]} | changes
    with pytest.raises(ConfigError, match=message):
        estimate_statistics(ONE, **arguments)
