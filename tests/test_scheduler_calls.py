"""Calls that choose the noise levels: sigmas, timesteps, mu, grids that a pipeline's own sigmas stand for."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from fewstep.errors import ConfigError
from fewstep.samplers import (
    DDIM,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    DPMpp3S,
    Euler,
    RectifiedFlow,
    UniPC,
    karras,
    solve,
)
from fewstep.samplers.scheduler import FewstepScheduler

from . import tiny_flow, tiny_video
from .test_scheduler_pipelines import Replay, relative, run
from .tiny import IMAGE_SIZE, LATENT_SHAPE, STABLE_DIFFUSION, tiny_autoencoder, tiny_ddim, tiny_sd, tiny_sdxl

AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]  # Sabour et al. 2024, SD 1.5
X = torch.randn((1, *LATENT_SHAPE), generator=torch.Generator().manual_seed(7))


def vp(**fields):
    return FewstepScheduler.from_config(tiny_ddim().config, **fields)


def flow(peer=None, **fields):
    return FewstepScheduler.from_config((peer or FlowMatchEulerDiscreteScheduler(shift=3.0)).config, **fields)


# --- sigmas of variance-preserving models -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_sigmas_are_those_of_euler(make):
    """The same call with diffusers' Euler; "leading" is the spacing with which it scales the latents to variance 1."""
    peer = EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="leading")
    pipe = make(peer)
    # The peer integrates a published 14.615 as it is, though the model was trained with 14.6146; here both start there.
    sigmas = [float(peer.sigmas[0]), *AYS[1:]]
    call = {"sigmas": sigmas, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipe("a dog", generator=torch.Generator().manual_seed(0), **call).images
    times = peer.timesteps
    pipe.scheduler = FewstepScheduler.of(pipe, solver=Euler())
    ours = pipe("a dog", generator=torch.Generator().manual_seed(0), **call).images
    assert len(pipe.scheduler.timesteps) == len(AYS) - 1 and pipe.scheduler.timesteps[0] == 999.0
    torch.testing.assert_close(pipe.scheduler.timesteps, times.float(), rtol=1e-4, atol=1e-2)
    print(f"{relative(ours, theirs):.1e}")
    assert relative(ours, theirs) < 1e-5


def test_sigmas():
    made = vp(solver=DPMpp3M())
    made.set_timesteps(sigmas=AYS)
    with_zero = made.table
    made.set_timesteps(sigmas=np.array(AYS[:-1], dtype=np.float32))
    assert len(made.table) == len(with_zero) == 10
    torch.testing.assert_close(made.sigmas[1:], torch.tensor(AYS[1:]), rtol=1e-6, atol=0)
    top = math.exp(-float(made.schedule.noisiest.lam))
    assert float(made.sigmas[0]) == pytest.approx(
        top, rel=1e-7
    )  # the level that was trained, not its published rounding
    for sigmas in ([1.0, 2.0], [3.0, 3.0], [3.0, -1.0], [0.0], [3.0, 0.0, 1.0]):
        with pytest.raises(ConfigError, match="sigmas must be positive and falling"):
            made.set_timesteps(sigmas=sigmas)
    with pytest.raises(ConfigError, match=r"sigma 20 is outside the trained range: expected 0\.029.* to 14\.6"):
        made.set_timesteps(sigmas=[20.0, 1.0])
    for sigmas in ([], ["a"], [math.nan], 3.0):
        with pytest.raises(ConfigError, match="sigmas must be"):
            made.set_timesteps(sigmas=sigmas)
    with pytest.raises(ConfigError, match="say the same twice"):
        made.set_timesteps(sigmas=[3.0, 1.0], timesteps=[900.0, 100.0])


def test_timesteps_of_a_pipeline_call():
    pipe = tiny_sd()
    pipe.scheduler = FewstepScheduler.of(pipe, solver=DPMpp3M())
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda m, args: calls.append(float(args[1])))
    pipe("a dog", timesteps=[999.0, 640.25, 300.5, 20.0], guidance_scale=1.0, output_type="latent")
    hook.remove()
    assert calls == [999.0, 640.25, 300.5, 20.0]


