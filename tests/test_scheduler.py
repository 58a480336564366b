"""FewstepScheduler inside unmodified diffusers pipelines against the native loop over the same table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image

from fewstep.errors import ConfigError
from fewstep.samplers import (
    DDIM,
    DPMpp2M,
    DPMpp2S,
    DPMpp2SAncestral,
    DPMpp3M,
    DPMppSDE,
    Euler,
    GeneratorTape,
    Heun,
    Outputs,
    SDEDPMpp2M,
    UniPC,
    advance,
    edit,
    solve,
    start,
    trace,
    uniform_lambda,
)
from fewstep.samplers import scheduler as scheduler_module
from fewstep.samplers.scheduler import FewstepScheduler

from .tiny import IMAGE_SIZE, LATENT_SHAPE, tiny_sd, tiny_sdxl

TICKS = 7  # odd: solvers with two ticks a step and one in the last reach it too
SOLVERS = [
    DDIM(),
    DDIM(eta=1.0),
    Euler(),
    Heun(),
    DPMpp2M(),
    DPMpp2M("taylor"),
    DPMpp3M(),
    DPMpp2S(),
    UniPC(2),
    UniPC(3),
    SDEDPMpp2M(),
    DPMppSDE(),
    DPMpp2SAncestral(),
]
FORGETFUL = [UniPC(2), UniPC(3), DPMpp2S(), Heun()]  # those that would discard an edit
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


@pytest.fixture(scope="module")
def pipes():
    return {"sd": tiny_sd(), "sdxl": tiny_sdxl()}


@pytest.fixture
def sd(pipes):
    return pipes["sd"]


def with_solver(pipe, solver):
    pipe.scheduler = FewstepScheduler.from_config(pipe.scheduler.config, solver=solver)
    return pipe


def table_of(solver, schedule):
    """Traced here, not taken from the scheduler: TICKS ticks on the lambda grid."""
    two_ticks = isinstance(solver, Heun | DPMpp2S | DPMppSDE | DPMpp2SAncestral)
    return trace(solver, uniform_lambda(schedule, (TICKS + 1) // 2 if two_ticks else TICKS), schedule)


def run(pipe, seed=0, guidance_scale=1.0, **kwargs):
    """(final latents, the UNet's calls) of a pipeline run; a call is (sample, timestep, keywords)."""
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda m, args, kw: calls.append((*args, kw)), with_kwargs=True)
    settings = {"num_inference_steps": TICKS, "generator": torch.Generator().manual_seed(seed), **kwargs}
    try:
        latents = pipe("a red dog", guidance_scale=guidance_scale, output_type="latent", **settings).images
    finally:
        hook.remove()
    return latents, calls


class RecordedNetwork:
    """The UNet, called with the keywords that a pipeline called it with."""

    def __init__(self, pipe, calls):
        self.unet, self.keywords = pipe.unet, calls[0][-1]
        self.schedule, self.parametrisation = pipe.scheduler.schedule, pipe.scheduler.parametrisation

    def __call__(self, x, level, branches, rows=None):
        time = torch.tensor(level.time, dtype=torch.float32)
        x = torch.cat([x] * len(branches)).to(self.unet.dtype)
        return self.unet(x, time, **self.keywords)[0].chunk(len(branches))


