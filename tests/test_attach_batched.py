"""attach on every family that batches [uncond, cond] in one forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

from fewstep.errors import ConfigError
from fewstep.guidance.attach import attach
from fewstep.guidance.attach_layouts import BATCHED
from fewstep.guidance.cfg import CFG
from fewstep.samplers import feeding

from . import tiny_flow
from .attach_runs import FAMILIES, counted, guided, raw, run
from .pipeline_runs import relative
from .thresholds import apart, crossings
from .tiny_flow import embeds

BATCH = 2
CLOSE = 1e-5  # float32 networks on batches of another size, relative to the largest number


def cost(gammas, threshold: float) -> tuple[int, ...]:
    """T + K for every image."""
    ticks = len(gammas)
    return tuple(ticks + (ticks if k is None else k + 1) for k in crossings(gammas, threshold))


SLOW = {"controlnet_img2img", "controlnet_inpaint", "sdxl_controlnet", "sdxl_controlnet_img2img",
        "sdxl_controlnet_inpaint", "sdxl_img2img", "sdxl_inpaint"}  # fmt: skip
"""Whose layout and network others cover: SDXL, the pipeline of their picture, and that of their ControlNet."""


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FAMILIES])
def test_a_batched_family(family, monkeypatch):
    """Bitwise the pipeline's while all are guided and without guidance; T + K rows; image by image; NaN never read."""
    monkeypatch.setattr(feeding, "unfilled", lambda like: torch.full_like(like, torch.nan))
    tiny = guided(FAMILIES[family], BATCH)
    plain, conditional = run(tiny), run(tiny, guidance_scale=1.0)
    with attach(tiny.pipe, guidance=raw(2.0)) as attached, counted(tiny.denoiser) as rows:
        assert torch.equal(run(tiny), plain)
    gammas = attached.report.scores
    ticks = len(gammas)
    assert sum(rows) == attached.report.nfe == 2 * ticks * BATCH and len(rows) == ticks

    threshold = apart(gammas)
    expected = cost(gammas, threshold)
    with attach(tiny.pipe, guidance=raw(threshold)) as attached:
        with counted(tiny.denoiser) as rows:
            found = run(tiny)
        assert attached.report.nfe_per_image == expected and sum(rows) == sum(expected)
        assert attached.report.nfe_per_branch["cond"] == (ticks,) * BATCH
        assert found.isfinite().all() and relative(found, plain) > 1e-4
        for image in range(BATCH):
            single = run(tiny, image)
            assert attached.report.nfe_per_image == expected[image : image + 1]
            assert relative(single, found[image : image + 1]) < CLOSE

    with attach(tiny.pipe, guidance=raw(-1.0)), counted(tiny.denoiser) as rows:
        assert torch.equal(run(tiny), conditional)
    assert sum(rows) == ticks * BATCH
    assert torch.equal(run(tiny), plain)


@pytest.mark.parametrize("family", ["sd_inpaint", "controlnet", "sd3", "pixart", "ltx", "cogvideox", "mochi", "dit"])
def test_with_a_solver_it_is_that_scheduler(family):
    tiny = guided(FAMILIES[family], BATCH)
    scheduler = tiny.pipe.scheduler
    with attach(tiny.pipe, solver="2m"):
        alone = run(tiny)
    for fields in ({}, {"scale": 4.0}):
        with attach(tiny.pipe, solver="2m", guidance=raw(2.0, **fields)) as attached:
            assert relative(run(tiny), alone) < CLOSE
    threshold = apart(attached.report.scores)
    with attach(tiny.pipe, solver="2m", guidance=raw(threshold)) as attached, counted(tiny.denoiser) as rows:
        run(tiny)
    assert sum(rows) == attached.report.nfe < 2 * BATCH * len(rows)
    assert tiny.pipe.scheduler is scheduler


@pytest.mark.parametrize("family", ["sd", "pixart", "cogvideox", "dit"])
def test_a_scale_of_the_policy_gives_the_pipelines_picture(family):
    """u = c = g, so the pipeline's own scale, which is its default here, has no say."""
    tiny = guided(FAMILIES[family], BATCH, scale=3.0)
    plain, others = run(tiny), {k: v for k, v in tiny.call.items() if k != "guidance_scale"}
    with attach(tiny.pipe, guidance=CFG(3.0)):
        assert relative(run(tiny._replace(call=others)), plain) < CLOSE


