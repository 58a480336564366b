"""attach on pipelines that call the denoiser twice a tick: Flux, Chroma, QwenImage, CogView4, Lumina 2, Wan."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.interval import Interval
from fewstep.guidance.linear import LinearAG
from fewstep.guidance.searched import SearchedPolicy
from fewstep.samplers import feeding
from fewstep.samplers.policy import Policy

from . import tiny_flow, tiny_separate, tiny_video
from .attach_runs import counted, negatives
from .thresholds import STEPS, apart, clean_cosines, crossings, early, run
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
def test_gamma_compares_the_clean_images(family):
    tiny = guided(family, 2)
    expected = clean_cosines(tiny, -1.0 if family == "lumina2" else 1.0)
    _, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
    found = torch.tensor(list(report.scores.values()), dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0.0, atol=1e-6)


def test_the_step_that_crosses_may_be_left_unguided():
    tiny = guided("wan")
    _, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
    threshold, ticks = early(report.scores)
    found, rows, _ = attached_run(tiny, AdaptiveGuidance(threshold, rule="same"))
    interval, _, _ = attached_run(tiny, Interval(stop=(ticks - 0.5) / STEPS))
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
        (SearchedPolicy((3.0, "cond") * (STEPS // 2)), {}, "SearchedPolicy has its own scales"),
        (CFG(scale=3.0), {"guidance_scale_2": 2.0}, "guidance_scale_2=2 was given"),
    ],
)
def test_scales_that_the_pipeline_cannot_take_are_refused(policy, call, match):
    tiny = guided("wan")
    del tiny.call["guidance_scale"]
    with attach(tiny.pipe, guidance=policy), pytest.raises(ConfigError, match=match):
        run(tiny, **call)


class Own(Policy):
    """Its weights are the guided prediction, whatever else is asked of it; not a dataclass."""

    scale = 4.0

    def branches(self, i, memory):
        return {"uncond": None, "cond": None} if i < STEPS // 2 else {"cond": None}

    def weights(self, i, gram, memory):
        return {"uncond": 1.0 - 4.0, "cond": 4.0} if i < STEPS // 2 else {"cond": 1.0}


def test_a_policy_of_somebody_elses_with_a_scale_is_not_guided_twice():
    tiny = guided("wan")
    expected, _, _ = attached_run(tiny, Interval(stop=0.5))
    del tiny.call["guidance_scale"]
    found, rows, report = attached_run(tiny, Own())
    assert torch.equal(found, expected) and rows == report.nfe == STEPS + STEPS // 2


def test_the_frozen_difference_is_the_same_with_and_without_a_scale():
    tiny = guided("wan")
    found, rows, report = attached_run(tiny, DeltaReuse(stop=0.5))
    assert rows == report.nfe == STEPS + STEPS // 2
    del tiny.call["guidance_scale"]
    assert torch.equal(attached_run(tiny, DeltaReuse(4.0, stop=0.5))[0], found)


def test_a_linear_combination_of_earlier_predictions():
    """The frozen difference written as LinearAG."""
    tiny, half = guided("wan"), STEPS // 2
    line = {"cond": 1.0, f"cond@{half - 1}": -1.0, f"uncond@{half - 1}": 1.0}
    policy = LinearAG(dict.fromkeys(range(half, STEPS), line), ("cfg",) * half + ("linear",) * half)
    found, rows, report = attached_run(tiny, policy)
    assert rows == report.nfe == STEPS + half
    expected, _, _ = attached_run(tiny, DeltaReuse(stop=0.5))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


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
