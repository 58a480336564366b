"""DPM-Solver-v3: its order for any statistics, its degenerate cases, and the many ways to run it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance.cfg import CFG
from fewstep.samplers import (
    DDIM,
    DPM2M,
    DPM3M,
    EDM,
    EPS,
    FLOW,
    DPMpp2M,
    DPMpp3M,
    DPMv3,
    DPMv3Corrected,
    EmpiricalStatistics,
    Level,
    RectifiedFlow,
    UniPC,
    V,
    edm,
    karras,
    predict,
    solve,
    solve_v3,
    trace,
    uniform_lambda,
    uniform_time,
)
from fewstep.samplers import dpm_v3 as module
from fewstep.samplers.dpm_v3 import nonlinear

from .dpm_v3_problems import PolynomialG, per_element, wavy
from .problems import Mixture
from .solver_rows import DOUBLE, VP, eager, relative, states, uneven_levels

DATA = EmpiricalStatistics.constant(1.0, 0.0)
NOISE = EmpiricalStatistics.constant(0.0, -1.0)


WAVY = wavy()


# ---------------------------------------------------------------- degenerate cases


LEVELS = {
    "uneven": (VP, EPS, uneven_levels(9)),
    "rising": (VP, EPS, uneven_levels(9)[::-1]),
    "to-zero": (VP, V, uniform_lambda(VP, 9)),
    "flow": (RectifiedFlow(), FLOW, uniform_time(RectifiedFlow(), 9)),
}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(
    ("statistics", "order", "same"),
    [(DATA, 1, DDIM()), (DATA, 2, DPMpp2M("taylor")), (DATA, 3, DPMpp3M())]
    + [(NOISE, 1, DDIM()), (NOISE, 2, DPM2M("taylor")), (NOISE, 3, DPM3M())],
)
def test_constant_statistics_are_data_and_noise_prediction(statistics, order, same, levels):
    schedule, parametrisation, nodes = LEVELS[levels]
    network, x = Mixture(schedule, parametrisation), states(2, 5)
    found, expected = (solve(trace(s, nodes, schedule), network, x).x for s in (DPMv3(statistics, order), same))
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_raised_corrector_with_data_prediction_is_unipc_without_its_substitutions(order):
    network, nodes, x = Mixture(VP), uneven_levels(9), states(2, 5)
    ours = DPMv3Corrected(DATA, order, corrector="raised")
    found, expected = (solve(trace(s, nodes, VP), network, x).x for s in (ours, UniPC(order, "vary")))
    assert relative(found, expected) < 1e-12


# ---------------------------------------------------------------- order


def warm_run(solver, network, levels, x, history: int):
    """The last state of a run that begins at tick `history` with exact states and an exact carry."""
    plan = solver.plan(levels, network.schedule)
    xs = [network.flow(x, levels[0], node) for node in levels[: history + 1]]
    fs, ys = [], []
    for node, y in zip(levels[:history], xs, strict=False):
        p = predict(network.parametrisation, node, y, network(y, node, ("cond",))[0])
        fs.append(nonlinear(solver.statistics, node, p))
        ys.append(y / node.alpha)
    carry = tuple(reversed(fs))
    if isinstance(solver, DPMv3Corrected) and history:
        carry = (ys[-1], *carry)
    x = xs[history]
    for i in range(history, len(plan)):
        p = predict(network.parametrisation, plan.nodes[i], x, network(x, plan.nodes[i], ("cond",))[0])
        x, carry = solver.step(plan, i, x, p, carry)
    return x


def polynomial_error(solver, degree: int, history: int) -> float:
    network, levels, x = PolynomialG((0.7, -0.4, 0.31, 0.22)[: degree + 1]), uneven_levels(8), states(2, 3)
    found = warm_run(solver, network, levels, x, history)
    return relative(found, network.flow(x, levels[0], levels[-1]))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomial_g_is_solved_exactly(order):
    statistics = EmpiricalStatistics.constant(0.4, -0.7, 0.3)
    solver = DPMv3(statistics, order, lower_order_final=False)
    for degree in range(order):
        assert polynomial_error(solver, degree, history=order - 1) < 1e-12
    assert polynomial_error(solver, order, history=order - 1) > 1e-5
    raised = DPMv3Corrected(statistics, order, lower_order_final=False, corrector="raised")
    assert polynomial_error(raised, order - 1, history=order) < 1e-12


ORDERS = [(DPMv3(WAVY, n, lower_order_final=False), n, n - 1) for n in (1, 2, 3)]
ORDERS += [
    (DPMv3Corrected(WAVY, n, lower_order_final=False, corrector=name), order, history)
    for n, name, order, history in (
        [(n, "raised", n + 1, n) for n in (1, 2, 3)] + [(3, "same", 3, 2), (3, "pseudo", 2, 3)]
    )
]


def slope(solver, history: int, steps=(64, 128)) -> float:
    network, x, errors = Mixture(VP), states(32), []
    for n in steps:
        levels = uniform_lambda(VP, n, to_zero=False)
        found = warm_run(solver, network, levels, x, history)
        errors.append(float((found - network.flow(x, levels[0], levels[-1])).abs().max()))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(("solver", "order", "history"), ORDERS)
def test_order_of_convergence_for_any_statistics(solver, order, history):
    """The theorem (3.3): smooth statistics that belong to no model change the error, not the order."""
    assert slope(solver, history) >= order - 0.15


def test_a_planted_fault_is_found(monkeypatch):
    """g without the factor e^{-S} at earlier nodes."""
    right = module.coefficients
    monkeypatch.setattr(module, "coefficients", lambda *a: (c := right(*a))._replace(scales=(1.0,) * len(c.scales)))
    assert slope(DPMv3(WAVY, 3, lower_order_final=False), 2) < 2.5
    assert polynomial_error(DPMv3(EmpiricalStatistics.constant(0.4, -0.7, 0.3), 2), 1, 1) > 1e-4


# ---------------------------------------------------------------- one run, many ways


@pytest.mark.parametrize("solver", [DPMv3, DPMv3Corrected])
def test_table_eager_and_per_element_agree(solver):
    scalar = wavy(200).without_bias()
    network, levels, x = Mixture(VP, V), uniform_lambda(VP, 7), states(2, 3, 2)
    found = solve(trace(solver(scalar), levels, VP), network, x)
    own = solve_v3(solver(scalar), network, levels, x)
    elements = solve_v3(solver(per_element(scalar, 3, 2)), network, levels, x)
    assert relative(own.x, found.x) < 1e-12
    assert relative(own.x, eager(solver(scalar), levels, network, x)) < 1e-12
    assert relative(elements.x, found.x) < 1e-12
    assert own.report.evaluations == found.report.evaluations == 7
    assert own.report.nfe == found.report.nfe == 14


def test_every_element_has_its_own_statistics():
    lam, factor = WAVY.lam[::10], torch.tensor([0.5, 1.0, 1.5], dtype=DOUBLE)
    columns = [v[::10, None] * factor for v in (WAVY.l, WAVY.s, WAVY.b)]
    network, levels, x = Mixture(VP), uniform_lambda(VP, 6), states(4, 3)
    found = solve_v3(DPMv3Corrected(EmpiricalStatistics.of(lam, *columns)), network, levels, x).x
    for j in range(3):
        alone = EmpiricalStatistics.of(lam, *(c[:, j] for c in columns))
        assert relative(found[:, j], solve_v3(DPMv3Corrected(alone), network, levels, x[:, j : j + 1]).x[:, 0]) < 1e-12


def test_float32_stays_float32_and_inputs_stay_as_they_are():
    statistics, levels, x = per_element(wavy(200), 3), uniform_lambda(VP, 6), states(4, 3)
    before = x.clone()
    exact = solve_v3(DPMv3Corrected(statistics), Mixture(VP), levels, x).x
    found = solve_v3(DPMv3Corrected(statistics), Mixture(VP), levels, x.float()).x
    assert found.dtype == torch.float32 and torch.equal(x, before)
    assert torch.equal(exact, solve_v3(DPMv3Corrected(statistics), Mixture(VP), levels, x).x)
    assert relative(found.double(), exact) < 1e-4  # the first states are 100 times x0


@pytest.mark.parametrize(
    "setting", [(EDM(), edm(), karras), (RectifiedFlow(), FLOW, uniform_time)], ids=["edm", "flow"]
)
@pytest.mark.parametrize("solver", [DPMv3, DPMv3Corrected])
@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_short_runs_from_noise_to_sigma_zero(solver, setting, n):
    """alpha = 0 at the start of flows, sigma = 0 at the end; both ends are steps of the first order."""
    schedule, parametrisation, levels_of = setting
    statistics = EmpiricalStatistics.constant(0.8, -0.3)
    network, levels = Mixture(schedule, parametrisation), levels_of(schedule, n)
    x = states(16) * levels[0].sigma
    found = solve(trace(solver(statistics), levels, schedule), network, x).x
    assert bool(found.isfinite().all()) and float(found.abs().max()) < 10.0
    assert relative(found, eager(solver(statistics), levels, network, x)) < 1e-11
    if n == 1:
        assert relative(found, solve(trace(DDIM(), levels, schedule), network, x).x) < 1e-12


@pytest.mark.parametrize("solver", [DPMv3, DPMv3Corrected])
def test_keeps_edits_says_the_truth(solver):
    """With x0 held fixed (eps following), an edit of x should move the next state by sigma_t / sigma_s. It does in data
    prediction, but f holds (1 - l) eps, which an edit makes jump."""
    moved = {}
    for name, statistics in (("data", DATA), ("noise", NOISE)):
        table = trace(solver(statistics), uneven_levels(6), VP)
        ticks = list(zip(table.rows, table.plan.nodes, table.plan.targets, strict=True))[1:]
        moved[name] = all(
            abs(row.coefficients[0][0] + row.coefficients[0][2] / s.sigma - t.sigma / s.sigma) < 1e-12
            for row, s, t in ticks
        )
    assert moved == {"data": solver is DPMv3, "noise": False} and not solver.keeps_edits


@dataclass
class Guided(Mixture):
    """Another mixture for the branch "uncond"."""

    def __call__(self, x, level, branches, rows=None):
        other = Mixture(self.schedule, self.parametrisation, weights=(0.9, 0.1))
        return tuple((super(Guided, self).__call__ if b == "cond" else other)(x, level, (b,))[0] for b in branches)


def test_guidance():
    network, levels, x = Guided(VP), uniform_lambda(VP, 6), states(4, 3)
    scalar = wavy(200).without_bias()
    table = solve(trace(DPMv3(scalar), levels, VP), network, x, guidance=CFG(3.0))
    own = solve_v3(DPMv3(per_element(scalar, 3)), network, levels, x, guidance=CFG(3.0))
    assert relative(own.x, table.x) < 1e-11 and own.report.nfe == table.report.nfe == 4 * 2 * 6


def test_correct_from_leaves_noisier_states_alone():
    network, levels, x = Mixture(VP), uniform_lambda(VP, 6), states(4, 3)
    runs = [solve_v3(DPMv3Corrected(WAVY, correct_from=v), network, levels, x).x for v in (-99.0, 99.0, levels[3].lam)]
    assert relative(runs[1], solve_v3(DPMv3(WAVY), network, levels, x).x) < 1e-12
    assert relative(runs[2], runs[0]) > 1e-4 < relative(runs[2], runs[1])


# ---------------------------------------------------------------- refusals


def test_what_cannot_become_a_table_is_refused_with_the_way_out():
    levels = uniform_lambda(VP, 5)
    for statistics in (WAVY, per_element(wavy(50).without_bias(), 3)):
        for solver in (DPMv3, DPMv3Corrected):
            with pytest.raises(IncompatibleError, match="solve_v3"):
                trace(solver(statistics), levels, VP)
            trace(solver(statistics.mean().without_bias()), levels, VP)


class BareTensor(Mixture):
    def __call__(self, x, level, branches, rows=None):
        return super().__call__(x, level, branches)[0]


def test_runs_that_cannot_work_are_refused():
    levels = uniform_lambda(VP, 5)
    with pytest.raises(IncompatibleError, match=r"shape \(3,\)"):
        solve_v3(DPMv3(per_element(wavy(50), 3)), Mixture(VP), levels, states(2, 4))
    with pytest.raises(ConfigError, match="reach from lam"):
        DPMv3(EmpiricalStatistics.constant(1.0, 0.0, reach=3.0)).plan(levels, VP)
    learned = tuple(Level(v.time, torch.tensor(v.alpha), torch.tensor(v.sigma)) for v in uneven_levels(3))
    with pytest.raises(IncompatibleError, match="a tuple of one tensor per branch"):
        solve_v3(DPMv3(DATA), BareTensor(VP), levels, states(2, 4))
    with pytest.raises(IncompatibleError, match="plain numbers"):
        DPMv3(DATA).plan(learned, VP)
    with pytest.raises(ConfigError, match="order"):
        DPMv3(DATA, 4)
    with pytest.raises(ConfigError, match="corrector"):
        DPMv3Corrected(DATA, corrector="half")  # type: ignore[arg-type]