def test_a_scale_that_cogvideox_changes_in_mid_run_is_the_pipelines():
    tiny = guided(FAMILIES["cogvideox"], 1)
    others = {k: v for k, v in tiny.call.items() if k != "guidance_scale"}
    with attach(tiny.pipe, guidance=CFG(3.0)), pytest.raises(ConfigError, match="use_dynamic_cfg"):
        run(tiny._replace(call=others), use_dynamic_cfg=True)


def test_controlnet_evaluates_the_rows_that_the_unet_does():
    tiny = guided(FAMILIES["controlnet"], BATCH)
    with attach(tiny.pipe, guidance=raw(2.0)) as attached:
        run(tiny)
    with (
        attach(tiny.pipe, guidance=raw(apart(attached.report.scores))),
        counted(tiny.denoiser) as rows,
        counted(tiny.pipe.controlnet) as controlled,
    ):
        run(tiny)
        assert controlled == rows and len(set(rows)) > 1
        controlled.clear()
        run(tiny, guess_mode=True)
        assert set(controlled) == {BATCH}  # the conditional rows, as without a policy


def test_skip_layers_of_sd3_are_a_pass_of_their_own():
    tiny = guided(tiny_flow.sd3, BATCH)
    tiny.call.update(skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=0.6)
    plain = run(tiny)
    with attach(tiny.pipe, guidance=raw(2.0)) as attached, counted(tiny.denoiser) as rows:
        assert torch.equal(run(tiny), plain)
    assert BATCH in rows and sum(rows) == attached.report.nfe
    assert attached.report.saved == 0.0
    assert attached.report.nfe_per_branch["skip_layers"] == (rows.count(BATCH),) * BATCH
    with attach(tiny.pipe, guidance=raw(-1.0)) as attached, counted(tiny.denoiser) as rows:
        run(tiny)
    assert sum(rows) == attached.report.nfe == BATCH * len(rows)


def test_ip_adapter_embeddings_have_rows_too():
    """One picture for all images: the pipeline repeats it for every row of the doubled batch."""
    tiny = guided(FAMILIES["sd"], BATCH)
    unet, processors = tiny.denoiser, {}
    torch.manual_seed(0)
    for name, plain in unet.attn_processors.items():
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        own = IPAdapterAttnProcessor2_0(hidden_size=hidden, cross_attention_dim=32, num_tokens=(4,))
        processors[name] = plain if name.endswith("attn1.processor") else own
    unet.set_attn_processor(processors)
    projection = ImageProjection(image_embed_dim=16, cross_attention_dim=32, num_image_text_embeds=4)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection]).eval()
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    both = embeds(2, 1, 16)
    tiny.call["ip_adapter_image_embeds"] = [both]
    plain, conditional = run(tiny), run(tiny, guidance_scale=1.0, ip_adapter_image_embeds=[both[1:]])
    with attach(tiny.pipe, guidance=raw(2.0)) as attached:
        assert torch.equal(run(tiny), plain)
    with attach(tiny.pipe, guidance=raw(apart(attached.report.scores))) as attached, counted(unet) as rows:
        assert run(tiny).isfinite().all()
    assert sum(rows) == attached.report.nfe and len(set(rows)) > 1
    with attach(tiny.pipe, guidance=raw(-1.0)):
        assert torch.equal(run(tiny), conditional)


def test_dit_steps_the_doubled_batch_and_restarts_it():
    """The scheduler has 2 B rows, of which both of an image begin anew."""
    tiny = guided(FAMILIES["dit"], BATCH)
    with attach(tiny.pipe, solver="2m", guidance=raw(2.0)) as attached:
        run(tiny)
    policy = raw(apart(attached.report.scores), lower_order=True)
    with attach(tiny.pipe, solver="2m", guidance=policy):
        found = run(tiny)
        assert relative(torch.cat([run(tiny, k) for k in range(BATCH)]), found) < CLOSE
    with attach(tiny.pipe, solver="2m", guidance=replace(policy, lower_order=False)):
        assert relative(run(tiny), found) > 1e-4


def test_every_layout_is_run():
    """A row that no test runs is a guess."""
    pipelines = {type(build(1).pipe).__name__ for build in FAMILIES.values()}
    assert pipelines == set(BATCHED)
