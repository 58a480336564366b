"""FewstepScheduler on models with conventions of their own, against diffusers' schedulers for them."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.samplers import DDIM, DiscreteVP, DPMpp2M, Euler, Heun, UniPC, V, edm
from fewstep.samplers.from_config import schedule_from_config
from fewstep.samplers.scheduler import FewstepScheduler
from fewstep.samplers.scheduler_schedules import LabelledFlow, PreconditionedVE

from .tiny import STABLE_DIFFUSION, tiny_sdxl

X = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7))
TOLERANCE = 1e-5
EDM = {"_class_name": "EDMEulerScheduler"}


# --- preconditioned networks: EDM, Playground 2.5, Stable Video Diffusion, Stable Audio -----------------------------


def network(x, t):
    return torch.tanh(x * (1.3 + t)) - 0.3 * x.roll(1, -1)


def velocity(x, t):
    return network(x, t / 1000)


def loop(scheduler, x, network=network):
    """The states of a pipeline's loop."""
    states = []
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(fed, t), t, x, return_dict=False)[0]
        states.append(x)
    return states


def check_trajectory(ours, peer, x=None):
    torch.testing.assert_close(ours.timesteps, peer.timesteps.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.sigmas, peer.sigmas, rtol=1e-6, atol=0)
    x = X * float(ours.init_noise_sigma) if x is None else x
    for a, b in zip(loop(ours, x), loop(peer, x), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < TOLERANCE


def with_class(scheduler):
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
def test_edm(kind, prediction_type):
    peer = kind(prediction_type=prediction_type)
    ours = FewstepScheduler.from_config(
        with_class(peer), solver=Euler() if kind is diffusers.EDMEulerScheduler else DPMpp2M()
    )
    peer.set_timesteps(10)
    ours.set_timesteps(sigmas=peer.sigmas)
    assert ours.schedule == PreconditionedVE() and ours.init_noise_sigma == pytest.approx(80.0)
    check_trajectory(ours, peer)
    karras = FewstepScheduler.from_config(ours.config, grid="karras")
    karras.set_timesteps(10)
    torch.testing.assert_close(karras.sigmas, peer.sigmas, rtol=1e-5, atol=0)


def test_stable_video_diffusion():
    fields = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True,
              "sigma_min": 0.002, "sigma_max": 700.0, **STABLE_DIFFUSION}  # fmt: skip
    peer = diffusers.EulerDiscreteScheduler(**fields)
    ours = FewstepScheduler.from_config(peer.config, solver=Euler(), grid="karras")
    assert ours.parametrisation is V and ours.schedule == PreconditionedVE(0.002, 700.0, 1.0)
    peer.set_timesteps(10)
    ours.set_timesteps(10)
    check_trajectory(ours, peer)
    ours = FewstepScheduler.from_config(peer.config, solver=DPMpp2M())
    ours.set_timesteps(sigmas=[700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.0])
    assert len(ours.timesteps) == 10 and torch.isfinite(loop(ours, 700 * X)[-1]).all()
    discrete = diffusers.EulerDiscreteScheduler(timestep_type="continuous", **STABLE_DIFFUSION)  # noise prediction
    assert FewstepScheduler.from_config(discrete.config).schedule == DiscreteVP.scaled_linear()


def test_stable_audio():
    """The time is atan(sigma) 2 / pi; the peer needs a package that is optional, so its formulas are written out."""
    made = FewstepScheduler.from_config({"_class_name": "CosineDPMSolverMultistepScheduler"})
    made.set_timesteps(5)
    sigmas = made.sigmas[:-1]
    assert made.parametrisation is V and float(sigmas[0]) == 500.0
    torch.testing.assert_close(made.timesteps, sigmas.atan() / math.pi * 2)
    scaled = made.scale_model_input(X, made.timesteps[0])
    torch.testing.assert_close(scaled, X / math.sqrt(500.0**2 + 1.0))


def test_preconditioned_models_are_refused_where_nobody_scales_their_input():
    with pytest.raises(ConfigError, match=r"EDM's preconditioning.*use FewstepScheduler"):
        schedule_from_config(EDM)
    with pytest.raises(ConfigError, match="sigma_min < sigma_max"):
        FewstepScheduler.from_config({**EDM, "sigma_max": 0.001})


def test_preconditioned_round_trip(tmp_path):
    made = FewstepScheduler.from_config(EDM, solver=UniPC(2))
    made.save_pretrained(tmp_path)
    loaded = FewstepScheduler.from_pretrained(tmp_path)
    assert loaded.schedule == made.schedule and loaded.parametrisation is edm(0.5)


# --- flow models ------------------------------------------------------------------------------------------------------


def test_mochi_runs_its_time_backwards():
    peer = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    ours = FewstepScheduler.from_config(peer.config, solver=DDIM())
    assert isinstance(ours.schedule, LabelledFlow) and ours.schedule.inverted
    sigmas = [1.0, 0.9, 0.7, 0.35]
    for scheduler in (ours, peer):
        scheduler.set_timesteps(sigmas=sigmas)
    check_flow(ours, peer)