def noise_and_tape(seed=0, batch=1):
    """What a pipeline draws first, and the tape that goes on with the same generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *LATENT_SHAPE), generator=generator), GeneratorTape(generator)


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


# --- the pipeline's run is the native run ---------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_pipeline_equals_native_loop(pipes, family, solver):
    pipe = with_solver(pipes[family], solver)
    latents, calls = run(pipe)
    table = table_of(solver, pipe.scheduler.schedule)
    x, tape = noise_and_tape()
    native = solve(table, RecordedNetwork(pipe, calls), x, tape=tape)
    assert torch.isfinite(latents).all() and len(calls) == len(table) == TICKS
    assert [float(t) for _, t, _ in calls] == [float(torch.tensor(node.time)) for node in table.plan.nodes]
    assert torch.equal(latents, native.x)


@pytest.mark.parametrize(
    ("family", "solver"), [*(("sd", s) for s in SOLVERS), ("sdxl", DPMpp2M()), ("sdxl", UniPC(3))], ids=repr
)
def test_guided_pipeline_is_the_folded_native_loop(pipes, family, solver):
    scale = 5.0
    pipe = with_solver(pipes[family], solver)
    latents, calls = run(pipe, guidance_scale=scale)
    x, tape = noise_and_tape()
    guidance = SimpleNamespace(
        branches=lambda i, memory: ("uncond", "cond"), weights=lambda i, gram, memory: (1 - scale, scale)
    )
    table = table_of(solver, pipe.scheduler.schedule)
    native = solve(table, RecordedNetwork(pipe, calls), x, guidance=guidance, tape=tape)
    difference = relative(latents, native.x)
    print(f"{family} {solver}: {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parametrize("solver", [DPMpp2S(), UniPC(2), SDEDPMpp2M()], ids=repr)
def test_batches_and_generator_lists(sd, solver):
    pipe = with_solver(sd, solver)
    seeds = (3, 4)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    batch, _ = run(pipe, num_images_per_prompt=2, generator=generators)
    for k, seed in enumerate(seeds):
        alone, _ = run(pipe, seed)
        assert relative(batch[k : k + 1], alone) < 1e-4  # not bitwise: the network's own sums depend on its batch
    assert relative(batch[:1], batch[1:]) > 0.1


@pytest.mark.parametrize("solver", [DPMpp2M(), DPMpp2S(), UniPC(3)], ids=repr)
def test_half_precision_pipeline_keeps_a_float32_state(solver):
    pipe = with_solver(tiny_sd().to(torch.bfloat16), solver)
    latents, calls = run(pipe)
    assert latents.dtype == torch.bfloat16 and torch.isfinite(latents).all()
    # The native state is float32 and only the network sees bfloat16: equal means that the shadow was used throughout.
    native = solve(table_of(solver, pipe.scheduler.schedule), RecordedNetwork(pipe, calls), calls[0][0])
    assert native.x.dtype == torch.float32 and torch.equal(latents, native.x.to(torch.bfloat16))


# --- edits between the ticks ----------------------------------------------------------------------------------------


def without_edits(monkeypatch):
    """What a scheduler does that does not know about edits: it goes on from its own state."""
    monkeypatch.setattr(scheduler_module, "edit", lambda table, state, x: state)


@pytest.mark.parametrize(
    ("solver", "how"), [*((s, "new tensor") for s in SOLVERS), *((s, "in place") for s in FORGETFUL)], ids=repr
)
def test_a_callback_edits_the_latents(sd, solver, how, monkeypatch):
    at, delta = 4, torch.linspace(-3, 3, 256).view(1, *LATENT_SHAPE)

    def callback(pipe, i, t, kwargs):
        if i == at:
            return {"latents": kwargs["latents"].add_(delta) if how == "in place" else kwargs["latents"] + delta}
        return {}

    pipe = with_solver(sd, solver)
    latents, calls = run(pipe, callback_on_step_end=callback)
    table = table_of(solver, pipe.scheduler.schedule)
    x, tape = noise_and_tape()
    native = solve(table, RecordedNetwork(pipe, calls), x, tape=tape,
                   on_tick=lambda i, state, _: edit(table, state, state.x + delta) if i == at else None)  # fmt: skip
    assert torch.equal(latents, native.x)
    if solver in FORGETFUL:
        without_edits(monkeypatch)
        assert relative(run(pipe, callback_on_step_end=callback)[0], native.x) > 1e-3


@pytest.mark.parametrize("solver", [DPMpp2M(), UniPC(2)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edits_in_place_count_in_inference_mode(solver, dtype):
    """Its tensors have no version counter, so whether one was written to must be told by value."""
    x, out = (torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(k)).to(dtype) for k in (0, 1))
    ends = []
    with torch.inference_mode():
        for in_place in (True, False):
            scheduler = FewstepScheduler(solver=solver)
            scheduler.set_timesteps(6)
            sample = x.clone()
            for i, t in enumerate(scheduler.timesteps):
                sample = scheduler.step(out * (1 + 0.1 * i), t, sample).prev_sample
                if i == 2:
                    sample = sample.mul_(0.5) if in_place else sample.clone().mul_(0.5)
            ends.append(sample)
    assert torch.equal(*ends)


@pytest.mark.parametrize("solver", FORGETFUL, ids=repr)
def test_a_copy_is_not_an_edit(sd, solver):
    pipe = with_solver(sd, solver)
    undisturbed, _ = run(pipe)
    copied, _ = run(pipe, callback_on_step_end=lambda p, i, t, kwargs: {"latents": kwargs["latents"].clone()})
    assert torch.equal(copied, undisturbed)


@pytest.mark.parametrize("solver", FORGETFUL, ids=repr)
def test_the_next_state_comes_from_the_edited_one(sd, solver, monkeypatch):
    """The sensitivity of the step to the edit, with the network's output held fixed, at every tick."""
    out = torch.linspace(-1, 1, 256).view(1, *LATENT_SHAPE)

    def last(edited_tick, delta):
        scheduler = with_solver(sd, solver).scheduler
        scheduler.set_timesteps(TICKS)
        x = out.flip(0)
        for i, t in enumerate(scheduler.timesteps[: edited_tick + 1]):
            x = scheduler.step(out, t, x + delta if i == edited_tick else x, return_dict=False)[0]
        return x

    for tick in range(1, TICKS):
        assert relative(last(tick, 1e-3), last(tick, 0.0)) > 1e-5
    without_edits(monkeypatch)
    discarded = [tick for tick in range(1, TICKS) if torch.equal(last(tick, 1e-3), last(tick, 0.0))]
    assert discarded  # so the assertion above does depend on `edit`


