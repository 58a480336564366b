"""Grids beside diffusers' own, and the published tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.samplers import EDM, GRIDS, CosineVP, DiscreteVP, LinearVP, RectifiedFlow, leading, linspace, trailing
from fewstep.samplers.beta_quantile import beta_quantile
from fewstep.samplers.grids import beta

SD = DiscreteVP.scaled_linear()
FLOW = RectifiedFlow(1000.0)
AYS = {"ays-sd": SD, "ays-sdxl": SD, "ays-svd": EDM(0.002, 700.0)}


def ratio(level):
    return level.sigma / level.alpha


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.3, 2.0), (5.0, 1.5), (0.05, 0.05), (100.0, 100.0)])
def test_beta_quantiles_are_those_of_scipy(a, b):
    peer = pytest.importorskip("scipy.stats").beta
    u = np.concatenate([np.linspace(0, 1, 102)[1:-1], [1e-12, 1e-6, 1 - 1e-6]])
    assert np.allclose([beta_quantile(float(v), a, b) for v in u], peer.ppf(u, a, b), rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [SD, DiscreteVP.linear(), CosineVP(), LinearVP(), EDM()], ids=repr)
@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
def test_the_nodes_are_those_of_diffusers(schedule, name):
    """Given the same two ends in float64. (At its own ends it differs by what float32 loses near sigma = 0.)"""
    from diffusers import DPMSolverMultistepScheduler

    if name == "beta":
        pytest.importorskip("scipy")
    ends = torch.tensor([ratio(schedule.noisiest), ratio(schedule.cleanest)], dtype=torch.float64)
    for n in (2, 10, 33):
        peer = getattr(DPMSolverMultistepScheduler(), f"_convert_to_{name}")(ends, num_inference_steps=n)
        ours = [ratio(level) for level in GRIDS[name](schedule, n)[:-1]]
        assert np.allclose(ours, peer, rtol=1e-11, atol=0)


OPTIONS = {
    "karras": "use_karras_sigmas",
    "lambda": "use_lu_lambdas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_whole_grids_are_those_of_diffusers(name):
    """Its sigmas are float32: 6e-8 / (1 - abar_0) = 7e-5 in sigma^2 at the clean end. Its times are rounded for two of
    the grids and truncated for the others, so that it feeds 998 where 999 is meant; ours are real."""
    from diffusers import DPMSolverMultistepScheduler

    if name == "beta":
        pytest.importorskip("scipy")
    peer = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **{OPTIONS[name]: True}
    )
    peer.set_timesteps(15)
    levels = GRIDS[name](SD, 15)
    assert np.allclose([ratio(level) for level in levels], peer.sigmas, rtol=1e-4, atol=0)
    assert max(abs(level.time - t) for level, t in zip(levels, peer.timesteps.tolist(), strict=False)) <= 1.0


def test_parameters_of_beta_mean_what_they_mean_in_diffusers():
    pytest.importorskip("scipy")
    from diffusers import DPMSolverMultistepScheduler

    ends = torch.tensor([ratio(SD.noisiest), ratio(SD.cleanest)], dtype=torch.float64)
    peer = DPMSolverMultistepScheduler()._convert_to_beta(ends, num_inference_steps=9, alpha=0.4, beta=1.3)
    assert np.allclose([ratio(level) for level in beta(SD, 9, a=0.4, b=1.3)[:-1]], peer, rtol=1e-11, atol=0)


def test_beta_of_a_flow_is_that_of_diffusers():
    pytest.importorskip("scipy")
    from diffusers import FlowMatchEulerDiscreteScheduler

    ends = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    peer = FlowMatchEulerDiscreteScheduler()._convert_to_beta(ends, num_inference_steps=12)
    assert np.allclose([level.sigma for level in beta(FLOW, 12)[:-1]], peer, rtol=1e-11, atol=0)


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


def test_ten_aligned_steps_are_the_published_ones():
    from diffusers.schedulers import AysSchedules

    for name, key in (
        ("ays-sd", "StableDiffusion"),
        ("ays-sdxl", "StableDiffusionXL"),
        ("ays-svd", "StableDiffusionVideo"),
    ):
        levels = GRIDS[name](AYS[name], 10)
        sigmas = AysSchedules[f"{key}Sigmas"]
        if name == "ays-svd":
            assert np.allclose([ratio(level) for level in levels], sigmas, rtol=1e-12)
            continue
        times = [level.time for level in levels[:-1]]
        assert times == AysSchedules[f"{key}Timesteps"]
        # its sigmas are what was optimised, and the times are of the trained levels nearest to them
        assert all(abs(SD.time_of(-math.log(s)) - t) < 0.6 for s, t in zip(sigmas[1:-1], times[1:], strict=True))


@pytest.mark.parametrize("name", AYS)
@pytest.mark.parametrize("n", [4, 15, 20])
def test_other_numbers_of_aligned_steps_are_interpolated_in_log_sigma(name, n):
    """As the authors' guide does: n + 1 places on the 11 published levels, of which the last one is the cleanest."""
    published = [math.log(ratio(level)) for level in GRIDS[name](AYS[name], 10, to_zero=False)]
    expected = np.exp(np.interp(np.linspace(0, 10, n + 1), np.arange(11), published))
    for to_zero in (True, False):
        levels = GRIDS[name](AYS[name], n, to_zero=to_zero)
        assert np.allclose([ratio(level) for level in levels[:-1]], expected[:-1], rtol=1e-11, atol=0)
        assert levels[-1] == (AYS[name].clean if to_zero else AYS[name].cleanest)