@pytest.mark.parametrize("solver", [Heun(), UniPC(3)], ids=repr)
def test_an_inverted_flow_is_the_same_flow(solver):
    """With the time and the sign of the velocity turned round, the same states to the last bits."""
    plain, inverted = (
        FewstepScheduler.from_config({"shift": 3.0, "invert_sigmas": value}, solver=solver) for value in (False, True)
    )
    plain.set_timesteps(6)
    inverted.set_timesteps(6)
    torch.testing.assert_close(inverted.timesteps, 1000.0 - plain.timesteps, rtol=0, atol=1e-3)
    a = loop(plain, X, velocity)[-1]
    b = loop(inverted, X, lambda x, t: -velocity(x, 1000 - t))[-1]
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def check_flow(ours, peer):
    torch.testing.assert_close(ours.timesteps, peer.timesteps.float(), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(ours.sigmas, peer.sigmas, rtol=1e-6, atol=1e-7)
    for a, b in zip(loop(ours, X, velocity), loop(peer, X, velocity), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < TOLERANCE


def test_flow_unipc_of_wan():
    peer = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=3
    )
    ours = FewstepScheduler.from_config(peer.config, solver=UniPC(3))
    sigmas = np.array([0.97, 0.8, 0.6, 0.5, 0.3, 0.1])  # below 1: there diffusers replaces lam = -inf by a large number
    for scheduler in (ours, peer):
        scheduler.set_timesteps(sigmas=sigmas)
    told = peer.timesteps
    assert told.dtype == torch.int64 and ours.timesteps[1] != told[1]  # it tells the network a truncated time
    peer.timesteps = peer.sigmas[:-1] * 1000
    peer.set_begin_index(0)
    check_flow(ours, peer)


# --- the schedules and their configs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [LabelledFlow(), LabelledFlow(shift=0.6), LabelledFlow(inverted=True), LabelledFlow(1.0, 3.0, True),
     PreconditionedVE(), PreconditionedVE(0.3, 500.0, 1.0, "atan")],
    ids=repr,
)  # fmt: skip
def test_times_and_levels_are_inverses(schedule):
    top, bottom = schedule.noisiest, schedule.cleanest
    low = max(float(top.lam), -float(bottom.lam) if top.alpha == 0.0 else -math.inf)
    for i in range(21):
        lam = low + (float(bottom.lam) - low) * i / 20
        time = schedule.time_of(lam)
        level = schedule.level(time)
        assert level.time == time and level.lam == pytest.approx(lam, abs=1e-9)
    for level in (top, bottom):
        again = schedule.level(level.time)
        assert again.alpha == pytest.approx(level.alpha, abs=1e-12) and again.sigma == pytest.approx(level.sigma)
    assert schedule.clean.sigma == 0.0 and schedule.clean.alpha == 1.0
    assert all(isinstance(value, str | int | float) for value in schedule.describe().values())


@pytest.mark.parametrize(
    "config",
    [
        EDM,
        {"_class_name": "CosineDPMSolverMultistepScheduler"},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", **STABLE_DIFFUSION},
        {"_class_name": "CogVideoXDPMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "time_shift_type": "linear",
         "shift_terminal": 0.1, "base_shift": 0.25, "max_image_seq_len": 8192},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
        {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
         "flow_shift": 5.0},
    ],
    ids=lambda config: str(config.get("_class_name")),
)  # fmt: skip
@pytest.mark.parametrize("grid", [None, "karras", {"name": "polyexponential", "rho": 1.5}], ids=str)
def test_every_kind_survives_a_file(config, grid, tmp_path):
    made = FewstepScheduler.from_config(config, solver="3s", grid=grid)
    made.save_pretrained(tmp_path)
    loaded = FewstepScheduler.from_pretrained(tmp_path)
    assert loaded.schedule == made.schedule and loaded.solver == made.solver and loaded.config["grid"] == grid
    for field in ("base_shift", "max_image_seq_len"):  # what pipelines compute mu from
        assert loaded.config.get(field) == config.get(field)
    for scheduler in (made, loaded):
        scheduler.set_timesteps(7, mu=0.8 if scheduler.config["shift_terminal"] else None)
    assert torch.equal(loaded.timesteps, made.timesteps) and torch.equal(loaded.sigmas, made.sigmas)


def test_playground_in_its_pipeline():
    """An SDXL pipeline on EDM levels, the network's input scaled by the scheduler: as with diffusers' own 2M."""
    pipe = tiny_sdxl(diffusers.EDMDPMSolverMultistepScheduler())
    call = {"num_inference_steps": 8, "guidance_scale": 3.0, "output_type": "latent"}
    top = math.sqrt(80.0**2 + 1.0)  # what it scales the latents by; here their standard deviation is that of the noise
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    theirs = pipe("a dog", latents=x * 80.0 / top, **call).images
    pipe.scheduler = FewstepScheduler.of(pipe, solver=DPMpp2M(), grid="karras")
    ours = pipe("a dog", latents=x, **call).images
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