# --- time shifts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.1])
@pytest.mark.parametrize("n", [2, 7])
def test_dynamic_shift(kind, terminal, n):
    peer = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=terminal)
    ours = flow(peer, solver=DDIM())
    before = dict(ours.config)
    for mu, sigmas in ((0.7, np.linspace(1.0, 1.0 / n, n)), (1.9, np.linspace(0.9, 0.1, n))):
        for scheduler in (ours, peer):
            scheduler.set_timesteps(sigmas=sigmas, mu=mu)
        torch.testing.assert_close(ours.timesteps, peer.timesteps, rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(ours.sigmas, peer.sigmas, rtol=1e-6, atol=1e-7)
    assert dict(ours.config) == before
    again = FewstepScheduler.from_config(ours.config)
    again.set_timesteps(sigmas=sigmas, mu=mu)
    assert torch.equal(again.timesteps, ours.timesteps)


def test_one_step_with_shift_terminal_is_no_nan():
    """1 - (1 - t) (1 - terminal) / (1 - t) is 0 / 0 at t = 1: there is no last node that could be moved."""
    made = flow(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1))
    made.set_timesteps(sigmas=[1.0], mu=1.0)
    assert made.timesteps.tolist() == [1000.0] and made.sigmas.tolist() == [1.0, 0.0]


def test_a_constant_shift_is_applied_once():
    """diffusers' own grid, without sigmas, shifts its last time twice."""
    made = flow(solver=DDIM())
    made.set_timesteps(4)
    assert made.sigmas.tolist() == pytest.approx([3 * u / (1 + 2 * u) for u in (1.0, 0.75, 0.5, 0.25, 0.0)])
    made.set_timesteps(4, mu=5.0)  # pipelines pass mu even where the shift is constant
    assert made.sigmas[1] == pytest.approx(0.9)


@pytest.mark.parametrize("make", [tiny_video.wan, tiny_flow.sana])
def test_a_pipeline_that_passes_no_mu(make):
    tiny = make(scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe)
    with pytest.raises(
        ConfigError, match=r"passed no mu; give a constant shift: .*use_dynamic_shifting=False, shift=3"
    ):
        run(tiny)
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, use_dynamic_shifting=False, shift=3.0)
    assert torch.isfinite(run(tiny)[0]).all()


# --- the grid and the pipeline's own sigmas ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_flow.sd3, tiny_flow.flux, tiny_flow.qwen, tiny_video.ltx, tiny_video.wan])
def test_a_grid_replaces_the_sigmas_that_a_pipeline_passes_by_itself(make):
    tiny = make(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=DPMpp2M(), grid="karras")
    run(tiny)
    expected = karras(RectifiedFlow(1000.0), 5)
    torch.testing.assert_close(tiny.pipe.scheduler.timesteps, torch.tensor([float(v.time) for v in expected[:-1]]))


@pytest.mark.parametrize("make", [tiny_flow.sd3, tiny_flow.flux, tiny_flow.qwen])
def test_sigmas_of_the_caller_are_kept(make):
    tiny = make(scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=DPMpp3M(), grid="karras")
    sigmas = [1.0, 0.81, 0.37]
    _, calls = run(tiny, sigmas=sigmas)
    assert len(calls) == 3 and tiny.pipe.scheduler.sigmas.tolist() == pytest.approx([*sigmas, 0.0])


@pytest.mark.parametrize("make", [tiny_flow.qwen, tiny_flow.cogview4, tiny_video.ltx])
@pytest.mark.parametrize("steps", [5, 9])
def test_num_inference_steps_are_evaluations_in_every_pipeline(make, steps):
    tiny = make()
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=DPMpp2S())
    latents, calls = run(tiny, num_inference_steps=steps)
    # two ticks a step, but one from alpha = 0 and one to sigma = 0
    assert len(calls) == len(tiny.pipe.scheduler.timesteps) <= steps and len(calls) >= steps - 1
    assert torch.isfinite(latents).all()


