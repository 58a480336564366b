"""Noise levels, schedules and grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigError
from fewstep.samplers import EDM, CosineVP, DiscreteVP, LinearVP, RectifiedFlow, level_at
from fewstep.samplers.from_config import schedule_from_config

SD = DiscreteVP.scaled_linear()
COSINE = DiscreteVP.cosine()
SCHEDULES = [
    LinearVP(), CosineVP(), SD, DiscreteVP.linear(), COSINE, EDM(), RectifiedFlow(), RectifiedFlow(1000.0)
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@settings(max_examples=40, deadline=None)
@given(f=st.floats(0.0, 1.0))
def test_level_and_time_of_are_inverses(schedule, f):
    top, bottom = schedule.noisiest, schedule.cleanest
    low = top.lam if math.isfinite(top.lam) else -bottom.lam
    lam = low + (bottom.lam - low) * f
    level = level_at(schedule, lam)
    assert math.isclose(level.lam, lam, rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(schedule.time_of(level.lam), level.time, rel_tol=1e-12, abs_tol=1e-12)
    if isinstance(schedule, LinearVP | CosineVP | DiscreteVP):
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


@pytest.mark.parametrize("s", [0.008, 0.1])
def test_cosine_is_the_papers_formula(s):
    """alpha = f(t) / f(0), f(t) = cos((t + s) / (1 + s) pi / 2); 1 - alpha^2 as written loses 1e-16 / sigma^2."""
    schedule = CosineVP(s)
    for time in (1e-3, 0.02, 0.5, 0.9, 0.9946):
        level = schedule.level(time)
        alpha = math.cos((time + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)
        assert math.isclose(level.alpha, alpha, rel_tol=1e-13)
        assert math.isclose(level.sigma**2, 1 - alpha**2, rel_tol=1e-15 / level.sigma**2)


@settings(max_examples=100, deadline=None)
@given(time=st.floats(0.0, 1.0))
def test_cosine_times_come_back(time):
    """Also outside [t_min, t_max], up to pure noise and down to no noise."""
    schedule = CosineVP()
    assert math.isclose(schedule.time_of(schedule.level(time).lam), time, rel_tol=1e-12, abs_tol=1e-15)


def test_the_ends_of_cosine():
    schedule = CosineVP()
    assert schedule.noisiest.time == 0.9946 and schedule.cleanest.time == 1e-3
    assert schedule.level(1.0).alpha == 0.0 and schedule.level(0.0).sigma == 0.0
    assert schedule.time_of(-math.inf) == 1.0 and schedule.time_of(math.inf) == 0.0
    for wrong in ({"s": 0.0}, {"t_max": 1.5}, {"t_min": 0.0}, {"t_min": 0.5, "t_max": 0.4}):
        with pytest.raises(ConfigError, match="expected 0 < s"):
            CosineVP(**wrong)


def test_discrete_cosine_caps_its_betas():
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    abar = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
    assert np.allclose([COSINE.level(i).alpha ** 2 for i in range(1000)], abar, rtol=1e-11, atol=0)
    # only the last beta is capped, so the others are those of the continuous schedule
    for i in (0, 10, 500, 998):
        assert math.isclose(COSINE.level(i).lam, CosineVP().level((i + 1) / 1000).lam, rel_tol=1e-11)
    assert schedule_from_config({"beta_schedule": "squaredcos_cap_v2"}) == COSINE


def test_discrete_cosine_near_its_top_keeps_its_labels():
    """Others cut the noisiest levels off and spread the labels over the rest: 998.996 where 995 is meant."""
    for i in (990, 995, 998, 999):
        assert level_at(COSINE, COSINE.level(i).lam).time == i


def test_alphas_must_fall():
    with pytest.raises(ConfigError, match="strictly decreasing"):
        DiscreteVP((0.5, 0.6))
