"""Stochastic solvers, one tick at a time: coefficients against the papers' formulas. Moments: test_sde_moments."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.samplers import (
    DDIM,
    DPM2S,
    X0,
    DPM2Ancestral,
    DPMpp2M,
    DPMpp2S,
    DPMpp2SAncestral,
    DPMpp3M,
    DPMppSDE,
    Outputs,
    RectifiedFlow,
    SDEDPMpp1,
    SDEDPMpp2M,
    SDEDPMpp3M,
    State,
    advance,
    level_at,
    trace,
    uniform_time,
)

from .problems import Polynomial
from .solver_rows import VP, relative, states, uneven_levels

ETAS = (0.3, 0.5, 1.0)
STOCHASTIC = [DDIM(1.0), SDEDPMpp1(), SDEDPMpp2M(), SDEDPMpp3M(), DPMppSDE(), DPM2Ancestral(), DPMpp2SAncestral()]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_eta_cannot_go_up(solver):
    with pytest.raises(ConfigError, match="inversion"):
        trace(solver, uneven_levels(4)[::-1], VP)


@pytest.mark.parametrize(("solver", "ode"), [
    (SDEDPMpp1(0.0), DDIM()),
    (SDEDPMpp2M(0.0), DPMpp2M()),
    (SDEDPMpp2M(0.0, "taylor"), DPMpp2M("taylor")),
    (SDEDPMpp3M(0.0), DPMpp3M()),
    (DPMppSDE(0.0), DPMpp2S()),
    (DPMppSDE(0.0, 0.3), DPMpp2S(0.3)),
    (DPM2Ancestral(0.0), DPM2S()),
    (DPMpp2SAncestral(0.0), DPMpp2S()),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("levels", [
    uneven_levels(7), uneven_levels(7)[::-1], uniform_time(RectifiedFlow(), 5), uniform_time(RectifiedFlow(), 1)
], ids=["down", "up", "flow", "flow-1"])  # fmt: skip
def test_eta_zero_is_the_ode(solver, ode, levels):
    """Bit for bit: the same plan and the same coefficients, at every carry length; so no noise either."""
    schedule = RectifiedFlow() if float(levels[0].alpha) == 0.0 else VP
    found, expected = trace(solver, levels, schedule), trace(ode, levels, schedule)
    assert found.plan == expected.plan and found.all_rows() == expected.all_rows()
    assert not any(found.noisy)


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_noise_ends_with_the_run(solver):
    """The last step, to sigma = 0, draws none and makes alpha_t x0; all others draw, the one from alpha = 0 too."""
    flow = RectifiedFlow()
    table = trace(solver, uniform_time(flow, 4), flow)
    drawn = {table.plan.step[i]: 0.0 for i in range(len(table))}
    for i, row in enumerate(table.rows):
        drawn[table.plan.step[i]] += abs(row.coefficients[0][-1])
    assert [drawn[k] > 0.0 for k in range(4)] == [True, True, True, False]
    assert table.rows[-1].coefficients[0][:3] == (0.0, 1.0, 0.0)


def test_eta_has_a_range():
    beyond = {SDEDPMpp1: 1.1, SDEDPMpp2M: 1.1, SDEDPMpp3M: 1.1}
    for solver in (SDEDPMpp1, SDEDPMpp2M, SDEDPMpp3M, DPMppSDE, DPM2Ancestral, DPMpp2SAncestral):
        for bad in (-0.1, math.nan, beyond.get(solver, math.inf)):
            with pytest.raises(ConfigError, match="eta must"):
                solver(bad)
    with pytest.raises(ConfigError, match="r must"):
        DPMppSDE(r=1.0)


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


@pytest.mark.parametrize("eta", ETAS)
def test_sde_1_is_the_published_transition(eta):
    """x_t = sigma_t / sigma_s e^{-eta h} x + alpha_t (1 - e^{-(1 + eta) h}) x0 + sigma_t sqrt(1 - e^{-2 eta h}) z."""
    levels = uneven_levels(7)
    for row, s, t in zip(trace(SDEDPMpp1(eta), levels, VP).rows, levels, levels[1:], strict=False):
        h = t.lam - s.lam
        of_x, of_x0 = t.sigma / s.sigma * math.exp(-eta * h), t.alpha * (1 - math.exp(-(1 + eta) * h))
        assert close(over_x_and_x0(row), (of_x, of_x0, t.sigma * math.sqrt(1 - math.exp(-2 * eta * h))))


def test_sde_1_with_eta_one_is_ddpm():
    levels = uneven_levels(7)
    for ours, ddpm in zip(trace(SDEDPMpp1(), levels, VP).rows, trace(DDIM(1.0), levels, VP).rows, strict=True):
        assert close(ours.coefficients[0], ddpm.coefficients[0])


# ---------------------------------------------------------------- the drift, on polynomials


@dataclass
class DriftOnly:
    """The mean of the SDE of eta where x0 = P(lam) whatever x is, with k = 1 + eta:

    x_t = (sigma_t / sigma_s) e^{-eta h} x_s + sigma_t e^{-eta lam_t} int_{lam_s}^{lam_t} k e^{k l} P(l) dl.
    """

    eta: float
    coefficients: tuple[float, ...]

    def primitive(self, lam):
        k, total, derivative = 1.0 + self.eta, 0.0, list(self.coefficients)
        for j in range(len(self.coefficients)):
            total += (-1.0) ** j / k**j * sum(c * lam**n for n, c in enumerate(derivative))
            derivative = [n * c for n, c in enumerate(derivative)][1:]
        return math.exp(k * lam) * total

    def flow(self, x, s, t):
        of_x = t.sigma / s.sigma * math.exp(-self.eta * (t.lam - s.lam))
        return of_x * x + t.sigma * math.exp(-self.eta * t.lam) * (self.primitive(t.lam) - self.primitive(s.lam))


def drift_error(solver, degree, history):
    """Relative error of a run without noise on a polynomial x0, with full history from the start."""
    coefficients = (0.7, -0.4, 0.31, 0.22)[: degree + 1]
    levels, network = uneven_levels(9), Polynomial(VP, X0, coefficients)
    table, exact = trace(solver, levels, VP), DriftOnly(solver.eta, coefficients)
    x = states(2, 3)
    carry = tuple(torch.full_like(x, network.value(levels[k].lam)) for k in reversed(range(history)))
    state = State(history, exact.flow(x, levels[0], levels[history]), carry)
    while state.tick < len(table):
        level = levels[state.tick]
        outputs = Outputs(state.x, level, network(state.x, level, ("cond",)), X0)
        state = advance(table, state, outputs, torch.zeros_like(x))
    return relative(state.x, exact.flow(x, levels[0], levels[-1]))


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize(("kind", "arguments", "degree", "history"), [
    (SDEDPMpp1, (), 0, 0),
    (SDEDPMpp2M, ("midpoint", False), 0, 1),
    (SDEDPMpp2M, ("taylor", False), 1, 1),
    (SDEDPMpp3M, (False,), 2, 2),
], ids=["sde-1", "sde-2m", "sde-2m-taylor", "sde-3m"])  # fmt: skip
def test_the_drift_is_exact_for_polynomials(eta, kind, arguments, degree, history):
    """For x0 of the method's degree in lam the drift is the SDE's, whatever eta; for the next degree it is not."""
    solver = kind(eta, *arguments)
    assert all(drift_error(solver, d, history) < 1e-12 for d in range(degree + 1))
    assert drift_error(solver, degree + 1, history) > 1e-6


@pytest.mark.parametrize("factor", [1.0, -2.0], ids=["without Taylor's factor 2", "wrong sign"])
def test_faults_of_released_3m_are_found(monkeypatch, factor):
    """k-diffusion and diffusers leave out the 2; in diffusers 0.42.1 the term also has another sign."""
    from fewstep.samplers import sde

    right = sde.two_differences
    monkeypatch.setattr(sde, "two_differences", lambda *a: right(*a, factor=factor))
    assert drift_error(SDEDPMpp3M(1.0, False), 2, 2) > 1e-4


@pytest.mark.parametrize("eta", ETAS)
def test_history_matters_less_in_shorter_steps(eta):
    """3M's weights of remembered predictions vanish like h; with a wrong sign inside g_2 they tend to a constant."""
    for h in (1e-1, 1e-2, 1e-3, 1e-4):
        levels = tuple(level_at(VP, -0.5 + h * k) for k in range(5))
        row = trace(SDEDPMpp3M(eta, False), levels, VP).rows[3]
        weights = coefficients(row)
        H = (1 + eta) * h
        assert abs(weights["carry0"]) + abs(weights["carry1"]) < 2.0 * H * row.level.alpha * 1.1