@pytest.mark.parametrize("solver", [UniPC(2), DPMpp2S(), DPMpp2M()], ids=repr)
def test_inpainting_integrates_the_blended_state(sd, solver, monkeypatch):
    pipe = StableDiffusionInpaintPipeline(**with_solver(sd, solver).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = Image.linear_gradient("L").convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    mask.paste(255, (0, 0, IMAGE_SIZE // 2, IMAGE_SIZE))
    latents, calls = run(pipe, image=image, mask_image=mask, strength=1.0)

    # The same run in our own loop. What the pipeline blends in is seen in the latents that it fed the UNet.
    table = table_of(solver, pipe.scheduler.schedule)
    keep = torch.zeros(LATENT_SHAPE[1:])
    keep[:, LATENT_SHAPE[2] // 2 :] = 1.0
    network, state = RecordedNetwork(pipe, calls), start(table, calls[0][0])
    for i, node in enumerate(table.plan.nodes):
        outputs = Outputs(state.x, node, network(state.x, node, ("cond",)), network.parametrisation)
        state = advance(table, state, outputs)
        seen = calls[i + 1][0] if i + 1 < len(calls) else latents
        assert torch.equal(((1 - keep) * state.x), (1 - keep) * seen)  # the painted half is the solver's
        state = edit(table, state, torch.where(keep > 0, seen, state.x))
    assert torch.equal(state.x, latents)

    without_edits(monkeypatch)
    if solver in FORGETFUL:  # for the others the painted half, all that the pipeline keeps, comes out the same
        assert relative(run(pipe, image=image, mask_image=mask, strength=1.0)[0], latents) > 1e-3


# --- image to image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.5, 0.6, 1.0])  # 0.6 begins in the middle of a step of two ticks
@pytest.mark.parametrize("solver", [DPMpp2S(), Heun(), UniPC(2), UniPC(3), DPMpp2M()], ids=repr)
def test_image_to_image_is_a_native_run_from_a_later_tick(sd, solver, strength):
    pipe = StableDiffusionImg2ImgPipeline(**with_solver(sd, solver).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = Image.linear_gradient("L").convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
    latents, calls = run(pipe, image=image, strength=strength)
    table = table_of(solver, pipe.scheduler.schedule)
    first = TICKS - int(TICKS * strength)
    assert len(calls) == TICKS - first and pipe.scheduler.begin_index == first
    if solver == DPMpp2S():
        assert table.plan.stage[first] == (1 if strength == 0.6 else 0)
    assert torch.equal(latents, solve(table, RecordedNetwork(pipe, calls), calls[0][0], first_tick=first).x)


def test_too_little_strength_says_what_to_do(sd):
    scheduler = with_solver(sd, DPMpp2S()).scheduler
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match=r"9 ticks, so it cannot begin at tick 9; raise strength"):
        scheduler.set_begin_index(9)
