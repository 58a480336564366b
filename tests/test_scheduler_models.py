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

from .tiny import STABLE_DIFFUSION

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
