"""Every solver as a state machine: purity, edits, late starts, inversion; and the moments of the stochastic ones."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import ConfigError, NumericsError
from fewstep.samplers import (
    DDIM,
    EPS,
    FLOW,
    X0,
    DPMpp2M,
    Euler,
    Outputs,
    Prediction,
    RectifiedFlow,
    SDEDPMpp2M,
    advance,
    edit,
    predict,
    solve,
    start,
    trace,
    uniform_lambda,
    uniform_time,
)

from .problems import Mixture
from .solver_rows import DOUBLE, VP, every, every_ode, relative, states, tape, uneven_levels


@every
def test_advance_is_pure(row):
    network, x = Mixture(VP), states(2, 3)
    table = trace(row.solver, uneven_levels(5), VP)
    state = start(table, x)
    noise = states(2, 3, seed=1)
    while state.tick < len(table):
        level = table.plan.nodes[state.tick]
        outputs = Outputs(state.x, level, network(state.x, level, ("cond",)), EPS)
        before = [t.clone() for t in (state.x, *state.carry, *outputs.tensors, noise)]
        first, second = advance(table, state, outputs, noise), advance(table, state, outputs, noise)
        after = (state.x, *state.carry, *outputs.tensors, noise)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(torch.equal(a, b) for a, b in zip((first.x, *first.carry), (second.x, *second.carry), strict=True))
        state = first


@every
def test_an_edit_reaches_the_next_state(row):
    """`keeps_edits` says the truth: with x0 held fixed (eps following), does the next state move with x? The
    first-order step moves by sigma_t / sigma_s; UniPC and 2S's inner tick by nothing, Heun's inner tick backwards."""
    table = trace(row.solver, uneven_levels(6), VP)
    reaches = []
    for tick, s, t in list(zip(table.rows, table.plan.nodes, table.plan.targets, strict=True))[1:]:
        x, eps = tick.coefficients[0][0], tick.coefficients[0][2]
        reaches.append(x + eps / s.sigma > 0.05 * t.sigma / s.sigma)
    assert all(reaches) == row.solver.keeps_edits == table.keeps_edits
    network, x = Mixture(VP), states(2, 3)
    state = start(table, x)
    for i in range(4):
        level = table.plan.nodes[i]
        outputs = Outputs(state.x, level, network(state.x, level, ("cond",)), EPS)
        state = advance(table, state, outputs, torch.zeros_like(x))
    level = table.plan.nodes[4]
    x0 = predict(EPS, level, state.x, network(state.x, level, ("cond",))[0]).x0
    moved = []
    for shift in (0.0, 0.5):
        edited = edit(table, state, state.x + shift)
        p = Prediction(x0, (edited.x - level.alpha * x0) / level.sigma)
        moved.append(advance(table, edited, p, torch.zeros_like(x)).x)
    assert float((moved[1] - moved[0]).abs().min()) > 1e-3


@every
def test_every_tick_accepts_an_empty_carry(row):
    """Image-to-image, edits and order reduction start anywhere, inner stages included."""
    network, x = Mixture(VP), states(2, 3)
    table = trace(row.solver, uneven_levels(6), VP)
    exact = network.flow(x, table.plan.nodes[0], table.plan.targets[-1])
    for i in range(len(table)):
        begin = network.flow(x, table.plan.nodes[0], table.plan.nodes[i])
        before = network.calls
        end = solve(table, network, begin, first_tick=i, tape=tape() if row.noisy else None)
        idle = not table.row(i).evaluates  # Heun's inner tick without its carry only passes x on
        assert end.report.evaluations == network.calls - before == len(table) - i - idle
        assert bool(end.x.isfinite().all())
        if not row.noisy:
            assert float((end.x - exact).abs().max()) < 0.6


@every_ode
def test_inversion_from_sigma_zero_and_back(row):
    """Up from the clean image and down again; the error falls at the method's order."""
    schedule = RectifiedFlow()
    x, gaps = 0.5 * states(32), []
    for n in (40, 80):
        up = tuple(schedule.level(0.9 * k / n) for k in range(n + 1))
        network = Mixture(schedule, FLOW)
        noisy = solve(trace(row.solver, up, schedule), network, x).x
        back = solve(trace(row.solver, up[::-1], schedule), network, noisy).x
        gaps.append(float((back - x).abs().max()))
    assert gaps[1] < 0.7 * gaps[0] < 0.3


