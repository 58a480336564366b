"""Grids: what holds for all of them, and each one's closed form. Beside diffusers: test_grids_peers.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.samplers import (
    EDM,
    GRIDS,
    CosineVP,
    DiscreteVP,
    DPMpp2M,
    DPMpp3M,
    LinearVP,
    RectifiedFlow,
    check_levels,
    from_times,
    karras,
    solve,
    trace,
    uniform_lambda,
    uniform_time,
)
from fewstep.samplers.beta_quantile import beta_quantile
from fewstep.samplers.grids import beta, polyexponential, quadratic

from .problems import Mixture

SD = DiscreteVP.scaled_linear()
SVD = EDM(0.002, 700.0)
FLOW = RectifiedFlow(1000.0)
ZERO_SNR = DiscreteVP.from_betas([0.001 + 0.00002 * i for i in range(1000)], zero_terminal_snr=True)
SCHEDULES = [
    LinearVP(), CosineVP(), SD, DiscreteVP.linear(), DiscreteVP.cosine(), ZERO_SNR, EDM(), SVD, RectifiedFlow(), FLOW
]  # fmt: skip
SPACINGS = ("linspace", "leading", "trailing")
AYS = {"ays-sd": SD, "ays-sdxl": SD, "ays-svd": SVD}
FLOWS = (RectifiedFlow(), FLOW)
WITH_TO_ZERO = [name for name in GRIDS if name not in (*SPACINGS, "flow")]
WITH_LAM_MIN = [name for name in WITH_TO_ZERO if name not in AYS]


def refused(name, schedule):
    if name == "flow":
        return schedule not in FLOWS
    return (name in SPACINGS and not isinstance(schedule, DiscreteVP)) or AYS.get(name, schedule) != schedule


def ratio(level):
    return level.sigma / level.alpha


def lam_gaps(levels):
    return [float(b.lam) - float(a.lam) for a, b in itertools.pairwise(levels)]


def test_flow_times_are_the_pipelines_but_for_the_start():
    """Even steps to 0, and the start a little below pure noise, so that the second step has a history."""
    for n in (1, 2, 9):
        times = [level.time for level in GRIDS["flow"](FLOW, n)]
        assert times == pytest.approx([999.0] + [1000.0 * (1 - i / n) for i in range(1, n)] + [0.0], abs=1e-9)
        exact = GRIDS["flow"](FLOW, n, start=1.0)
        assert exact == from_times(FLOW, [1000.0 * (1 - i / n) for i in range(n)])
    orders = [DPMpp2M().plan(GRIDS["flow"](FLOW, 5, start=start), FLOW).order for start in (1.0, 0.999)]
    assert orders == [(1, 1, 2, 2, 1), (1, 2, 2, 2, 1)]  # the step from pure noise leaves no history
    with pytest.raises(ConfigError, match="2000 even steps begin above start"):
        GRIDS["flow"](FLOW, 2000)
    for start in (0.5, 1.001, math.nan):
        with pytest.raises(ConfigError, match="start must be"):
            GRIDS["flow"](FLOW, 4, start=start)


# --- what holds for every grid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", GRIDS)
def test_grids_fall_from_the_noisiest_level_to_zero(schedule, name):
    for n in (1, 2, 3, 9, 40):
        if refused(name, schedule):
            with pytest.raises(ConfigError, match=r"discrete-time|was optimised for|flow models"):
                GRIDS[name](schedule, n)
            continue
        levels = GRIDS[name](schedule, n)
        assert len(levels) == n + 1 and levels[-1] == schedule.clean and levels[-1].sigma == 0.0
        assert all(gap > 0.0 for gap in lam_gaps(levels))
        if name not in ("leading", "flow"):
            assert levels[0] == schedule.noisiest
        for level in levels[:-1]:  # the time that the network is fed is the time of the level that is integrated
            assert schedule.level(level.time) == level


@pytest.mark.parametrize("name", WITH_TO_ZERO)
def test_the_cleanest_level_is_a_node_once(name):
    """Others end a grid at sigma_min and append sigma_min: a step of length zero, and NaN at order 3."""
    schedule = AYS.get(name, SD)
    for n in (1, 2, 3, 20):
        to_zero, without = (GRIDS[name](schedule, n, to_zero=flag) for flag in (True, False))
        assert len(without) == len(to_zero) == n + 1
        assert without[-1] == schedule.cleanest and without[0] == schedule.noisiest
        assert all(gap > 0.0 for gap in lam_gaps(without))
        assert to_zero.count(schedule.cleanest) == (n > 1 and name not in AYS)
        if name not in AYS:  # n nodes and sigma = 0 are the n - 1 steps that end at the cleanest level, and one more
            assert n == 1 or to_zero[:-1] == GRIDS[name](schedule, n - 1, to_zero=False)
        for levels in (to_zero, without):
            trace(DPMpp3M(), levels, schedule)  # refuses coefficients that are not finite


@pytest.mark.parametrize("n", [0, -1, 10**9, 2.0, True, None, math.nan])
@pytest.mark.parametrize("name", GRIDS)
def test_a_number_of_steps_that_cannot_be(name, n):
    with pytest.raises(ConfigError, match="steps must be"):
        GRIDS[name](FLOW if name == "flow" else AYS.get(name, SD), n)


def test_options_that_cannot_be():
    for grid, options in (
        (karras, {"rho": 0.0}), (polyexponential, {"rho": math.nan}), (beta, {"a": 0.0}), (beta, {"b": math.inf}),
        (uniform_lambda, {"lam_min": math.nan}), (karras, {"lam_min": 4.0}),
        (beta, {"lam_min": -1e3}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="got"):
            grid(SD, 5, **options)
    with pytest.raises(ConfigError, match="two nodes on one level"):
        polyexponential(SD, 40, rho=1e4)
    assert all(gap > 0.0 for gap in lam_gaps(karras(SD, 9, rho=1e-3)))  # extreme, and still no overflow


# --- formulas ---------------------------------------------------------------------------------------------------------


def ends_of(schedule):
    """sigma / alpha at the ends of the grids that are made in lam; a flow's top mirrors its bottom (1 - t_eps)."""
    bottom, top = ratio(schedule.cleanest), schedule.noisiest
    if top.alpha:
        return ratio(top), bottom
    return (ratio(schedule.level(998)) if isinstance(schedule, DiscreteVP) else 1 / bottom), bottom


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("n", "rho", "to_zero"), [(10, 7.0, True), (10, 3.0, True), (9, 7.0, False)])
def test_karras_is_equation_5(schedule, n, rho, to_zero):
    """sigma_i = (max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho for N = 10 nodes; 0 is appended."""
    high, low = ends_of(schedule)
    levels = karras(schedule, n, rho=rho, to_zero=to_zero)
    for i in range(1, 10):
        expected = (high ** (1 / rho) + i / 9 * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        assert math.isclose(ratio(levels[i]), expected, rel_tol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("rho", [1.0, 2.0, 0.5])
def test_polyexponential_and_exponential_in_closed_form(schedule, rho):
    """log sigma = log low + (1 - f)^rho (log high - log low); rho = 1: equal steps of lam, the exponential grid."""
    high, low = ends_of(schedule)
    levels = polyexponential(schedule, 10, rho=rho)
    for i in range(1, 10):
        expected = low * (high / low) ** ((1 - i / 9) ** rho)
        assert math.isclose(ratio(levels[i]), expected, rel_tol=1e-9)
    assert GRIDS["exponential"] is GRIDS["lambda"] is uniform_lambda
    for one, two in zip(polyexponential(schedule, 10), uniform_lambda(schedule, 10), strict=True):
        assert math.isclose(one.sigma, two.sigma, rel_tol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("to_zero", [True, False])
def test_uniform_and_quadratic_time(schedule, to_zero):
    """Equal steps of t and of sqrt(t). For discrete models the official code's t is (time + 1) / N."""
    high, low = schedule.noisiest.time, schedule.cleanest.time
    n = 10 if to_zero else 9
    shift, scale = (1.0, 1000.0) if isinstance(schedule, DiscreteVP) else (0.0, 1.0)
    roots = np.linspace(((high + shift) / scale) ** 0.5, ((low + shift) / scale) ** 0.5, 10)
    times = [level.time for level in quadratic(schedule, n, to_zero=to_zero)[:10]]
    assert np.allclose(times, scale * roots**2 - shift, rtol=1e-12, atol=1e-9)
    times = [level.time for level in uniform_time(schedule, n, to_zero=to_zero)[:10]]
    assert np.allclose(times, np.linspace(high, low, 10), rtol=1e-12, atol=1e-9)


def test_beta_quantiles_in_closed_form():
    for u in (1e-9, 0.01, 0.3, 0.5, 0.77, 0.999):
        assert math.isclose(beta_quantile(u, 0.5, 0.5), math.sin(math.pi * u / 2) ** 2, rel_tol=1e-12)
        assert math.isclose(beta_quantile(u, 1.0, 1.0), u, rel_tol=1e-12)
        assert math.isclose(beta_quantile(u, 3.0, 1.0), u ** (1 / 3), rel_tol=1e-12)
        assert math.isclose(beta_quantile(u, 1.0, 2.5), -math.expm1(math.log1p(-u) / 2.5), rel_tol=1e-12)
    assert (beta_quantile(0.0, 0.6, 0.6), beta_quantile(1.0, 0.6, 0.6)) == (0.0, 1.0)


# --- lam_min ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_LAM_MIN)
def test_lam_min_cuts_the_top_off(name):
    cosine = DiscreteVP.cosine()
    assert cosine.noisiest.lam < -9.9
    levels = GRIDS[name](cosine, 10, lam_min=-5.1)
    assert math.isclose(levels[0].lam, -5.1, rel_tol=1e-12) and levels[0] == cosine.level(levels[0].time)
    assert 995 < levels[0].time < 997 and levels[-2] == cosine.cleanest
    assert GRIDS[name](SD, 10, lam_min=-5.1) == GRIDS[name](SD, 10)  # nothing there to cut
    for schedule in (ZERO_SNR, RectifiedFlow()):  # pure noise stays the beginning: it needs no cut
        levels = GRIDS[name](schedule, 10, lam_min=-5.1)
        assert levels[0] == schedule.noisiest and levels[0].alpha == 0.0
        assert -5.1 < levels[1].lam < levels[2].lam
    assert len(GRIDS[name](cosine, 1, lam_min=-5.1)) == 2


@pytest.mark.parametrize("name", WITH_LAM_MIN)
def test_lam_min_bounds_what_an_error_of_the_network_does(name):
    """eps wrong by 0.01 makes x0 wrong by 0.01 e^-lam: 1.6 at lam = -5.1, where the run then begins, 203 at the top.
    Later evaluations correct part of it. (Uncut, ten steps end about 17 off for "time", 96 for "beta".)"""
    cosine = DiscreteVP.cosine()
    exact, start = Mixture(cosine), torch.linspace(-2.0, 2.0, 64, dtype=torch.float64).unsqueeze(1)

    class Wrong(Mixture):
        def __call__(self, x, level, branches, rows=None):
            return (exact(x, level, branches)[0] + 0.01,)

    table = trace(DPMpp2M(), GRIDS[name](cosine, 10, lam_min=-5.1), cosine)
    right, wrong = (solve(table, network, start).x for network in (exact, Wrong(cosine)))
    assert (wrong - right).abs().mean() < 0.01 * math.exp(5.1)


def test_lam_min_and_lambda_give_equal_steps():
    gaps = lam_gaps(uniform_lambda(DiscreteVP.cosine(), 10, lam_min=-5.1))[:-1]
    assert np.allclose(gaps, gaps[0], rtol=1e-9) and math.isclose(gaps[0] * 9 - 5.1, DiscreteVP.cosine().cleanest.lam)


# --- explicit levels --------------------------------------------------------------------------------------------------


def test_levels_that_cannot_be():
    with pytest.raises(ConfigError, match="equal"):
        from_times(SD, [999, 500, 500, 0])
    with pytest.raises(ConfigError, match="outside the schedule"):
        from_times(SD, [1000.5])
    with pytest.raises(ConfigError, match="at least two"):
        check_levels((SD.clean,))
    with pytest.raises(ConfigError, match="not a noise level"):
        check_levels((SD.clean._replace(alpha=math.nan), SD.noisiest))
