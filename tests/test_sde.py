"""Stochastic solvers: coefficients against the papers' formulas, and the moments of what they sample."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.samplers import DDIM, X0, DPMpp2M, SDEDPMpp2M, solve, trace, uniform_lambda

from .problems import Mixture
from .solver_rows import DOUBLE, VP, states, tape, uneven_levels

ETAS = (0.3, 0.5, 1.0)


def test_eta_cannot_go_up():
    levels = uneven_levels(4)[::-1]
    for solver in (DDIM(1.0), SDEDPMpp2M()):
        with pytest.raises(ConfigError, match="inversion"):
            trace(solver, levels, VP)


def test_eta_zero_is_the_ode():
    levels, x = uniform_lambda(VP, 10), states(8)
    ends = [solve(trace(solver, levels, VP), Mixture(VP), x).x for solver in (SDEDPMpp2M(0.0), DPMpp2M())]
    assert torch.equal(*ends)


# ---------------------------------------------------------------- one tick, against the papers


def coefficients(row):
    """x_next of a table's row as {input: coefficient}."""
    return dict(zip(row.inputs, row.coefficients[0], strict=True))


def over_x_and_x0(row):
    """(x, x0, noise) of x_next, with eps = (x - alpha x0) / sigma put in."""
    c, s = coefficients(row), row.level
    return c["x"] + c["eps"] / s.sigma, c["x0"] - c["eps"] * s.alpha / s.sigma, c["noise"]


def over_x_and_eps(row):
    """(x, eps, noise) of x_next, with x0 = (x - sigma eps) / alpha put in."""
    c, s = coefficients(row), row.level
    return c["x"] + c["x0"] / s.alpha, c["eps"] - c["x0"] * s.sigma / s.alpha, c["noise"]


def close(found, expected):
    return all(math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("eta", ETAS)
def test_ddim_is_equations_12_and_16(eta):
    """Song et al. 2020, arXiv:2010.02502, in their symbol a = alpha^2 (`alphas_cumprod`)."""
    levels = uneven_levels(7)
    for row, s, t in zip(trace(DDIM(eta), levels, VP).rows, levels, levels[1:], strict=False):
        a_s, a_t = s.alpha**2, t.alpha**2
        std = eta * math.sqrt((1 - a_t) / (1 - a_s)) * math.sqrt(1 - a_s / a_t)
        of_x = math.sqrt(a_t) / math.sqrt(a_s)
        of_eps = -math.sqrt(a_t) * math.sqrt(1 - a_s) / math.sqrt(a_s) + math.sqrt(1 - a_t - std**2)
        assert close(over_x_and_eps(row), (of_x, of_eps, std))


def test_ddim_with_eta_one_is_the_ddpm_posterior():
    """q(x_{t-1} | x_t, x0) of Ho et al. 2020, arXiv:2006.11239, equations 6 and 7."""
    levels = uneven_levels(7)
    for row, s, t in zip(trace(DDIM(1.0), levels, VP).rows, levels, levels[1:], strict=False):
        a_s, a_t = s.alpha**2, t.alpha**2
        beta = 1 - a_s / a_t
        of_x = math.sqrt(1 - beta) * (1 - a_t) / (1 - a_s)
        of_x0 = math.sqrt(a_t) * beta / (1 - a_s)
        assert close(over_x_and_x0(row), (of_x, of_x0, math.sqrt((1 - a_t) / (1 - a_s) * beta)))


@pytest.mark.parametrize("solver_type", ["midpoint", "taylor"])
@pytest.mark.parametrize("eta", ETAS)
def test_sde_2m_is_the_published_transition(eta, solver_type):
    """x_t = sigma_t / sigma_s e^{-eta h} x + alpha_t (1 - e^{-H}) m0 + alpha_t w (m0 - m1) / r
    + sigma_t sqrt(1 - e^{-2 eta h}) z with H = (1 + eta) h; tick 0 has no m1 and is the first-order solver."""
    levels = uneven_levels(7)
    lams = [math.log(level.alpha / level.sigma) for level in levels]
    rows = trace(SDEDPMpp2M(eta, solver_type, lower_order_final=False), levels, VP).rows
    for i, (row, (s, t)) in enumerate(zip(rows, itertools.pairwise(levels), strict=True)):
        h = lams[i + 1] - lams[i]
        H = (1 + eta) * h
        second = 0.0
        if i:
            r = (lams[i] - lams[i - 1]) / h
            w = (1 - math.exp(-H)) / 2 if solver_type == "midpoint" else 1 - (1 - math.exp(-H)) / H
            second = t.alpha * w / r
            assert math.isclose(coefficients(row)["carry0"], -second, rel_tol=1e-12)
        of_x = t.sigma / s.sigma * math.exp(-eta * h)
        of_x0 = t.alpha * (1 - math.exp(-H)) + second
        assert close(over_x_and_x0(row), (of_x, of_x0, t.sigma * math.sqrt(1 - math.exp(-2 * eta * h))))
        assert coefficients(rows[i])["noise"] > 0 and row.coefficients[1] == (0.0, 1.0, *(0.0,) * (len(row.inputs) - 2))


# ---------------------------------------------------------------- Gaussian data: mean and covariance

MEAN0 = torch.tensor([0.4, -0.6], dtype=DOUBLE)
COV0 = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=DOUBLE)
EYE = torch.eye(2, dtype=DOUBLE)


