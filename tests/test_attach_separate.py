"""attach on pipelines that call the denoiser twice a tick: Flux, Chroma, QwenImage, CogView4, Lumina 2, Wan."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.attach_layouts import LAYOUTS
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.interval import Interval
from fewstep.guidance.searched import SearchedPolicy
from fewstep.samplers import feeding

from . import tiny_flow, tiny_separate, tiny_video
from .attach_runs import counted, negatives
from .thresholds import STEPS, apart, crossings, early, run
from .tiny_flow import Tiny

FAMILIES = {
    "flux": tiny_flow.flux,
    "chroma": tiny_flow.chroma,
    "qwen": tiny_flow.qwen,
    "cogview4": tiny_flow.cogview4,
    "lumina2": tiny_flow.lumina2,
    "wan": tiny_video.wan,
    "flux_img2img": tiny_separate.flux_img2img,
    "qwen_img2img": tiny_separate.qwen_img2img,
    "wan_image_to_video": tiny_separate.wan_image_to_video,
}
RESCALED = ("qwen", "lumina2", "qwen_img2img")  # by the norm of c, after u + w (c - u)
families = pytest.mark.parametrize("family", FAMILIES)


def scale_of(family: str) -> str:
    return "true_cfg_scale" if family.startswith(("flux", "qwen")) else "guidance_scale"


def guided(family: str, batch: int = 1) -> Tiny:
    """A pipeline and the keywords of a call with guidance."""
    tiny = FAMILIES[family](batch)
    call = {"num_inference_steps": STEPS, **tiny.call, **negatives(tiny.call), scale_of(family): 4.0}
    return tiny._replace(call=call)


def attached_run(tiny: Tiny, policy, solver=None, **changes):
    """(latents, rows that the denoiser evaluated, report)."""
    with attach(tiny.pipe, solver=solver, guidance=policy) as attached, counted(tiny.denoiser) as rows:
        found = run(tiny, **changes)
    return found, sum(rows), attached.report


@families
def test_without_a_switch_it_is_the_pipeline_to_the_bit(family):
    tiny = guided(family, 2)
    before = run(tiny)
    found, rows, report = attached_run(tiny, AdaptiveGuidance(2.0))
    assert torch.equal(found, before)
    assert rows == report.nfe == 2 * 2 * STEPS
    assert torch.equal(run(tiny), before)
    without, _, _ = attached_run(tiny, AdaptiveGuidance(-1.0))
    assert not torch.allclose(without, before, atol=1e-3)  # guidance does something here


@families
def test_a_run_costs_a_row_for_each_tick_and_one_for_each_guided_tick(family):
    tiny = guided(family)
    _, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
    threshold, ticks = early(report.scores)
    found, rows, report = attached_run(tiny, AdaptiveGuidance(threshold))
    assert rows == report.nfe == STEPS + ticks
    assert report.nfe_per_branch == {"cond": (STEPS,), "uncond": (ticks,)}
    assert report.switched == (ticks,)
    interval, rows, _ = attached_run(tiny, Interval(stop=(ticks + 0.5) / STEPS))
    assert torch.equal(found, interval) and rows == STEPS + ticks


@families
def test_never_guided_is_the_call_without_guidance(family):
    tiny = guided(family)
    found, rows, report = attached_run(tiny, AdaptiveGuidance(-1.0))
    assert rows == report.nfe == STEPS
    without, rows, report = attached_run(tiny, AdaptiveGuidance(2.0), **{scale_of(family): 1.0})
    assert rows == report.nfe == STEPS and "none" in str(report)
    if family in RESCALED:
        torch.testing.assert_close(found, without, rtol=0.0, atol=1e-5)
    else:
        assert torch.equal(found, without)


@families
def test_a_batch_is_its_images_one_by_one(family, monkeypatch):
    monkeypatch.setattr(feeding, "unfilled", lambda like: torch.full_like(like, float("nan")))
    tiny = guided(family, 3)
    _, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
    threshold = apart(report.scores)
    ticks = [STEPS if k is None else k + 1 for k in crossings(report.scores, threshold)]
    assert len(set(ticks)) > 1
    found, rows, report = attached_run(tiny, AdaptiveGuidance(threshold))
    assert rows == report.nfe == 3 * STEPS + sum(ticks)
    assert report.nfe_per_branch["uncond"] == tuple(ticks)
    for k in range(3):
        alone, rows, _ = attached_run(tiny, AdaptiveGuidance(threshold), images=slice(k, k + 1))
        assert rows == STEPS + ticks[k]
        torch.testing.assert_close(found[k : k + 1], alone, rtol=0.0, atol=1e-5)


@families
def test_with_a_solver_it_is_that_scheduler(family):
    tiny = guided(family)
    with attach(tiny.pipe, solver="2m"):
        alone = run(tiny)
    found, rows, _ = attached_run(tiny, AdaptiveGuidance(2.0), solver="2m")
    torch.testing.assert_close(found, alone, rtol=0.0, atol=1e-5)
    assert rows == 2 * STEPS


def test_the_solver_begins_anew_at_the_switch():
    tiny = guided("wan")
    smooth, rows, report = attached_run(tiny, AdaptiveGuidance(-1.0, min_steps=2, lower_order=True), solver="2m")
    assert rows == report.nfe == STEPS + 2
    sharp, _, _ = attached_run(tiny, AdaptiveGuidance(-1.0, min_steps=2), solver="2m")
    assert not torch.equal(smooth, sharp)


@families
def test_later_calls_are_the_first(family):
    tiny = guided(family)
    before = run(tiny)
    forward = tiny.denoiser.forward
    with attach(tiny.pipe, guidance=AdaptiveGuidance(-1.0, min_steps=2)) as attached:
        first = run(tiny)
        assert torch.equal(run(tiny), first)
        with pytest.raises(RuntimeError, match="stop here"):
            run(tiny, callback_on_step_end=stop)
        assert torch.equal(run(tiny), first) and attached.report.nfe == STEPS + 2
    assert torch.equal(run(tiny), before)
    assert tiny.denoiser.forward == forward and not {"forward", "cache_context"} & set(vars(tiny.denoiser))


def stop(pipe, i, t, tensors):
    if i == 3:
        raise RuntimeError("stop here")
    return tensors


@families
def test_a_policy_with_a_scale_is_the_call_with_it(family):
    tiny = guided(family)
    threshold = {"min_steps": 2, "threshold": -1.0}
    found, _, _ = attached_run(tiny, AdaptiveGuidance(**threshold), **{scale_of(family): 3.0})
    del tiny.call[scale_of(family)]
    with_scale, _, _ = attached_run(tiny, AdaptiveGuidance(**threshold, scale=3.0))
    assert torch.equal(with_scale, found)
    again, _, _ = attached_run(tiny, AdaptiveGuidance(**threshold, scale=3.0), **{scale_of(family): 3.0})
    assert torch.equal(again, found)


@pytest.mark.parametrize(
    ("policy", "call", "match"),
    [
        (CFG(scale=3.0), {"guidance_scale": 4.0}, "guidance_scale=4 was given, and CFG has scale 3.0"),
        (CFG(scale=(3.0,) * STEPS), {}, "CFG has a scale per step"),
        (CFG(scale=3.0, rescale=0.7), {}, "cannot rescale"),
        (CFG(scale=0.5), {}, "does not guide below 1"),
        (SearchedPolicy((3.0, "cond") * (STEPS // 2)), {}, "SearchedPolicy has its scales in its table"),
        (CFG(scale=3.0), {"guidance_scale_2": 2.0}, "guidance_scale_2=2 was given"),
    ],
)
def test_scales_that_the_pipeline_cannot_take_are_refused(policy, call, match):
    tiny = guided("wan")
    del tiny.call["guidance_scale"]
    with attach(tiny.pipe, guidance=policy), pytest.raises(ConfigError, match=match):
        run(tiny, **call)


def test_the_frozen_difference_is_the_same_with_and_without_a_scale():
    tiny = guided("wan")
    found, rows, report = attached_run(tiny, DeltaReuse(stop=0.5))
    assert rows == report.nfe == STEPS + STEPS // 2
    del tiny.call["guidance_scale"]
    assert torch.equal(attached_run(tiny, DeltaReuse(4.0, stop=0.5))[0], found)


def test_flux_without_a_negative_prompt_has_no_guidance():
    tiny = guided("flux")
    call = {name: value for name, value in tiny.call.items() if "negative" not in name}
    tiny = tiny._replace(call=call)
    before = run(tiny)
    found, rows, report = attached_run(tiny, AdaptiveGuidance())
    assert torch.equal(found, before) and rows == report.nfe == STEPS and "none" in str(report)


@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_lumina_truncates_guidance_by_itself(ratio):
    tiny = guided("lumina2")
    before = run(tiny, cfg_trunc_ratio=ratio)
    found, rows, report = attached_run(tiny, AdaptiveGuidance(2.0), cfg_trunc_ratio=ratio)
    assert torch.equal(found, before)
    assert rows == report.nfe == STEPS + int(ratio * STEPS)
    assert report.evaluations == STEPS


# --- Wan 2.2 ----------------------------------------------------------------------------------------------------------


def wan22() -> tuple[Tiny, WanPipeline]:
    """The first transformer is for timesteps of 800 and more: 3 of 6."""
    tiny = guided("wan")
    pipe = WanPipeline(**{**tiny.pipe.components, "transformer_2": tiny_video.wan().denoiser}, boundary_ratio=0.8)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for parameter in pipe.transformer_2.parameters():
            parameter.mul_(1.1)
    return tiny._replace(pipe=pipe, call={**tiny.call, "guidance_scale_2": 3.0}), pipe


@contextmanager
def both(pipe):
    """(which transformer, rows) of every evaluation, seen by their first blocks."""
    calls = []
    with ExitStack() as stack:
        for module in (pipe.transformer, pipe.transformer_2):
            hook = partial(lambda name, block, args: calls.append((name, len(args[0]))), id(module))
            stack.callback(module.blocks[0].register_forward_pre_hook(hook).remove)
        yield calls


def test_decisions_outlive_the_change_of_transformers():
    tiny, pipe = wan22()
    before = run(tiny)
    with attach(pipe, guidance=AdaptiveGuidance(2.0)) as attached:
        assert torch.equal(run(tiny), before)
    threshold, ticks = early(attached.report.scores)
    assert ticks <= 3
    with attach(pipe, guidance=AdaptiveGuidance(threshold)) as attached, both(pipe) as calls:
        run(tiny)
    first = [rows for name, rows in calls if name == id(pipe.transformer)]
    second = [rows for name, rows in calls if name == id(pipe.transformer_2)]
    assert len(first) == 3 + ticks and len(second) == 3 and set(first + second) == {1}
    assert attached.report.nfe == STEPS + ticks


def test_predictions_do_not_outlive_the_change_of_transformers():
    tiny, pipe = wan22()
    with attach(pipe, guidance=DeltaReuse(stop=0.5)), pytest.raises(IncompatibleError, match="another denoiser made"):
        run(tiny)
    with attach(pipe, guidance=AdaptiveGuidance(-1.0, min_steps=4, on_switch="delta_reuse")) as attached:
        run(tiny)  # the second transformer makes one of its own
    assert attached.report.nfe == STEPS + 4


# --- which call is which ----------------------------------------------------------------------------------------------


def test_calls_in_another_order_than_known_are_refused(monkeypatch):
    tiny = guided("flux")
    monkeypatch.setitem(LAYOUTS, "FluxPipeline", replace(LAYOUTS["FluxPipeline"], order=("uncond", "cond")))
    with attach(tiny.pipe, guidance=AdaptiveGuidance()), pytest.raises(IncompatibleError, match="'uncond' was due"):
        run(tiny)


class InPlace(FlowMatchEulerDiscreteScheduler):
    """Returns the tensor that it was given."""

    def step(self, model_output, timestep, sample, return_dict=True):
        found = super().step(model_output, timestep, sample.clone(), return_dict=False)[0]
        return (sample.copy_(found),)


def test_a_scheduler_that_writes_in_place_does_not_confuse_the_calls():
    tiny = guided("lumina2")
    tiny.pipe.scheduler = InPlace.from_config(tiny.pipe.scheduler.config)
    before = run(tiny, guidance_scale=1.0)
    found, rows, report = attached_run(tiny, AdaptiveGuidance(2.0), guidance_scale=1.0)
    assert torch.equal(found, before) and rows == report.nfe == STEPS and "none" in str(report)


def test_a_tensor_argument_that_is_not_known_is_refused():
    tiny = guided("flux", 2)
    with attach(tiny.pipe, guidance=AdaptiveGuidance(2.0)) as attached:
        run(tiny)
    threshold = apart(attached.report.scores)
    kwargs = {"joint_attention_kwargs": {"other": torch.zeros(2, 3)}}
    with attach(tiny.pipe, guidance=AdaptiveGuidance(threshold)):
        with pytest.raises(IncompatibleError, match="joint_attention_kwargs"):
            run(tiny, **kwargs)


def test_offload_and_bfloat16():
    tiny = guided("flux", 2)
    tiny.pipe.to(torch.bfloat16)
    half = {k: v.bfloat16() for k, v in tiny.call.items() if isinstance(v, torch.Tensor)}
    tiny = tiny._replace(call={**tiny.call, **half})
    before = run(tiny)
    tiny.pipe.enable_model_cpu_offload(device="cpu")
    rows = []  # accelerate keeps the forward that it found, so this counts inside of it
    tiny.denoiser.x_embedder.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    for _ in range(2):
        found, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
        assert torch.equal(found, before) and sum(rows) == report.nfe == 2 * 2 * STEPS
        rows.clear()
    found, _, _ = attached_run(tiny, AdaptiveGuidance(-1.0, min_steps=1))
    assert sum(rows) == 2 * (STEPS + 1) and found.dtype == torch.bfloat16 and found.isfinite().all()
