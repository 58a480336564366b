"""Methods that are one map although their files do not know of each other, and what their plans cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from fewstep.errors import ConfigError
from fewstep.samplers import (
    DDIM,
    DEIS,
    DPM2M,
    DPM2S,
    DPM3M,
    EDM,
    EPS,
    FLOW,
    DiscreteVP,
    DPMFast,
    DPMpp2M,
    DPMpp3M,
    DPMpp3S,
    DPMppFast,
    LinearVP,
    RectifiedFlow,
    UniPC,
    check_levels,
    from_times,
    karras,
    level_at,
    solve,
    start,
    trace,
    uniform_lambda,
    uniform_time,
)
from fewstep.samplers.dpm_fast import partition
from fewstep.samplers.singlestep import blocks_plan

from .problems import Mixture
from .solver_rows import VP, eager, relative, run_from, states, uneven_levels


def both(first, second, n: int = 9) -> float:
    """How far two solvers are apart on a mixture and an uneven grid."""
    x, levels = states(2, 5), uneven_levels(n)
    return relative(*(solve(trace(solver, levels, VP), Mixture(VP), x).x for solver in (first, second)))


def test_deis_is_the_multistep_of_noise_prediction():
    """Lagrange's polynomial in log rho integrated is Taylor's with divided differences: only for the true D2."""
    assert both(DEIS(3), DPM3M()) < 1e-12
    assert both(DEIS(2), DPM2M("taylor")) < 1e-12
    assert both(DEIS(1), DDIM()) < 1e-12
    assert both(DEIS(3), DEIS(2)) > 1e-5


@dataclass(frozen=True)
class UniP(UniPC):
    """UniPC without its corrector: what is left is an explicit multistep method."""

    def correct(self, plan, i, x, m_t, history):
        return x  # not used: `step` below never has a corrected state

    def step(self, plan, i, x, p, carry, noise=None):
        x_t, after = super().step(plan, i, x, p, (), noise)
        order = min(plan.order[i], len(carry) + 1)
        if order >= 2:
            x_t = x_t - self.increment(plan, i, p.x0, carry[: order - 1])
        return x_t, (p.x0, *carry)[: self.order - 1] if after else ()


def test_unip_2_is_2m():
    assert both(UniP(2, "bh2"), DPMpp2M("midpoint")) < 1e-12
    assert both(UniP(2, "vary"), DPMpp2M("taylor")) < 1e-12
    assert both(UniP(3, "vary"), DPMpp3M()) < 1e-12


def test_the_variants_of_unipc_differ_below_order_3_only():
    for order in (3, 4):
        kinds = [UniPC(order, variant, lower_order_final=False) for variant in ("bh1", "bh2", "vary")]
        x, levels = states(2, 5), uneven_levels(9)
        network, ends = Mixture(VP), []
        table = [trace(kind, levels, VP) for kind in kinds]
        history = warm(table[0], network, x, order)
        ends = [run_from(t, network, history).x for t in table]
        assert relative(ends[0], ends[1]) < 1e-11 and relative(ends[2], ends[1]) < 1e-11
    assert both(UniPC(2, "vary"), UniPC(2, "bh2")) > 1e-6


def warm(table, network, x, order):
    from .solver_rows import Row, warm_start

    return warm_start(Row("", None, order, 0, history=order, state=True), table, network, x)


def test_dpm_solver_2_is_karras_dpm2():
    """Midpoint rule in sigma / alpha with the node midway in log sigma (Karras et al.'s code calls it DPM2)."""
    x, levels = states(2, 5), uneven_levels(6)
    network, y = Mixture(VP), states(2, 5) / levels[0].alpha
    for s, t in zip(levels, levels[1:], strict=False):
        mid = level_at(VP, 0.5 * (s.lam + t.lam))
        rho = [v.sigma / v.alpha for v in (s, mid, t)]
        u = y + (rho[1] - rho[0]) * network(s.alpha * y, s, ("c",))[0]
        y = y + (rho[2] - rho[0]) * network(mid.alpha * u, mid, ("c",))[0]
    found = solve(trace(DPM2S(), levels, VP), network, x).x
    assert relative(found, levels[-1].alpha * y) < 1e-12


@dataclass(frozen=True)
class Elsewhere(DPMpp3S):
    """3S with its second node at 0.8."""

    def plan(self, levels, schedule):
        return blocks_plan(levels, [3] * (len(levels) - 1), schedule, {3: (0.3, 0.8)})


@pytest.mark.parametrize("form", ["midpoint", "taylor"])
def test_the_second_node_of_3s_must_lie_at_two_thirds(form):
    """At any other place both forms fall to second order, so it is no parameter."""
    x, slopes = states(32), []
    for solver in (Elsewhere(solver_type=form), DPMpp3S(solver_type=form)):
        errors = []
        for n in (48, 96):
            table = trace(solver, uniform_lambda(VP, n, to_zero=False), VP)
            end = run_from(table, Mixture(VP), start(table, x)).x
            errors.append(float((end - Mixture(VP).flow(x, table.plan.nodes[0], table.plan.targets[-1])).abs().max()))
        slopes.append(math.log2(errors[0] / errors[1]))
    assert slopes[0] < 2.3 and slopes[1] > 2.8


# ---------------------------------------------------------------- DPM-Solver-fast


@pytest.mark.parametrize("solver", [DPMFast(), DPMppFast()], ids=["fast", "fast++"])
@pytest.mark.parametrize("setting", [(LinearVP(), False), (LinearVP(), True), (EDM(), True), (RectifiedFlow(), True)])
def test_fast_costs_exactly_its_budget(solver, setting):
    schedule, to_zero = setting
    for K in range(1, 41):
        network = Mixture(schedule)
        levels = uniform_lambda(schedule, K, to_zero=to_zero)
        plan = solver.plan(levels, schedule)
        assert len(plan) == K and plan.targets[-1] == levels[-1]
        if K >= 7:
            assert max(plan.order) == 3
        if schedule == LinearVP() and K in (3, 7, 20):
            solve(trace(solver, levels, schedule), network, states(2, 3))
            assert network.calls == K


def test_fast_keeps_every_turn_of_a_restart():
    lams = (-2.0, -1.0, 0.0, -1.5, 0.0, 1.0, 2.0, 3.0)
    levels = tuple(level_at(VP, lam) for lam in lams)
    plan = DPMFast().plan(levels, VP)
    ends = [t for t, stage, order in zip(plan.targets, plan.stage, plan.order, strict=True) if stage == order - 1]
    assert len(plan) == 7 and levels[2] in ends and levels[3] in ends and ends[-1] == levels[-1]


def test_the_partition_of_the_paper():
    assert [partition(K, low_end=False) for K in (1, 2, 3, 4, 5, 6, 9)] == [
        [1], [2], [2, 1], [3, 1], [3, 2], [3, 2, 1], [3, 3, 2, 1],
    ]  # fmt: skip
    for K in range(1, 101):
        for low_end in (False, True):
            orders = partition(K, low_end)
            assert sum(orders) == K and orders == sorted(orders, reverse=True) and set(orders) <= {1, 2, 3}
    assert [partition(K, low_end=True) for K in (0, 1, 2, 3, 4, 5)] == [[], [1], [2], [3], [2, 2], [3, 2]]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11, 14])
