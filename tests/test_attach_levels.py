"""The levels that attach takes from a pipeline's scheduler, against the scheduler's own formulas."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fewstep.errors import IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.attach_levels import first_tick
from fewstep.guidance.interval import Interval

from . import tiny_flow, tiny_video
from .attach_runs import STEPS, guided, run, sd, sd_img2img
from .tiny import STABLE_DIFFUSION

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@contextmanager
def recorded(denoiser):
    """(sample, output) of every call."""
    calls = []

    def keep(module, args, kwargs, out):
        calls.append(((args[0] if args else kwargs["hidden_states"]).clone(), out[0].clone()))

    hook = denoiser.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def cosine(u, c):
    return float(torch.nn.functional.cosine_similarity(u.double().flatten(), c.double().flatten(), dim=0))


def ddim_x0(scheduler, i, x, out):
    abar = scheduler.alphas_cumprod.double()[int(scheduler.timesteps[i])]
    return (x - (1 - abar).sqrt() * out) / abar.sqrt()


def euler_x0(scheduler, i, scaled, out):
    sigma = scheduler.sigmas[i].double()
    return scaled * (sigma**2 + 1).sqrt() - sigma * out


def flow_x0(scheduler, i, x, out):
    return x - scheduler.sigmas[i].double() * out


def inverted_flow_x0(scheduler, i, x, out):
    """Mochi: the scheduler's sigma is the signal, and the network's velocity points to it."""
    return x + (1 - scheduler.sigmas[i].double()) * out


def edm_x0(scheduler, i, scaled, out):
    sigma = scheduler.sigmas[i].double()
    x = scaled * (sigma**2 + scheduler.config.sigma_data**2).sqrt()
    return scheduler.precondition_outputs(x, out.double(), sigma)


CASES = {
    "ddim": (sd, DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False), ddim_x0),
    "euler": (sd, EulerDiscreteScheduler(**STABLE_DIFFUSION), euler_x0),
    "euler karras": (sd, EulerDiscreteScheduler(**STABLE_DIFFUSION, use_karras_sigmas=True), euler_x0),
    "clipping": (sd, DPMSolverMultistepScheduler(**STABLE_DIFFUSION, thresholding=True), ddim_x0),
    "edm": (sd, EDMEulerScheduler(), edm_x0),
    "flow": (tiny_flow.sd3, FlowMatchEulerDiscreteScheduler(shift=3.0), flow_x0),
    "flow, whole times": (tiny_flow.sana, UniPCMultistepScheduler(**FLOW), flow_x0),
    "flow, dynamic shift": (tiny_video.ltx, None, flow_x0),
    "flow, inverted": (tiny_video.mochi, None, inverted_flow_x0),
}


@pytest.mark.parametrize("case", CASES)
def test_gamma_of_x0_by_the_schedulers_own_formula(case):
    builder, scheduler, x0 = CASES[case]
    tiny = guided(builder)
    if scheduler is not None:
        tiny.pipe.scheduler = scheduler
    with attach(tiny.pipe, guidance=AdaptiveGuidance(2.0, space="x0")) as attached, recorded(tiny.denoiser) as calls:
        run(tiny)
    assert len(calls) == len(attached.report.scores) == STEPS
    for i, (sample, out) in enumerate(calls):
        u, c = (x0(tiny.pipe.scheduler, i, sample[k].double(), out[k].double()) for k in range(2))
        assert attached.report.scores[i][0] == pytest.approx(cosine(u, c), abs=2e-6)


def test_flow_models_of_inverted_time_have_a_velocity_all_the_same():
    """v of a flow model is what its network returns."""
    tiny = guided(tiny_video.mochi)
    gammas = {}
    for space in ("raw", "v"):
        with attach(tiny.pipe, guidance=AdaptiveGuidance(2.0, space=space)) as attached:
            run(tiny)
        gammas[space] = attached.report.scores
    assert gammas["raw"] == gammas["v"]


@pytest.mark.parametrize("solver", [None, "2m", "2s"])
def test_image_to_image_is_the_run_of_the_ticks_that_it_has(solver):
    tiny = guided(sd_img2img)
    with attach(tiny.pipe, solver=solver, guidance=Interval(stop=0.5)) as attached:
        run(tiny, num_inference_steps=9)
        timesteps = [float(t) for t in tiny.pipe.scheduler.timesteps]
    ran = attached.report.guided.run
    assert [float(v.time) for v in ran.nodes] == pytest.approx(timesteps[-len(ran.nodes) :])
    assert ran.step[0] == 0 and len(ran.nodes) == attached.report.evaluations < len(timesteps)
    guided_ticks = [i for i, tick in enumerate(attached.report.ticks) if len(tick.branches) == 2]
    assert guided_ticks == [i for i in range(len(ran.nodes)) if ran.step[i] < int(0.5 * ran.steps)] != []


def test_the_first_tick_is_told_without_reading_values_where_that_is_possible():
    timesteps = torch.tensor([900.0, 500.0, 500.0, 100.0])
    plain = SimpleNamespace(timesteps=timesteps)
    assert first_tick(SimpleNamespace(timesteps=timesteps, begin_index=2), torch.tensor(900.0), 2) == 2
    assert first_tick(plain, timesteps[2], 2) == 2  # by its place in memory: the values are equal
    assert first_tick(plain, timesteps[3].expand(6), 1) == 3
    assert first_tick(plain, torch.tensor([0.9]), 4) == 0  # all of them run
    assert first_tick(plain, torch.tensor([500.0, 500.0]), 3) == 1
    assert first_tick(plain, 900, None) == 0
    with pytest.raises(IncompatibleError, match="timestep 7"):
        first_tick(plain, torch.tensor(7.0), 2)