def marginal(level):
    """Mean and covariance of alpha x0 + sigma eps."""
    return level.alpha * MEAN0, level.alpha**2 * COV0 + level.sigma**2 * EYE


def gain(level):
    return level.alpha * COV0 @ torch.linalg.inv(marginal(level)[1])


class Gaussian:
    """E[x0 | x] of N(MEAN0, COV0)."""

    schedule, parametrisation = VP, X0

    def __call__(self, x, level, branches, rows=None):
        return (MEAN0 + (x - level.alpha * MEAN0) @ gain(level).T,)


def propagated(table, mean, cov):
    """Mean and covariance at the end of `table`, exactly: every tick is affine in (x, carry, noise)."""
    for row in table.rows:  # of (x, carry) stacked, 2 numbers a vector
        s, K = row.level, gain(row.level)
        vectors, width = len(row.coefficients), mean.numel()
        k0 = MEAN0 - s.alpha * K @ MEAN0  # x0 = K x + k0 and eps = (x - alpha x0) / sigma
        A = torch.zeros(2 * vectors, width, dtype=DOUBLE)
        b, N = torch.zeros(2 * vectors, dtype=DOUBLE), torch.zeros(2 * vectors, 2, dtype=DOUBLE)
        for k, (cx, cx0, ceps, *carry, cn) in enumerate(row.coefficients):
            lines = slice(2 * k, 2 * k + 2)
            A[lines, :2] = cx * EYE + cx0 * K + ceps * (EYE - s.alpha * K) / s.sigma
            b[lines] = cx0 * k0 - ceps * s.alpha * k0 / s.sigma
            for j, c in enumerate(carry):
                A[lines, 2 * j + 2 : 2 * j + 4] += c * EYE
            N[lines] = cn * EYE
        mean, cov = A @ mean + b, A @ cov @ A.T + N @ N.T
    return mean[:2], cov[:2, :2]


@pytest.mark.parametrize("solver", [DDIM(0.5), DDIM(1.0), SDEDPMpp2M(), SDEDPMpp2M(0.5, "taylor")], ids=repr)
def test_samples_have_the_propagated_moments(solver):
    """The engine and the tape do what the rows say (the rows themselves: above): 1e5 samples, 4 standard errors."""
    count = 100_000
    table = trace(solver, uniform_lambda(VP, 6, to_zero=False), VP)
    x = torch.randn(count, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    found = solve(table, Gaussian(), x, tape=tape(6)).x
    mean, cov = propagated(table, torch.zeros(2, dtype=DOUBLE), EYE)
    assert torch.all((found.mean(0) - mean).abs() < 4 * (cov.diag() / count).sqrt())
    error = ((cov.diag()[:, None] * cov.diag()[None] + cov**2) / count).sqrt()
    assert torch.all((torch.cov(found.T) - cov).abs() < 4 * error)


@pytest.mark.parametrize(("solver", "order", "bound"), [
    (DDIM(0.5), 1, 2e-2),
    (DDIM(1.0), 1, 3e-2),
    (SDEDPMpp2M(0.5), 2, 4e-4),
    (SDEDPMpp2M(1.0), 2, 6e-4),
    (SDEDPMpp2M(0.5, "taylor"), 2, 8e-4),
    (SDEDPMpp2M(1.0, "taylor"), 2, 1.2e-3),
], ids=repr)  # fmt: skip
def test_moments_converge_to_the_exact_marginal(solver, order, bound):
    """From the exact marginal at the start, without sampling: the end's covariance converges to the exact one at the
    solver's weak order, and the mean is exact at every n (the data's mean path has constant x0).

    Weak order measured, n = 50, 100, 200: DDIM 0.94 (eta 1) and 0.96 (eta 0.5), SDE-2M 1.98 to 2.04: its drift is of
    order 2 and noise is exact for Gaussians. `bound` is 1.3 to 1.7 times the error at n = 200 (a covariance of 0.5).
    """
    errors = []
    for n in (50, 100, 200):
        levels = uniform_lambda(VP, n, to_zero=False)
        mean, cov = propagated(trace(solver, levels, VP), *marginal(levels[0]))
        exact_mean, exact_cov = marginal(levels[-1])
        assert float((mean - exact_mean).abs().max()) < 1e-12
        errors.append(float((cov - exact_cov).abs().max()))
    assert math.log2(errors[0] / errors[-1]) / 2 >= order - 0.15
    assert errors[-1] < bound
