"""Every solver, one row each; every property, one test over all rows. Exactness and order first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fewstep.samplers import (
    EDM,
    EPS,
    FLOW,
    X0,
    DiscreteVP,
    DPMpp3MAsReleased,
    Heun,
    Outputs,
    RectifiedFlow,
    UniPC,
    V,
    advance,
    edm,
    karras,
    predict,
    solve,
    start,
    trace,
    uniform_lambda,
    uniform_time,
)

from .problems import LinearSlope, Mixture, Polynomial, PolynomialNoise
from .solver_rows import (
    DOUBLE,
    ODE,
    VP,
    Row,
    eager,
    every,
    every_ode,
    relative,
    run_from,
    states,
    tape,
    uneven_levels,
    warm_start,
)  # fmt: skip


def check_polynomial(row: Row, degree: int, corrected: bool = False) -> None:
    coefficients = (0.7, -0.4, 0.31, 0.22, -0.13, 0.09)[: degree + 1]
    network = Polynomial(VP, X0, coefficients) if row.of == "x0" else PolynomialNoise(VP, EPS, coefficients)
    table = trace(row.solver, uneven_levels(9), VP)
    x = states(2, 3)
    end = run_from(table, network, warm_start(row, table, network, x), leave_out=int(corrected))
    found, target = (end.carry[0], table.plan.nodes[-2]) if corrected else (end.x, table.plan.targets[-1])
    assert relative(found, network.flow(x, table.plan.nodes[0], target)) < 1e-12


@every_ode
def test_polynomials_are_solved_exactly(row):
    for degree in range(row.degree + 1):
        check_polynomial(row, degree)
    for degree in range(row.corrected + 1):
        check_polynomial(row, degree, corrected=True)


@every_ode
def test_the_next_degree_is_not_exact(row):
    """The degree in the table is the highest one: a test that passes for any degree would show nothing."""
    with pytest.raises(AssertionError):
        check_polynomial(row, row.degree + 1)


def test_heun_is_exact_for_a_linear_slope():
    network = LinearSlope(VP)
    levels = uneven_levels(6)
    x = states(2, 3)
    assert relative(solve(trace(Heun(), levels, VP), network, x).x, network.flow(x, levels[0], levels[-1])) < 1e-12


def errors_of(row: Row, steps=(96, 384)) -> list[float]:
    x = states(64)
    errors = []
    for n in steps:
        network = Mixture(VP)
        table = trace(row.solver, uniform_lambda(VP, n, to_zero=False), VP)
        state = warm_start(row, table, network, x) if row.order >= 3 else start(table, x)
        end = run_from(table, network, state)
        errors.append(float((end.x - network.flow(x, table.plan.nodes[0], table.plan.targets[-1])).abs().max()))
    return errors


def slope(errors: list[float]) -> float:
    """The order, from the errors of two runs of which the second has four times as many steps."""
    coarse, fine = errors
    return math.log2(coarse / fine) / 2


def check_order(row: Row) -> None:
    found = slope(errors_of(row))
    print(f"{row}: slope {found:.2f}")
    assert found >= row.order - 0.15


@every_ode
def test_order_of_convergence(row):
    """Slope of the error on a mixture against its exact flow, n = 96 and 384, uniform lambda."""
    check_order(row)


def test_unipc_3_is_better_than_unipc_2():
    second, third = (errors_of(row) for row in ODE if row.name in ("unipc-2", "unipc-3"))
    assert all(a < b for a, b in zip(third, second, strict=True))


# ---------------------------------------------------------------- wrong formulas must fail


@dataclass(frozen=True)
class WithoutCorrector(UniPC):
    """UniPC that forgets to correct."""

    def correct(self, plan, i, x, m_t, history):
        from fewstep.samplers.unipc import base

        s, t = plan.nodes[i - 1], plan.nodes[i]
        order = min(plan.order[i - 1], len(history))
        x_t = base(s, t, x, history[0])
        return x_t - self.increment(plan, i - 1, history[0], history[1:order]) if order >= 2 else x_t


def test_a_planted_third_order_fault_is_found():
    """The 3M of released code claims order 3."""
    row = Row("as-released", DPMpp3MAsReleased(lower_order_final=False), 3, 2, history=2)
    assert slope(errors_of(row)) <= 2.3
    with pytest.raises(AssertionError):
        check_order(row)
    with pytest.raises(AssertionError):
        check_polynomial(row, 2)


def test_a_dropped_corrector_is_found():
    row = replace(next(r for r in ODE if r.name == "unipc-2"), solver=WithoutCorrector(2, lower_order_final=False))
    with pytest.raises(AssertionError):
        check_order(row)
    with pytest.raises(AssertionError):
        check_polynomial(row, 2, corrected=True)


# ---------------------------------------------------------------- one run, many ways


@every
@pytest.mark.parametrize("parametrisation", [EPS, X0, V, FLOW], ids=repr)
def test_table_equals_eager(row, parametrisation):
    network = Mixture(VP, parametrisation)
    levels = uneven_levels(7)
    x = states(2, 5)
    noise = tape if row.noisy else lambda: None
    table = trace(row.solver, levels, VP)
    found = solve(table, network, x, tape=noise())
    assert relative(found.x, eager(row.solver, levels, network, x, noise())) < 1e-12
    assert found.report.evaluations == len(table) == row.ticks_a_step * 7
    assert found.report.nfe == 2 * len(table)


SETTINGS: list[tuple[str, Any, Any, Callable]] = [
    ("vp-linear", VP, EPS, uniform_lambda),
    ("vp-discrete", DiscreteVP.scaled_linear(), V, uniform_time),
    ("edm", EDM(), edm(), karras),
    ("flow", RectifiedFlow(), FLOW, uniform_time),
    ("flow-lambda", RectifiedFlow(1000.0), FLOW, uniform_lambda),
]


@every
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s[0])
@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_every_schedule_from_noise_to_sigma_zero(row, setting, n):
    """One step, alpha = 0 at the start of flows and sigma = 0 at the end: table == eager, finite, lands on the data."""
    _, schedule, parametrisation, grid = setting
    network = Mixture(schedule, parametrisation)
    levels = grid(schedule, n)
    x = states(16) * float(levels[0].sigma)
    noise = tape if row.noisy else lambda: None
    found = solve(trace(row.solver, levels, schedule), network, x, tape=noise()).x
    assert bool(found.isfinite().all())
    assert relative(found, eager(row.solver, levels, network, x, noise())) < 1e-11
    # two or three steps of a second-order rule over the whole range may overshoot
    if n == 1 or (n == 12 and not row.overshoots):
        assert float(found.abs().max()) < 3.0


@every
def test_parametrisations_agree(row):
    x = states(2, 5)
    levels = uneven_levels(6)
    results = []
    for parametrisation in (EPS, X0, V, FLOW):
        network = Mixture(VP, parametrisation)
        results.append(solve(trace(row.solver, levels, VP), network, x, tape=tape() if row.noisy else None).x)
    assert all(relative(result, results[0]) < 1e-12 for result in results[1:])


@every
def test_guidance_folds_into_the_row(row):
    """Branch weights as columns equal guiding the output first, shared and per image."""
    levels, x = uneven_levels(5), states(3, 4)
    cond, uncond = Mixture(VP), Mixture(VP, weights=(0.9, 0.1))
    table = trace(row.solver, levels, VP)
    for w in (3.0, torch.tensor([1.0, 3.0, 7.5], dtype=DOUBLE)):
        folded = guided = start(table, x)
        column = w.view(-1, 1) if isinstance(w, torch.Tensor) else w
        noises = [states(3, 4, seed=9 + i) for i in range(len(table))]
        for i, level in enumerate(table.plan.nodes):
            outs = (uncond(folded.x, level, ("u",))[0], cond(folded.x, level, ("c",))[0])
            folded = advance(table, folded, Outputs(folded.x, level, outs, EPS, (1.0 - w, w)), noises[i])
            u, c = uncond(guided.x, level, ("u",))[0], cond(guided.x, level, ("c",))[0]
            p = predict(EPS, level, guided.x, u + column * (c - u))
            guided = advance(table, guided, p, noises[i])
        assert relative(folded.x, guided.x) < 1e-12
