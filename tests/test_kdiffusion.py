"""A denoiser in k-diffusion's convention runs as a native network does, and samples as k-diffusion does."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError, NumericsError
from fewstep.guidance.cfg import CFG
from fewstep.samplers import (
    EDM,
    X0,
    DPMpp2M,
    DPMpp2S,
    LinearVP,
    RectifiedFlow,
    SDEDPMpp2M,
    UniPC,
    from_times,
    karras,
    solve,
    trace,
    uniform_lambda,
)
from fewstep.samplers.kdiffusion import KDiffusionNetwork

from .problems import Mixture
from .solver_rows import relative, states, tape

VP = LinearVP()
FLOW = RectifiedFlow()


def gaussian(xbar, sbar, mean=0.4, std=0.7):
    """E[x0 | x0 + sbar eps = xbar] for x0 ~ N(mean, std^2)."""
    sbar = sbar.reshape(-1, *[1] * (xbar.ndim - 1))
    return (std**2 * xbar + sbar**2 * mean) / (std**2 + sbar**2)


def native(schedule):
    return Mixture(schedule, X0, weights=(1.0,), means=(0.4,), stds=(0.7,))


@pytest.mark.parametrize("schedule", [VP, EDM(), FLOW], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [DPMpp2M(), DPMpp2S(), UniPC(3), SDEDPMpp2M()], ids=lambda s: type(s).__name__)
def test_equals_the_native_run(schedule, solver):
    levels = uniform_lambda(schedule, 8)
    if schedule is FLOW:
        levels = from_times(schedule, [0.98, 0.8, 0.6, 0.4, 0.2, 0.1])
    table, x = trace(solver, levels, schedule), states(3, 4)
    ours = solve(table, KDiffusionNetwork(gaussian, schedule), x, tape=tape()).x
    assert relative(ours, solve(table, native(schedule), x, tape=tape()).x) < 1e-12


def test_flow_models_as_comfyui_calls_them():
    """model(x, t), from pure noise at t = 1 on."""

    def model(x, t):
        t = t.reshape(-1, 1)
        cov = (1 - t) ** 2 * 0.7**2 + t**2
        return 0.4 + (1 - t) * 0.7**2 / cov * (x - (1 - t) * 0.4)

    levels = from_times(FLOW, [1.0, 0.75, 0.5, 0.25])
    table, x = trace(DPMpp2M(), levels, FLOW), states(3, 4)
    network = KDiffusionNetwork(model, FLOW, convention="flow")
    assert relative(solve(table, network, x).x, solve(table, native(FLOW), x).x) < 1e-12


def test_branches_have_their_own_arguments():
    def model(xbar, sbar, mean, std):
        return gaussian(xbar, sbar, mean, std)

    arguments = {"cond": {"mean": 0.4, "std": 0.7}, "uncond": {"mean": -1.0, "std": 0.7}}
    network = KDiffusionNetwork(model, VP, arguments)
    level, x = VP.level(0.5), states(2, 3)
    a, b = (gaussian(x / level.alpha, x.new_full((2,), level.sigma / level.alpha), m, 0.7) for m in (-1.0, 0.4))
    table = trace(DPMpp2M(), (level, VP.clean), VP)  # one step: x0 itself
    assert relative(solve(table, network, x, guidance=CFG(3.0)).x, a + 3.0 * (b - a)) < 1e-12
    with pytest.raises(ConfigError, match="no branch 'uncond': it has cond"):
        solve(table, KDiffusionNetwork(model, VP, {"cond": arguments["cond"]}), x, guidance=CFG(3.0))


def test_samples_as_k_diffusion_does():
    """Its DPM++(2M), in its variables: t = -log sbar, the last step, to 0, of first order."""
    schedule = EDM()
    levels = karras(schedule, 9)
    sbars = [level.sigma for level in levels]
    xbar = states(2, 5) * sbars[0]
    ours = solve(trace(DPMpp2M(), levels, schedule), KDiffusionNetwork(gaussian, schedule), xbar).x

    old = None
    for i, (s, t) in enumerate(zip(sbars, sbars[1:], strict=False)):
        denoised = gaussian(xbar, torch.full((2,), s, dtype=xbar.dtype))
        mixed = denoised
        if old is not None and t > 0:
            r = math.log(sbars[i - 1] / s) / math.log(s / t)
            mixed = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        xbar = t / s * xbar + (1 - t / s) * mixed
        old = denoised
    assert relative(ours, xbar) < 1e-12


def test_refusals():
    x = states(2, 3)
    network = KDiffusionNetwork(gaussian, FLOW)
    with pytest.raises(NumericsError, match="at time 1 "):
        network(x, FLOW.level(1.0), ("cond",))
    with pytest.raises(IncompatibleError, match="whole batch"):
        network(x, FLOW.level(0.5), ("cond",), torch.tensor([0]))
    with pytest.raises(ConfigError, match="RectifiedFlow"):
        KDiffusionNetwork(gaussian, VP, convention="flow")
    with pytest.raises(ConfigError, match="'ve' or 'flow'"):
        KDiffusionNetwork(gaussian, VP, convention="vp")  # type: ignore[arg-type]
