"""Every solver as a state machine: purity, edits, late starts, inversion, restarts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fewstep.errors import NumericsError
from fewstep.samplers import (
    DDIM,
    EPS,
    FLOW,
    X0,
    Euler,
    Outputs,
    Prediction,
    RectifiedFlow,
    advance,
    edit,
    level_at,
    predict,
    solve,
    start,
    trace,
    uniform_lambda,
    uniform_time,
)

from .problems import Mixture
from .solver_rows import VP, every, every_ode, relative, states, tape, uneven_levels


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
    for i in range(len(table)):
        begin = network.flow(x, table.plan.nodes[0], table.plan.nodes[i])
        before = network.calls
        end = solve(table, network, begin, first_tick=i, tape=tape() if row.noisy else None)
        idle = not table.row(i).evaluates  # Heun's inner tick without its carry only passes x on
        assert end.report.evaluations == network.calls - before == len(table) - i - idle
        assert bool(end.x.isfinite().all())


def cold_order(row) -> float:
    """The order of a run that begins without history: its first step is of first order, so it errs by h^2 once; a
    corrector repairs that step to h^3."""
    return min(row.order, 3 if row.corrected >= 0 else 2)


def slope(errors: list[float]) -> float:
    """The order, from the errors of two runs of which the second has four times as many steps."""
    coarse, fine = errors
    return math.log2(coarse / fine) / 2


def error_of(row, levels, schedule, parametrisation, x, first_tick=0) -> float:
    """Against the exact flow, of a run that begins at `first_tick` with the exact x and no carry."""
    network = Mixture(schedule, parametrisation)
    table = trace(row.solver, levels, schedule)
    begin = network.flow(x, levels[0], table.plan.nodes[first_tick])
    found = solve(table, network, begin, first_tick=first_tick).x
    assert bool(found.isfinite().all())
    return float((found - network.flow(x, levels[0], levels[-1])).abs().max())


@every_ode
@pytest.mark.parametrize("fraction", [0.25, 0.75])
def test_a_late_start_converges(row, fraction):
    """Begun at the same fraction of the run, at every stage, the error falls at the order of a cold start."""
    for stage in range(row.ticks_a_step):
        errors = []
        for n in (24, 96):
            levels = tuple(level_at(VP, -2.5 + 4.0 * k / n) for k in range(n + 1))
            first = row.ticks_a_step * int(fraction * n) + stage
            errors.append(error_of(row, levels, VP, EPS, 0.5 * states(32), first))
        assert slope(errors) >= cold_order(row) - 0.15


@every_ode
def test_inversion_from_sigma_zero_and_back(row):
    """Up from the clean image: at the method's full order against the exact flow. Down again: at the order of a
    cold start, since that run begins at t = 0.9 without history. Up and down: the same image.

    The nodes are quadratic in k: with equal steps of t the first h in lam do not shrink (log 2, log 3/2, ...), which
    holds every method to order 2, with a logarithm. The first step, to t = 0.9 / n^2, is of first order: an error of
    n^-4 that no method is better than.
    """
    schedule, x = RectifiedFlow(), 0.5 * states(32)
    there, gaps = [], []
    for n in (60, 240):
        up = tuple(schedule.level(0.9 * (k / n) ** 2) for k in range(n + 1))
        network = Mixture(schedule, FLOW)
        down, exact = trace(row.solver, up[::-1], schedule), network.flow(x, up[0], up[-1])
        noisy = solve(trace(row.solver, up, schedule), network, x).x
        there.append(float((noisy - exact).abs().max()))
        gaps.append(float((solve(down, network, exact).x - x).abs().max()))
    both_ways = float((solve(down, network, noisy).x - x).abs().max())
    assert slope(there) >= min(row.order, 4) - 0.3
    assert slope(gaps) >= cold_order(row) - 0.3
    assert both_ways < (0.02 if row.order == 1 else 2e-4)


@every_ode
def test_inversion_to_pure_noise(row):
    """From sigma = 0 up to alpha = 0, both ends with an infinite lam: the steps at either end are of first order."""
    flow, errors = RectifiedFlow(), []
    for n in (20, 80):
        levels = (*(flow.level(math.sin(0.5 * math.pi * k / n) ** 2) for k in range(n)), flow.noisiest)
        errors.append(error_of(row, levels, flow, FLOW, 0.5 * states(32)))
    assert slope(errors) >= min(row.order, 2) - 0.3


@every_ode
def test_down_up_down(row):
    """Restarts: history ends at a turn, so after each one the run is a cold start again (coarsest: the turns alone)."""
    several = (8, 32) if row.of == "x0" else (16, 64)
    flow, turns, errors = RectifiedFlow(), (0.9, 0.5, 0.9, 0.5, 0.3, 0.2, 0.1), []
    for n in (1, *several):
        inner = (a + (b - a) * k / n for a, b in itertools.pairwise(turns) for k in range(n))
        levels = tuple(flow.level(time) for time in (*inner, turns[-1]))
        errors.append(error_of(row, levels, flow, FLOW, 0.5 * states(32)))
    assert slope(errors[1:]) >= min(row.order, 2) - 0.15


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


def test_what_does_not_exist_is_refused_by_name():
    flow = RectifiedFlow()
    levels = uniform_time(flow, 4)
    with pytest.raises(NumericsError, match=r"x0 from a noise prediction .*alpha 0"):
        solve(trace(DDIM(), levels, flow), Mixture(flow, EPS), states(2))
    with pytest.raises(NumericsError, match="eps from an x0 prediction"):
        solve(trace(DDIM(), levels[::-1], flow), Mixture(flow, X0), states(2))
