"""Noise levels, schedules and grids."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigError
from fewstep.samplers import (
    EDM,
    GRIDS,
    DiscreteVP,
    LinearVP,
    RectifiedFlow,
    check_levels,
    from_times,
    karras,
    leading,
    level_at,
    linspace,
    trailing,
    uniform_lambda,
    uniform_time,
)

SD = DiscreteVP.scaled_linear()
SCHEDULES = [LinearVP(), SD, DiscreteVP.linear(), EDM(), RectifiedFlow(), RectifiedFlow(1000.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@settings(max_examples=40, deadline=None)
@given(f=st.floats(0.0, 1.0))
def test_level_and_time_of_are_inverses(schedule, f):
    top, bottom = schedule.noisiest, schedule.cleanest
    low = top.lam if math.isfinite(top.lam) else -bottom.lam
    lam = low + (bottom.lam - low) * f
    level = level_at(schedule, lam)
    assert math.isclose(level.lam, lam, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(schedule, LinearVP | DiscreteVP):
        assert math.isclose(level.alpha**2 + level.sigma**2, 1.0, rel_tol=1e-12)


def test_discrete_levels_are_the_trained_ones():
    """At whole times alpha^2 is the cumulative product that the model was trained with (numpy, independently)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for i, abar in enumerate(np.cumprod(1 - betas)):
        assert math.isclose(SD.level(i).alpha ** 2, abar, rel_tol=1e-12)


@pytest.mark.parametrize("i", [0, 1, 417, 998])
def test_discrete_lam_is_linear_between_the_trained_times(i):
    a, b = SD.level(i).lam, SD.level(i + 1).lam
    for f in (0.25, 0.5, 0.75):
        level = SD.level(i + f)
        assert level.time == i + f
        assert math.isclose(level.lam, a + f * (b - a), rel_tol=1e-12, abs_tol=1e-12)


def test_discrete_sigmas_are_those_of_diffusers():
    """Its sigma / alpha is float32: near time 0 it loses 6e-8 / (1 - abar) = 7e-5 in sigma^2."""
    from diffusers import EulerDiscreteScheduler

    peer = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    sigmas = peer.sigmas[:1000].flip(0).tolist()  # of the times 0, 1, ..., 999
    for i, sigma in enumerate(sigmas):
        assert math.isclose(SD.level(i).sigma / SD.level(i).alpha, sigma, rel_tol=1e-4)


@pytest.mark.parametrize(("beta_0", "beta_1"), [(0.1, 20.0), (0.2, 7.0)])
@pytest.mark.parametrize("time", [0.1, 0.5, 1.0])
def test_linear_alpha_is_the_integral_of_beta(beta_0, beta_1, time):
    """log alpha = -1/2 int_0^t beta, by 1000 midpoints (exact: beta is linear)."""
    beta = [beta_0 + time * (k + 0.5) / 1000 * (beta_1 - beta_0) for k in range(1000)]
    log_alpha = -0.5 * time * math.fsum(beta) / 1000
    level = LinearVP(beta_0, beta_1).level(time)
    assert math.isclose(math.log(level.alpha), log_alpha, rel_tol=1e-12)
    assert math.isclose(level.sigma, math.sqrt(1 - math.exp(2 * log_alpha)), rel_tol=1e-12)


def test_zero_terminal_snr_reaches_pure_noise():
    schedule = DiscreteVP.from_betas([0.001 + 0.00002 * i for i in range(1000)], zero_terminal_snr=True)
    assert schedule.noisiest.alpha == 0.0 and schedule.noisiest.lam == -math.inf
    for time in (998.25, 998.75):
        level = schedule.level(time)
        assert math.isclose(schedule.time_of(level.lam), time, rel_tol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_grids_fall_from_the_noisiest_level_to_zero(schedule, name, n):
    if name in ("linspace", "leading", "trailing") and not isinstance(schedule, DiscreteVP):
        with pytest.raises(ConfigError, match="discrete-time"):
            GRIDS[name](schedule, n)
        return
    levels = GRIDS[name](schedule, n)
    assert len(levels) == n + 1 and levels[-1].sigma == 0.0
    assert all(a.lam < b.lam for a, b in itertools.pairwise(levels))
    if name != "leading":
        assert levels[0] == schedule.noisiest


def ends_of(schedule):
    """sigma / alpha at the ends of the grids that are made in lam; a flow's top mirrors its bottom (1 - t_eps)."""
    bottom = schedule.cleanest.sigma / schedule.cleanest.alpha
    top = schedule.noisiest
    return (top.sigma / top.alpha if top.alpha else 1 / bottom), bottom


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("n", "rho", "to_zero"), [(10, 7.0, True), (10, 3.0, True), (9, 7.0, False)])
def test_karras_is_equation_5(schedule, n, rho, to_zero):
    """sigma_i = (max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho for N = 10 nodes; 0 is appended."""
    high, low = ends_of(schedule)
    levels = karras(schedule, n, rho=rho, to_zero=to_zero)
    assert len(levels) == 10 + to_zero and (levels[-1].sigma == 0.0) == to_zero
    for i in range(1, 10):
        expected = (high ** (1 / rho) + i / 9 * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        assert math.isclose(levels[i].sigma / levels[i].alpha, expected, rel_tol=1e-9)
    assert levels[0] == schedule.noisiest


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("to_zero", [True, False])
def test_uniform_lambda_has_equal_steps_of_lam(schedule, to_zero):
    high, low = ends_of(schedule)
    levels = uniform_lambda(schedule, 10 if to_zero else 9, to_zero=to_zero)
    for i in range(1, 10):
        expected = -math.log(high) + i / 9 * (math.log(high) - math.log(low))
        assert math.isclose(math.log(levels[i].alpha / levels[i].sigma), expected, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("to_zero", [True, False])
def test_uniform_time_has_equal_steps_of_time(schedule, to_zero):
    high, low = schedule.noisiest.time, schedule.cleanest.time
    levels = uniform_time(schedule, 10 if to_zero else 9, to_zero=to_zero)
    for i, level in enumerate(levels[:10]):
        assert math.isclose(level.time, high + i / 9 * (low - high), rel_tol=1e-12, abs_tol=1e-9)
        assert (level.alpha, level.sigma) == schedule.level(level.time)[1:]


def test_spacings_are_those_of_diffusers():
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    for n in (5, 10, 25, 50):
        for name, ours in (("linspace", linspace), ("trailing", trailing)):
            peer = DPMSolverMultistepScheduler(timestep_spacing=name)
            peer.set_timesteps(n)
            assert [level.time for level in ours(SD, n)[:-1]] == peer.timesteps.tolist()
        peer = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
        peer.set_timesteps(n)
        assert [level.time for level in leading(SD, n)[:-1]] == peer.timesteps.tolist()


@pytest.mark.parametrize("n", [0, -1, 10**9, 2.0, True, None, math.nan])
def test_a_number_of_steps_that_cannot_be(n):
    with pytest.raises(ConfigError, match="steps must be"):
        uniform_lambda(SD, n)


def test_levels_that_cannot_be():
    with pytest.raises(ConfigError, match="equal"):
        from_times(SD, [999, 500, 500, 0])
    with pytest.raises(ConfigError, match="outside the schedule"):
        from_times(SD, [1000.5])
    with pytest.raises(ConfigError, match="at least two"):
        check_levels((SD.clean,))
    with pytest.raises(ConfigError, match="not a noise level"):
        check_levels((SD.clean._replace(alpha=math.nan), SD.noisiest))
    with pytest.raises(ConfigError, match="strictly decreasing"):
        DiscreteVP((0.5, 0.6))