def test_singlestep_takes_any_number_of_steps(n):
    """3 n - 1 evaluations, one step, two: nothing divides by nothing (others' singlestep of order 3 did)."""
    settings = ((DiscreteVP.scaled_linear(), karras, EPS), (RectifiedFlow(), uniform_time, FLOW))
    for schedule, grid, parametrisation in settings:
        for solver in (DPMpp3S(), DPMppFast(), DPM2S()):
            levels = grid(schedule, n)
            table = trace(solver, levels, schedule)
            found = solve(table, Mixture(schedule, parametrisation), states(8) * float(levels[0].sigma)).x
            assert bool(found.isfinite().all())
            assert table.plan.nodes[0] == levels[0] and table.plan.targets[-1] == levels[-1]


def test_a_repeated_level_is_refused():
    """A grid that repeats sigma_min gave others a step of length zero, and NaN at order 3."""
    schedule = DiscreteVP.scaled_linear()
    levels = karras(schedule, 20, to_zero=False)
    for solver in (DPMpp3M(), DPM3M(), UniPC(3), DPMpp3S()):
        assert bool(eager(solver, levels, Mixture(schedule), states(4)).isfinite().all())
        with pytest.raises(ConfigError, match="equal"):
            trace(solver, (*levels, levels[-1]), schedule)
    with pytest.raises(ConfigError, match="equal"):
        check_levels(from_times(schedule, [10.0, 5.0, 5.0]))


def test_wrong_hyper_parameters_are_refused():
    for wrong in (
        lambda: DEIS(5),
        lambda: DPMpp3S(r1=0.7),
        lambda: DPMpp3S(solver_type="heun"),  # type: ignore[arg-type]
        lambda: DPMFast("heun"),  # type: ignore[arg-type]
        lambda: UniPC(2, "bh3"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            wrong()
