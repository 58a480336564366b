"""Runs of FewstepScheduler without a pipeline: ticks, times, noise levels, and what is refused as wrong use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.errors import ConfigError, FewstepError, IncompatibleError, NumericsError
from fewstep.samplers import DDIM, DPMpp2M, DPMpp2S, Heun, SDEDPMpp2M, UniPC, V, trailing, uniform_lambda
from fewstep.samplers.scheduler import FewstepScheduler

from .tiny import LATENT_SHAPE, tiny_ddim, tiny_sd

X = torch.linspace(-2, 2, 256).view(1, *LATENT_SHAPE)


def scheduler(steps=None, **fields):
    made = FewstepScheduler.from_config(tiny_ddim().config, **fields)
    if steps:
        made.set_timesteps(steps)
    return made


def test_ticks_are_counted():
    for solver, asked, ticks in ((DPMpp2M(), 10, 10), (DPMpp2S(), 9, 9), (DPMpp2S(), 10, 9), (Heun(), 1, 1)):
        made = scheduler(asked, solver=solver)
        assert made.order == 1 and made.num_inference_steps == len(made.timesteps) == ticks
        assert len(made) == 1000 and made.init_noise_sigma == 1.0 and made.scale_model_input(X, 1) is X


def test_times_are_real():
    made = scheduler(7, solver=DPMpp2S(), grid="lambda")
    levels = uniform_lambda(made.schedule, 4)
    assert made.timesteps.dtype == torch.float32
    assert made.timesteps[::2].tolist() == [float(np.float32(v.time)) for v in levels[:-1]]
    assert any(t != round(t) for t in made.timesteps.tolist())


def test_explicit_times_and_grids():
    made = scheduler(solver=DPMpp2M())
    times = [999.0, 700.25, 80.5]
    made.set_timesteps(timesteps=times)
    assert made.timesteps.tolist() == times and made.table.plan.targets[-1].sigma == 0.0
    made.set_timesteps(timesteps=torch.tensor([900, 10]))
    assert made.timesteps.tolist() == [900.0, 10.0]
    made = scheduler(5, grid="trailing")
    assert made.timesteps.tolist() == [v.time for v in trailing(made.schedule, 5)[:-1]]


@pytest.mark.parametrize("solver", [DDIM(eta=1.0), DPMpp2M(), Heun(), DPMpp2S(), UniPC(3), SDEDPMpp2M()], ids=repr)
def test_zero_terminal_snr_with_v_prediction(solver):
    config = tiny_ddim(rescale_betas_zero_snr=True, prediction_type="v_prediction").config
    pipe = tiny_sd(FewstepScheduler.from_config(config, solver=solver))
    latents = pipe("a dog", num_inference_steps=5, output_type="latent").images
    plan = pipe.scheduler.table.plan
    assert plan.nodes[0].alpha == 0.0 and pipe.scheduler.parametrisation is V
    assert torch.isfinite(latents).all() and latents.std() < 10


def test_zero_terminal_snr_with_a_noise_prediction_fails_before_the_run():
    made = FewstepScheduler.from_config(tiny_ddim(rescale_betas_zero_snr=True).config)
    with pytest.raises(NumericsError, match="x0 from a noise prediction does not exist at time 999"):
        made.set_timesteps(5)
    made = FewstepScheduler.from_config(made.config, grid="leading")
    made.set_timesteps(5)
    assert made.timesteps[0] == 801


def test_add_noise():
    made = scheduler(9)
    noise = X.flip(-1)
    peer = tiny_ddim()
    images, noises = X.repeat(3, 1, 1, 1), noise.repeat(3, 1, 1, 1)
    times = torch.tensor([999, 500, 0])  # training: one level per image, no begin index
    torch.testing.assert_close(made.add_noise(images, noises, times), peer.add_noise(images, noises, times))
    half = made.add_noise(images.half(), noises.half(), times)
    assert half.dtype == torch.float16

    def expected(level):
        return level.alpha * X + level.sigma * noise

    nodes = made.table.plan.nodes
    made.set_begin_index(4)  # image to image: the level the run begins at, whatever the (rounded) time says
    torch.testing.assert_close(made.add_noise(X, noise, torch.tensor([0])), expected(nodes[4]))
    x = made.step(X, made.timesteps[4], X, return_dict=False)[0]
    torch.testing.assert_close(made.add_noise(X, noise, torch.tensor([0])), expected(nodes[5]))
    for tick in range(5, 9):
        x = made.step(X, made.timesteps[tick], x, return_dict=False)[0]
    assert torch.equal(made.add_noise(X, noise, torch.tensor([0])), X)  # after the last tick: sigma = 0


def test_repeated_times_do_not_confuse_it():
    """Heun evaluates twice at every inner time; the order of the calls tells them apart."""
    made = scheduler(9, solver=Heun())
    assert made.timesteps[1] == made.timesteps[2]
    x = X
    for k, t in enumerate(made.timesteps.tolist()):  # plain numbers: nothing but their order is known
        x = made.step(X, t, x).prev_sample
        assert made.step_index == k + 1
    made.set_timesteps(9)
    made.step(X, float(made.timesteps[1]), X)  # a run that begins at a repeated time begins a step
    assert made.step_index == 3


# --- wrong use ------------------------------------------------------------------------------------------------------


def refused(message, error=ConfigError):
    assert issubclass(error, FewstepError)
    return pytest.raises(error, match=message)


def test_no_run_yet():
    with refused("call set_timesteps"):
        scheduler().step(X, 999, X)


def test_too_many_steps():
    made, x = scheduler(3), X
    for t in made.timesteps:
        x = made.step(X, t, x).prev_sample
    with refused("after the last of 3 ticks; set_timesteps begins a new run"):
        made.step(X, made.timesteps[-1], x)
    made.set_timesteps(3)
    assert torch.isfinite(made.step(X, made.timesteps[0], X).prev_sample).all()


@pytest.mark.parametrize("form", [lambda t: t, float, lambda t: t.clone()], ids=["view", "number", "copy"])
def test_skipped_and_repeated_ticks(form):
    made = scheduler(9)
    x = made.step(X, form(made.timesteps[0]), X).prev_sample
    for wrong in (0, 2):
        with refused("tick 1 of 9, timestep .* was due"):
            made.step(X, form(made.timesteps[wrong]), x)


def test_two_runs_that_share_a_scheduler():
    made = scheduler(9)
    first = made.timesteps
    x = made.step(X, first[0], X).prev_sample
    made.set_timesteps(9)  # the second pipeline starts
    with refused("belongs to an earlier set_timesteps.*need a scheduler each"):
        made.step(X, first[1], x)


def test_shapes_and_arguments():
    made = scheduler(9)
    with refused("drop the channels of a learned variance", IncompatibleError):
        made.step(X.repeat(1, 2, 1, 1), made.timesteps[0], X)
    x = made.step(X, made.timesteps[0], X).prev_sample.repeat(2, 1, 1, 1)
    with refused("must keep the shape", IncompatibleError):
        made.step(x, made.timesteps[1], x)
    with refused("needs one of num_inference_steps, timesteps and sigmas"):
        made.set_timesteps()
    with refused("must agree in number, got timesteps: 1, num_inference_steps: 5"):
        made.set_timesteps(5, timesteps=[900.0])
    with refused("mu belongs to flow-matching models"):
        made.set_timesteps(5, mu=1.0)
    with refused("time 1200.0 is outside the schedule"):
        made.set_timesteps(timesteps=[1200.0])
    with refused("whole number from 1"):
        made.set_timesteps(0)
    stochastic = scheduler(5, solver=SDEDPMpp2M())
    with refused("2 generators for a batch of 1"):
        stochastic.step(X, stochastic.timesteps[0], X, generator=[torch.Generator(), torch.Generator()])
