"""Time shifts of flow models, in closed form and beside diffusers' FlowMatchEulerDiscreteScheduler."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigError
from fewstep.samplers import DiscreteVP, RectifiedFlow, from_times, uniform_lambda, uniform_time
from fewstep.samplers.shift import dynamic_mu, shift_levels, shift_of_mu, stretch_to_terminal

FLOW = RectifiedFlow(1000.0)
FLOAT32 = 4 * 2.0**-24  # a handful of its roundings
SIGMAS = [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]  # 1 - k / 8, what pipelines pass for 8 steps


def given_sigmas(sigmas=SIGMAS):
    return from_times(FLOW, [1000.0 * s for s in sigmas])


def sigmas_of(levels):
    return [level.sigma for level in levels]


@settings(max_examples=60, deadline=None)
@given(shift=st.floats(0.05, 20.0), second=st.floats(0.05, 20.0), t=st.floats(1e-3, 0.999))
def test_a_shift_moves_lam_by_its_logarithm(shift, second, t):
    """Also: shifts multiply, and 1 / s undoes s."""
    levels = given_sigmas([1.0, t])
    moved = shift_levels(FLOW, levels, shift)
    assert math.isclose(moved[1].lam, levels[1].lam - math.log(shift), rel_tol=1e-11, abs_tol=1e-11)
    assert (moved[0], moved[2]) == (levels[0], levels[2])  # t = 1 and t = 0 stay
    twice, product = shift_levels(FLOW, moved, second), shift_levels(FLOW, levels, shift * second)
    assert math.isclose(twice[1].time, product[1].time, rel_tol=1e-12)
    assert math.isclose(shift_levels(FLOW, moved, 1 / shift)[1].time, levels[1].time, rel_tol=1e-11)


def test_steps_of_lam_keep_their_length():
    levels = uniform_lambda(FLOW, 12)
    moved = shift_levels(FLOW, levels, 3.0)
    for (a, b), (c, d) in zip(itertools.pairwise(levels[1:-1]), itertools.pairwise(moved[1:-1]), strict=True):
        assert math.isclose(b.lam - a.lam, d.lam - c.lam, rel_tol=1e-9)


def test_times_are_not_truncated():
    """Others integrate sigma = 0.8996 and feed the time 899."""
    for level in shift_levels(FLOW, uniform_time(FLOW, 8), 3.0):
        assert math.isclose(level.time, 1000.0 * level.sigma, rel_tol=1e-15)
        assert FLOW.level(level.time) == level
    assert any(level.time != round(level.time) for level in shift_levels(FLOW, uniform_time(FLOW, 8), 3.0))


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_the_last_time_is_shifted_once(n):
    """Others derive it from a table that is shifted already: 0.0089 for the 0.002994 that is meant at shift 3."""
    levels = shift_levels(FLOW, uniform_time(FLOW, n), 3.0)
    assert len(levels) == n + 1 and levels[0] == FLOW.noisiest and levels[-1].sigma == 0.0
    if n > 1:
        assert math.isclose(levels[-2].sigma, 3 * 0.001 / (1 + 2 * 0.001), rel_tol=1e-12)


# --- beside diffusers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_constant_shift_of_diffusers(shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    peer = FlowMatchEulerDiscreteScheduler(shift=shift)
    peer.set_timesteps(sigmas=SIGMAS)
    levels = shift_levels(FLOW, given_sigmas(), shift)
    assert np.allclose(sigmas_of(levels), peer.sigmas, rtol=FLOAT32, atol=0)
    assert np.allclose([level.time for level in levels[:-1]], peer.timesteps, rtol=FLOAT32, atol=0)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("mu", [0.5, 1.15, 3.0])
def test_dynamic_shift_of_diffusers(kind, mu):
    from diffusers import FlowMatchEulerDiscreteScheduler

    peer = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    peer.set_timesteps(sigmas=SIGMAS, mu=mu)
    levels = shift_levels(FLOW, given_sigmas(), shift_of_mu(mu, kind))
    # it computes 1 / t - 1 in float32: an absolute error of 1.2e-7 there
    assert np.allclose(sigmas_of(levels), peer.sigmas, rtol=4 * FLOAT32, atol=0)


@pytest.mark.parametrize("terminal", [0.02, 0.1])
def test_terminal_of_diffusers(terminal):
    from diffusers import FlowMatchEulerDiscreteScheduler

    peer = FlowMatchEulerDiscreteScheduler(shift=2.0, shift_terminal=terminal)
    peer.set_timesteps(sigmas=SIGMAS)
    levels = stretch_to_terminal(shift_levels(FLOW, given_sigmas(), 2.0), terminal)
    assert np.allclose(sigmas_of(levels), peer.sigmas, rtol=0, atol=FLOAT32)


def test_mu_of_a_number_of_tokens():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    assert dynamic_mu(256) == 0.5 and math.isclose(dynamic_mu(4096), 1.15, rel_tol=1e-15)
    assert math.isclose(dynamic_mu(2176), 0.825, rel_tol=1e-15)  # half way
    for tokens in (64, 1024, 4096, 9216):  # also beyond the line's two points
        assert math.isclose(dynamic_mu(tokens), calculate_shift(tokens), rel_tol=1e-13)
        ours = dynamic_mu(tokens, base_shift=0.95, max_shift=2.05, base_tokens=1024, max_tokens=8192)
        assert math.isclose(ours, calculate_shift(tokens, 1024, 8192, 0.95, 2.05), rel_tol=1e-13)


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_stretching_moves_the_last_node_to_the_terminal():
    levels = given_sigmas()
    stretched = stretch_to_terminal(levels, 0.1)
    assert math.isclose(stretched[-2].sigma, 0.1, rel_tol=1e-14)
    assert (stretched[0], stretched[-1]) == (levels[0], levels[-1])
    for one, two in zip(levels[:-1], stretched[:-1], strict=True):
        assert math.isclose(two.alpha, one.alpha * 0.9 / 0.875, rel_tol=1e-14)
        assert math.isclose(two.time, 1000.0 * two.sigma, rel_tol=1e-15)
    open_end = levels[:-1]  # a run that ends above sigma = 0: its last level is the last node
    assert stretch_to_terminal(open_end, 0.1) == stretched[:-1]


def test_a_run_of_one_step_is_not_stretched():
    """The formula is 0 / 0 at t = 1, and NaN elsewhere."""
    levels = given_sigmas([1.0])
    assert stretch_to_terminal(levels, 0.1) == levels


def test_what_cannot_be():
    for shift in (0.0, -1.0, math.nan, math.inf, True, "3"):
        with pytest.raises(ConfigError, match="shift must be"):
            shift_levels(FLOW, given_sigmas(), shift)
    with pytest.raises(ConfigError, match="flow models only"):
        shift_levels(DiscreteVP.linear(), uniform_lambda(DiscreteVP.linear(), 3), 2.0)
    with pytest.raises(ConfigError, match="flow models"):
        stretch_to_terminal(uniform_lambda(DiscreteVP.linear(), 3), 0.1)
    with pytest.raises(ConfigError, match="below t = 1"):
        stretch_to_terminal((FLOW.noisiest, FLOW.noisiest), 0.1)
    for terminal in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="terminal must be"):
            stretch_to_terminal(given_sigmas(), terminal)
    for mu, kind in (
        (1.0, "cubic"),
        (math.nan, "exponential"),
        (800.0, "exponential"),
        (0.0, "linear"),
        (-1.0, "linear"),
    ):
        with pytest.raises(ConfigError, match="must be"):
            shift_of_mu(mu, kind)
    for options in ({"tokens": 0}, {"tokens": 1.5}, {"tokens": 9, "base_tokens": 4096}):
        with pytest.raises(ConfigError, match="must"):
            dynamic_mu(**options)
