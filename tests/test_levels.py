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
    leading,
    level_at,
    linspace,
    trailing,
    uniform_lambda,
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
