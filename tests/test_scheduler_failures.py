"""FewstepScheduler where other schedulers are known to fail, wrong use, and a ControlNet before the network."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from fewstep.errors import ConfigError
from fewstep.samplers import (
    DDIM,
    SOLVERS,
    AdaptiveDPM,
    AdaptiveDPMpp,
    DiscreteVP,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    DPMpp3S,
    GeneratorTape,
    Heun,
    SDEDPMpp2M,
    UniPC,
    solve,
    trace,
    uniform_lambda,
)
from fewstep.samplers.scheduler import FewstepScheduler

from .test_scheduler_pipelines import relative
from .tiny import IMAGE_SIZE, LATENT_SHAPE, tiny_controlnet, tiny_ddim

X = torch.randn((1, *LATENT_SHAPE), generator=torch.Generator().manual_seed(7))


def vp(**fields):
    return FewstepScheduler.from_config(tiny_ddim().config, **fields)


def flow(peer=None, **fields):
    return FewstepScheduler.from_config((peer or FlowMatchEulerDiscreteScheduler(shift=3.0)).config, **fields)


# --- known failures of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("make", [vp, flow])
def test_any_number_of_steps(make, name):
    """One step and every number up to 12: 3n - 1 steps of third order, and one step of any, give others NaN."""
    made = make(solver=name)
    for n in range(1, 13):
        made.set_timesteps(n)
        assert 1 <= len(made.timesteps) <= n
        x = X
        for t in made.timesteps:
            x = made.step(torch.tanh(x), t, x, return_dict=False)[0]
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("grid", ["karras", "lambda", "time", "beta"])
@pytest.mark.parametrize("to_zero", [True, False])
def test_third_order_on_every_end_of_a_grid(grid, to_zero):
    """diffusers repeats sigma_min at the end of such grids; a step of length zero is NaN in third order."""
    made = vp(solver=DPMpp3M(), grid={"name": grid, "to_zero": to_zero})
    made.set_timesteps(20)
    assert (made.sigmas[1:] < made.sigmas[:-1]).all()
    x = X
    for t in made.timesteps:
        x = made.step(0.3 * x, t, x, return_dict=False)[0]
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("begin", [0, 1, 2, 79, 80, 157])
def test_a_run_may_begin_at_a_repeated_time(begin):
    """Heun evaluates twice at every inner time, and 80 karras steps lie close; a begin index is enough to go on."""
    made = vp(solver=Heun(), grid="karras")
    made.set_timesteps(159)
    assert len(set(made.timesteps.tolist())) == 80  # no two nodes fall together
    made.set_begin_index(begin)
    x = made.add_noise(X, X.flip(0), made.timesteps[begin : begin + 1])
    for t in made.timesteps[begin:]:
        x = made.step(0.3 * x, t, x, return_dict=False)[0]
    assert made.step_index == len(made.timesteps) and torch.isfinite(x).all()


def test_more_steps_than_whole_times():
    made = vp(grid="linspace")
    with pytest.raises(ConfigError, match="at most 999 steps, got 1000; use 'time'"):
        made.set_timesteps(1000)
    made = vp(grid="time")
    made.set_timesteps(1500)
    assert len(made.timesteps) == 1500


def test_a_skipped_tick_is_seen_where_times_are_small():
    made = FewstepScheduler.from_config({"_class_name": "EDMEulerScheduler"}, solver=DDIM())
    made.set_timesteps(20)
    x = made.step(X, float(made.timesteps[0]), X, return_dict=False)[0]
    with pytest.raises(ConfigError, match=r"tick 1 of 20, timestep .* was due"):
        made.step(X, float(made.timesteps[2]), x)


def test_solvers_without_a_plan_are_refused():
    for solver in (AdaptiveDPM(), AdaptiveDPMpp(2), AdaptiveDPM, "adaptive-23"):
        with pytest.raises(ConfigError, match=r"chooses its steps while it runs.*fewstep.solve"):
            vp(solver=solver)


def test_a_step_that_costs_more_than_was_asked_for():
    class Costly(DPMpp2M):
        def plan(self, levels, schedule):
            return DPMpp2S().plan(uniform_lambda(schedule, 4 * (len(levels) - 1)), schedule)

    made = vp(solver=Costly())
    with pytest.raises(ConfigError, match="takes 7 evaluations, so num_inference_steps must be at least 7, got 6"):
        made.set_timesteps(6)
    made.set_timesteps(7)
    assert len(made.timesteps) == 7


# --- ControlNet -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DPMpp2M(), DPMpp3M(), DPMpp3S(), UniPC(3), SDEDPMpp2M()], ids=repr)
def test_controlnet_equals_the_native_loop(solver):
    pipe = tiny_controlnet()
    pipe.scheduler = FewstepScheduler.of(pipe, solver=solver)
    seen = {}
    for name in ("controlnet", "unet"):
        getattr(pipe, name).register_forward_pre_hook(
            lambda m, args, kw, name=name: seen.setdefault(name, kw) and None, with_kwargs=True
        )
    image = Image.linear_gradient("L").convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
    generator = torch.Generator().manual_seed(0)
    call = {"image": image, "guidance_scale": 1.0, "output_type": "latent", "height": 16, "width": 16}
    latents = pipe("a dog", num_inference_steps=5, generator=generator, **call).images

    class Controlled:
        schedule, parametrisation = pipe.scheduler.schedule, pipe.scheduler.parametrisation

        def __call__(self, x, level, branches, rows=None):
            time = torch.tensor(level.time, dtype=torch.float32)
            down, mid = pipe.controlnet(x, time, **seen["controlnet"])
            given = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            return (pipe.unet(x, time, **{**seen["unet"], **given})[0],)

    schedule = DiscreteVP.scaled_linear()
    table = trace(solver, uniform_lambda(schedule, 2 if solver == DPMpp3S() else 5), schedule)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1, *LATENT_SHAPE), generator=generator)
    native = solve(table, Controlled(), x, tape=GeneratorTape(generator))
    assert relative(latents, native.x) < 1e-5