def test_cogview4_is_told_the_time_before_the_shift():
    peer = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    ours = flow(peer, solver=DDIM())
    times = np.linspace(1000, 1.0, 6).astype(np.int64).astype(np.float32)
    for scheduler in (ours, peer):
        scheduler.set_timesteps(timesteps=times, sigmas=times / 1000, mu=0.6)
    assert ours.timesteps.tolist() == times.tolist()
    torch.testing.assert_close(ours.sigmas, peer.sigmas, rtol=1e-6, atol=1e-7)
    inner = flow(peer, solver=DPMpp2S())
    inner.set_timesteps(timesteps=times, sigmas=times / 1000, mu=0.6)
    u = inner.timesteps.double() / 1000
    torch.testing.assert_close(inner.sigmas[:-1].double(), 0.6 * u / (1 - 0.4 * u), rtol=1e-6, atol=1e-7)
    shifted = [1000 * float(s) for s in peer.sigmas[:-1]]
    ours.set_timesteps(timesteps=shifted, sigmas=times / 1000, mu=0.6)  # what other models are told
    torch.testing.assert_close(ours.timesteps, 1000 * ours.sigmas[:-1])
    with pytest.raises(ConfigError, match="1000 times the sigmas, before or after the time shift"):
        ours.set_timesteps(timesteps=[900.0, 300.0], sigmas=[0.8, 0.3], mu=0.6)


# --- image to image, and one scheduler copied into a second ---------------------------------------------------------


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("solver", [DPMpp3S(), DPMpp3M(), UniPC(3)], ids=repr)
def test_flow_image_to_image_is_a_native_run_from_a_later_tick(solver, strength):
    """The pipeline looks the level of the noise up by its time, and begins there, in the middle of a step or not."""
    tiny = tiny_flow.sd3()
    components = {**tiny.pipe.components, "vae": tiny_autoencoder(shift_factor=0.06)}
    pipe = StableDiffusion3Img2ImgPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FewstepScheduler.of(pipe, solver=solver)
    image = Image.linear_gradient("L").convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
    call = {"image": image, "strength": strength, "height": IMAGE_SIZE, "width": IMAGE_SIZE}
    latents, calls = run(tiny._replace(pipe=pipe), num_inference_steps=8, **call)
    table = pipe.scheduler.table
    first = int(8 - 8 * strength)
    assert len(table) == 8 and len(calls) == 8 - first and pipe.scheduler.step_index == 8
    network = Replay(tiny._replace(pipe=pipe), calls, table.origin)
    network.unit = 1.0
    native = solve(table, network, network.x, first_tick=first)
    assert relative(latents, native.x) < 1e-5


@pytest.mark.parametrize("solver", [DPMpp3S(), UniPC(3)], ids=repr)
def test_a_copy_made_within_a_run_goes_its_own_way(solver):
    """LTX-2 copies the scheduler after set_timesteps, for the sound, and steps both with the times of the first."""
    video = flow(solver=solver)
    video.set_timesteps(5)
    sound, alone = copy.deepcopy(video), flow(solver=solver)
    alone.set_timesteps(5)
    x, y, z = X, X.flip(1), X.flip(1)
    for t, u in zip(video.timesteps, alone.timesteps, strict=True):
        x = video.step(torch.tanh(x), t, x, return_dict=False)[0]
        y = sound.step(torch.sin(y), t, y, return_dict=False)[0]
        z = alone.step(torch.sin(z), u, z, return_dict=False)[0]
    assert torch.equal(y, z) and not torch.equal(x, y)


def test_an_ensemble_of_experts_is_one_run():
    """SDXL's base stops where the refiner goes on; with a solver without memory that is one undivided run."""
    base = tiny_sdxl()
    base.scheduler = FewstepScheduler.of(base, solver=DDIM())
    call = {"num_inference_steps": 6, "guidance_scale": 1.0, "output_type": "latent"}
    whole = base("a dog", generator=torch.Generator().manual_seed(0), **call).images
    half = base("a dog", generator=torch.Generator().manual_seed(0), denoising_end=0.4, **call).images
    done = base.scheduler.step_index
    refiner = StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
    refiner.set_progress_bar_config(disable=True)
    refiner.scheduler = FewstepScheduler.of(base, solver=DDIM())
    rest = refiner("a dog", image=half, denoising_start=0.4, **call).images
    assert 0 < done < 6 and refiner.scheduler.begin_index == done
    assert relative(rest, whole) < 1e-5 and relative(half, whole) > 0.1
