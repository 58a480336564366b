"""Budgets and strengths: which table a run of `sample` is."""

from __future__ import annotations

import pytest

from fewstep.errors import ConfigError
from fewstep.guidance.layout import shortened, steps_within, table_of
from fewstep.samplers import (
    DDIM,
    EDM,
    GRIDS,
    DiscreteVP,
    DPMpp2M,
    DPMpp2S,
    Heun,
    LinearVP,
    RectifiedFlow,
    from_times,
    uniform_lambda,
)
from fewstep.samplers.grids import ays_sd

SD = DiscreteVP.scaled_linear()
STRENGTHS = (0.999, 0.8, 0.3, 0.02)


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("solver", [DPMpp2M(), DPMpp2S(), Heun()])
@pytest.mark.parametrize("branches", [1, 2])
def test_a_budget_gives_the_most_steps_that_do_not_exceed_it(solver, branches):
    """Against trying every number of steps."""
    costs = {n: len(table_of(SD, solver, steps=n)) * branches for n in range(1, 26)}
    for nfe in range(branches, 25):
        wanted = max(n for n, cost in costs.items() if cost <= nfe)
        assert table_of(SD, solver, nfe=nfe, branches=branches) == table_of(SD, solver, steps=wanted)


def test_budgets_that_cannot_be():
    with pytest.raises(ConfigError, match="one step costs 2 with guidance, which takes 2 for each"):
        table_of(SD, DPMpp2M(), nfe=1, branches=2)
    for nfe in (0, -3, 2.5, True):
        with pytest.raises(ConfigError, match="nfe must be a whole number"):
            table_of(SD, DPMpp2M(), nfe=nfe)
    with pytest.raises(ConfigError, match="steps=4 places the levels, and grid gives 4"):
        table_of(SD, DPMpp2M(), grid=uniform_lambda(SD, 3), steps=4)
    assert len(table_of(SD, DPMpp2M(), grid=uniform_lambda(SD, 3), steps=3)) == 3
    for more in ({"steps": 3}, {"grid": uniform_lambda(SD, 3)}):
        with pytest.raises(ConfigError, match=r"both given|explicitly"):
            table_of(SD, DPMpp2M(), nfe=8, **more)


def test_a_budget_beyond_the_grid_takes_all_that_it_has():
    assert len(table_of(SD, DDIM(), grid="trailing", nfe=3_000)) == 999
    assert steps_within(10**9, 1, lambda n: n) == 10_000


# ---------------------------------------------------------------- strengths


@pytest.mark.parametrize("grid", sorted(set(GRIDS) - {"ays-svd", "flow"}))
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_all_steps_run_below_the_level_of_the_strength(grid, strength, n):
    table = table_of(SD, DPMpp2M(), grid=grid, steps=n, strength=strength)
    nodes, end = table.plan.nodes, table.plan.targets[-1]
    top = SD.level(round(1000 * strength) - 1)
    assert len(nodes) == n and end == SD.clean
    assert nodes[0] == top if grid != "leading" else nodes[0].sigma <= top.sigma
    assert all(a.sigma > b.sigma for a, b in zip(nodes, [*nodes[1:], end], strict=True))
    assert all(node == SD.level(node.time) for node in nodes)  # levels of the whole schedule, with their own times
    assert table.schedule == SD.describe()


def test_equal_steps_stay_equal():
    table = table_of(SD, DPMpp2M(), grid="lambda", steps=9, strength=0.5)
    lams = [float(node.lam) for node in table.plan.nodes]
    gaps = [b - a for a, b in zip(lams, lams[1:], strict=False)]
    assert max(gaps) - min(gaps) < 1e-9


def test_strength_one_is_the_whole_run():
    assert shortened(SD, 1.0) is SD
    for grid in ("lambda", "ays-sd"):
        assert table_of(SD, DDIM(), grid=grid, steps=4, strength=1.0) == table_of(SD, DDIM(), grid=grid, steps=4)


def test_a_published_grid_keeps_its_levels():
    """Strength 0.456 begins at time 455, the sixth published level: five steps are the rest of the published ones."""
    table = table_of(SD, DDIM(), grid="ays-sd", steps=5, strength=0.456)
    assert [node.time for node in table.plan.nodes] == pytest.approx([455, 343, 233, 124, 24], abs=1e-9)
    assert [level.time for level in ays_sd(SD, 10)[5:10]] == pytest.approx([n.time for n in table.plan.nodes], abs=1e-9)


@pytest.mark.parametrize("schedule", [LinearVP(), EDM(), RectifiedFlow(1000.0)])
def test_schedules_in_continuous_time(schedule):
    for grid in ("lambda", "karras", "time"):
        table = table_of(schedule, DPMpp2M(), grid=grid, steps=4, strength=0.25)
        assert table.plan.nodes[0].time == pytest.approx(0.25 * schedule.noisiest.time, rel=1e-12)
        assert len(table) == 4 and table.schedule == schedule.describe()
    with pytest.raises(ConfigError, match="no noise to remove"):
        table_of(schedule, DPMpp2M(), strength=1e-9)


def test_strengths_that_cannot_be():
    for strength in (0.0, -1.0, 1.1, float("nan"), "a", True):
        with pytest.raises(ConfigError, match="strength must be"):
            table_of(SD, DPMpp2M(), strength=strength)
    with pytest.raises(ConfigError, match=r"at least 0\.002"):
        table_of(SD, DPMpp2M(), strength=0.001)
    with pytest.raises(ConfigError, match="explicitly"):
        table_of(SD, DPMpp2M(), grid=from_times(SD, [900, 10]), strength=0.5)