def test_eta_cannot_go_up():
    levels = uneven_levels(4)[::-1]
    for solver in (DDIM(1.0), SDEDPMpp2M()):
        with pytest.raises(ConfigError, match="inversion"):
            trace(solver, levels, VP)


@every
def test_autocast_changes_nothing(row):
    network, x = Mixture(VP), states(2, 3).float()
    table = trace(row.solver, uneven_levels(4), VP)

    def run():
        return solve(table, network, x, tape=tape() if row.noisy else None).x

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run()
    assert plain.dtype == torch.float32 and torch.equal(plain, cast)


def test_euler_is_ddim():
    levels, x = uniform_lambda(VP, 10), states(8)
    ends = [solve(trace(solver, levels, VP), Mixture(VP), x).x for solver in (Euler(), DDIM())]
    assert relative(ends[0], ends[1]) < 1e-12


def test_eta_zero_is_the_ode():
    levels, x = uniform_lambda(VP, 10), states(8)
    ends = [solve(trace(solver, levels, VP), Mixture(VP), x).x for solver in (SDEDPMpp2M(0.0), DPMpp2M())]
    assert torch.equal(*ends)


def test_what_does_not_exist_is_refused_by_name():
    flow = RectifiedFlow()
    levels = uniform_time(flow, 4)
    with pytest.raises(NumericsError, match=r"x0 from a noise prediction .*alpha 0"):
        solve(trace(DDIM(), levels, flow), Mixture(flow, EPS), states(2))
    with pytest.raises(NumericsError, match="eps from an x0 prediction"):
        solve(trace(DDIM(), levels[::-1], flow), Mixture(flow, X0), states(2))


# ---------------------------------------------------------------- stochastic solvers


@pytest.mark.parametrize("solver", [DDIM(0.5), DDIM(1.0), SDEDPMpp2M(), SDEDPMpp2M(0.5, "taylor")], ids=repr)
def test_sde_moments(solver):
    """For Gaussian data every tick is affine in (x, carry, noise): mean and covariance of the whole state are
    propagated exactly through the table's rows and must equal those of 1e5 samples within 4 standard errors."""
    mean0, cov0 = torch.tensor([0.4, -0.6], dtype=DOUBLE), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=DOUBLE)
    eye, count = torch.eye(2, dtype=DOUBLE), 100_000

    def gain(level):
        return level.alpha * cov0 @ torch.linalg.inv(level.alpha**2 * cov0 + level.sigma**2 * eye)

    class Gaussian:
        schedule, parametrisation = VP, X0

        def __call__(self, x, level, branches, rows=None):
            return (mean0 + (x - level.alpha * mean0) @ gain(level).T,)

    table = trace(solver, uniform_lambda(VP, 6, to_zero=False), VP)
    x = torch.randn(count, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    found = solve(table, Gaussian(), x, tape=tape(6)).x

    mean, cov = torch.zeros(2, dtype=DOUBLE), eye.clone()  # of (x, carry) stacked, 2 numbers a vector
    for row in table.rows:
        s, K = row.level, gain(row.level)
        vectors, width = len(row.coefficients), mean.numel()
        # x0 = K x + k0 and eps = (x - alpha x0) / sigma as maps of the stacked state
        k0 = mean0 - s.alpha * K @ mean0
        A = torch.zeros(2 * vectors, width, dtype=DOUBLE)
        b, N = torch.zeros(2 * vectors, dtype=DOUBLE), torch.zeros(2 * vectors, 2, dtype=DOUBLE)
        for k, (cx, cx0, ceps, *carry, cn) in enumerate(row.coefficients):
            lines = slice(2 * k, 2 * k + 2)
            A[lines, :2] = cx * eye + cx0 * K + ceps * (eye - s.alpha * K) / s.sigma
            b[lines] = cx0 * k0 - ceps * s.alpha * k0 / s.sigma
            for j, c in enumerate(carry):
                A[lines, 2 * j + 2 : 2 * j + 4] += c * eye
            N[lines] = cn * eye
        mean, cov = A @ mean + b, A @ cov @ A.T + N @ N.T
    mean, cov = mean[:2], cov[:2, :2]
    assert torch.all((found.mean(0) - mean).abs() < 4 * (cov.diag() / count).sqrt())
    sampled = torch.cov(found.T)
    error = ((cov.diag()[:, None] * cov.diag()[None] + cov**2) / count).sqrt()
    assert torch.all((sampled - cov).abs() < 4 * error)
