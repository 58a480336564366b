"""FewstepScheduler inside unmodified diffusers pipelines against the native loop over the same table."""

from __future__ import annotations

import pytest
import torch

from fewstep.guidance.cfg import CFG
from fewstep.samplers import (
    DPMpp2M,
    DPMpp2S,
    SDEDPMpp2M,
    UniPC,
    edit,
    solve,
)
from fewstep.samplers.scheduler import FewstepScheduler

from .pipeline_runs import (
    FORGETFUL,
    SOLVERS,
    TICKS,
    RecordedNetwork,
    noise_and_tape,
    relative,
    run,
    table_of,
    with_solver,
    without_edits,
)
from .tiny import LATENT_SHAPE, tiny_sd, tiny_sdxl

every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)


@pytest.fixture(scope="module")
def pipes():
    return {"sd": tiny_sd(), "sdxl": tiny_sdxl()}


@pytest.fixture
def sd(pipes):
    return pipes["sd"]


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
    table = table_of(solver, pipe.scheduler.schedule)
    native = solve(table, RecordedNetwork(pipe, calls), x, guidance=CFG(scale), tape=tape)
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
