"""The scheduler in pipelines that begin with a picture: inpainting and image to image, beside our own loop."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image

from fewstep.errors import ConfigError
from fewstep.samplers import (
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    DPMpp3S,
    Heun,
    Outputs,
    SDEDPMpp2M,
    UniPC,
    advance,
    edit,
    solve,
    start,
)

from .pipeline_runs import (
    FORGETFUL,
    TICKS,
    RecordedNetwork,
    numbered,
    relative,
    run,
    table_of,
    with_solver,
    without_edits,
)
from .tiny import IMAGE_SIZE, LATENT_SHAPE, tiny_sd


@pytest.fixture(scope="module")
def sd():
    return tiny_sd()


@pytest.mark.parametrize(
    "solver", [UniPC(2), UniPC(3), DPMpp2S(), DPMpp3S(), DPMpp2M(), DPMpp3M(), SDEDPMpp2M()], ids=repr
)
def test_inpainting_integrates_the_blended_state(sd, solver, monkeypatch):
    tape = numbered(monkeypatch)
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
        noise = tape.normal(i, node, table.plan.targets[i], state.x) if table.noisy[i] else None
        state = advance(table, state, outputs, noise)
        seen = calls[i + 1][0] if i + 1 < len(calls) else latents
        assert torch.equal(((1 - keep) * state.x), (1 - keep) * seen)  # the painted half is the solver's
        state = edit(table, state, torch.where(keep > 0, seen, state.x))
    assert torch.equal(state.x, latents)

    without_edits(monkeypatch)
    if solver in FORGETFUL:  # for the others the painted half, all that the pipeline keeps, comes out the same
        assert relative(run(pipe, image=image, mask_image=mask, strength=1.0)[0], latents) > 1e-3


# --- image to image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.5, 0.6, 1.0])  # 0.6 begins in the middle of a step of two ticks
@pytest.mark.parametrize(
    "solver", [DPMpp2S(), DPMpp3S(), Heun(), UniPC(2), UniPC(3), DPMpp2M(), DPMpp3M(), SDEDPMpp2M()], ids=repr
)
def test_image_to_image_is_a_native_run_from_a_later_tick(sd, solver, strength, monkeypatch):
    tape = numbered(monkeypatch)
    pipe = StableDiffusionImg2ImgPipeline(**with_solver(sd, solver).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = Image.linear_gradient("L").convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))
    latents, calls = run(pipe, image=image, strength=strength)
    table = table_of(solver, pipe.scheduler.schedule)
    first = TICKS - int(TICKS * strength)
    assert len(calls) == TICKS - first and pipe.scheduler.begin_index == first
    if solver == DPMpp2S():
        assert table.plan.stage[first] == (1 if strength == 0.6 else 0)
    native = solve(table, RecordedNetwork(pipe, calls), calls[0][0], tape=tape, first_tick=first)
    assert torch.equal(latents, native.x)


def test_too_little_strength_says_what_to_do(sd):
    scheduler = with_solver(sd, DPMpp2S()).scheduler
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match=r"9 ticks, so it cannot begin at tick 9; raise strength"):
        scheduler.set_begin_index(9)
