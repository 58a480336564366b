"""attach itself, on a tiny Stable Diffusion: policies, scales, reports, and leaving everything as it was."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.models.attention_processor import PAGCFGIdentitySelfAttnProcessor2_0

import fewstep
from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.interval import Interval
from fewstep.guidance.searched import SearchedPolicy
from fewstep.samplers import DPMpp2M
from fewstep.samplers.scheduler import FewstepScheduler

from . import tiny_flow
from .attach_runs import STEPS, counted, guided, run, sd
from .pipeline_runs import relative
from .thresholds import apart, crossings, early
from .tiny_flow import Tiny

CLOSE = 1e-5


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    """One for all tests that leave it as it was, which is what most of them are about."""
    return guided(sd, 2)


@pytest.fixture(scope="module")
def plain(tiny) -> torch.Tensor:
    return run(tiny)


@pytest.fixture(scope="module")
def gammas(tiny) -> dict[int, tuple[float, ...]]:
    """Of the raw predictions of a run that is guided to the end."""
    with attach(tiny.pipe, guidance=raw(2.0)) as attached:
        run(tiny)
    return attached.report.scores


@pytest.fixture(autouse=True)
def untouched(request):
    """Whatever a test does with the shared pipeline, it runs as before."""
    yield
    if "tiny" in request.fixturenames:
        pipe = request.getfixturevalue("tiny").pipe
        assert type(pipe) is StableDiffusionPipeline and "forward" not in vars(pipe.unet)
        assert not isinstance(pipe.scheduler, FewstepScheduler)


def raw(threshold: float, **fields) -> AdaptiveGuidance:
    return AdaptiveGuidance(threshold, space="raw", **fields)


# --- policies --------------------------------------------------------------------------------------------------------


def test_a_switch_after_step_k_is_the_interval_up_to_it(tiny, gammas):
    """Both images of the batch switch together, as an interval does."""
    threshold = min(max(g[k] for k in range(2)) for g in gammas.values()) - 1e-6
    threshold = gammas[1][0] if threshold is None else threshold
    with attach(tiny.pipe, guidance=raw(threshold, batch="all")) as attached:
        adaptive = run(tiny)
    (step,) = set(attached.report.switched)
    with attach(tiny.pipe, guidance=Interval(stop=step / STEPS)) as attached:
        assert torch.equal(run(tiny), adaptive)
    assert attached.report.nfe_per_image == (STEPS + step,) * 2


@pytest.mark.parametrize("rule", ["next", "same"])
def test_of_one_image_too_and_by_either_rule(rule, tiny, gammas):
    threshold, guided_steps = early({i: row[:1] for i, row in gammas.items()})
    with attach(tiny.pipe, guidance=raw(threshold, rule=rule)) as attached:
        adaptive = run(tiny, 0)
    assert attached.report.nfe == STEPS + guided_steps
    kept = guided_steps - (rule == "same")
    with attach(tiny.pipe, guidance=Interval(stop=kept / STEPS)):
        other = run(tiny, 0)
    if rule == "next":
        assert torch.equal(other, adaptive)
    else:  # the step that crossed had c from a batch of two rows, the interval has it alone
        assert relative(other, adaptive) < CLOSE


def test_delta_reuse_goes_on_with_the_last_difference(tiny, plain):
    with attach(tiny.pipe, guidance=DeltaReuse(stop=0.4)) as attached:
        found = run(tiny)
    assert attached.report.nfe_per_image == (STEPS + 2,) * 2
    with attach(tiny.pipe, guidance=DeltaReuse(4.0, stop=0.4)):
        assert relative(run(tiny), found) < CLOSE
    with attach(tiny.pipe, guidance=Interval(stop=0.4)):
        assert relative(run(tiny), found) > 1e-3 < relative(plain, found)


def test_a_searched_policy_has_its_scales_in_its_table(tiny, plain):
    with attach(tiny.pipe, guidance=SearchedPolicy((4.0,) * STEPS)):
        with pytest.raises(ConfigError, match="guidance_scale"):
            run(tiny)
        assert relative(run(without_scale(tiny)), plain) < CLOSE


def test_lag_costs_one_evaluation_each(tiny, gammas):
    threshold = apart(gammas)
    first = crossings(gammas, threshold)
    with attach(tiny.pipe, guidance=raw(threshold, lag=1)) as attached:
        run(tiny)
    expected = tuple(STEPS + (STEPS if k is None else min(k + 2, STEPS)) for k in first)
    assert attached.report.nfe_per_image == expected


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2DiscreteScheduler])
def test_schedulers_of_second_order_decide_once_a_step(kind, tiny, monkeypatch):
    monkeypatch.setattr(tiny.pipe, "scheduler", kind.from_config(tiny.pipe.scheduler.config))
    plain = run(tiny)
    with attach(tiny.pipe, guidance=raw(2.0)) as attached, counted(tiny.denoiser) as rows:
        assert torch.equal(run(tiny), plain)
    steps = attached.report.guided.run.step
    assert len(rows) == len(steps) > STEPS == steps[-1] + 1
    assert sorted(attached.report.scores) == [
        i for i, stage in enumerate(attached.report.guided.run.stage) if not stage
    ]
    with attach(tiny.pipe, guidance=raw(-0.5)) as attached, counted(tiny.denoiser) as rows:
        run(tiny)
    assert rows == [4, 4] + [2] * (len(rows) - 2)  # both evaluations of the first step


# --- who has the scale -----------------------------------------------------------------------------------------------


def without_scale(tiny: Tiny) -> Tiny:
    return tiny._replace(call={k: v for k, v in tiny.call.items() if k != "guidance_scale"})


def test_two_scales_that_differ_are_one_error(tiny, plain):
    with attach(tiny.pipe, guidance=raw(2.0, scale=5.0)):
        with pytest.raises(ConfigError, match=r"guidance_scale=4 was given.*scale 5\.0"):
            run(tiny)
        with pytest.raises(ConfigError, match="guidance_rescale"):
            run(without_scale(tiny), guidance_rescale=0.7)
    with attach(tiny.pipe, guidance=raw(2.0, scale=4.0)):
        assert relative(run(tiny), plain) < CLOSE  # the same twice is no contradiction
    with attach(tiny.pipe, guidance=CFG((5.0,) * STEPS)), pytest.raises(ConfigError, match="give one"):
        run(tiny)


def test_scales_per_step(tiny, plain):
    with attach(tiny.pipe, guidance=CFG((4.0,) * STEPS)):
        assert relative(run(without_scale(tiny)), plain) < CLOSE
    with attach(tiny.pipe, guidance=CFG((4.0, 4.0) + (1.0,) * (STEPS - 2))) as attached:
        found = run(without_scale(tiny))
    assert attached.report.nfe_per_image == (STEPS + 2,) * 2
    with attach(tiny.pipe, guidance=Interval(stop=2 / STEPS)):
        assert relative(run(tiny), found) < CLOSE
    with attach(tiny.pipe, guidance=CFG((4.0,))), pytest.raises(ConfigError, match="1 guidance scales"):
        run(without_scale(tiny))


def test_rescaling_is_the_pipelines_or_the_policys(tiny):
    plain = run(tiny, guidance_rescale=0.7)
    with attach(tiny.pipe, guidance=raw(2.0)):
        assert torch.equal(run(tiny, guidance_rescale=0.7), plain)
    with attach(tiny.pipe, guidance=CFG(4.0, rescale=0.7)):
        assert relative(run(without_scale(tiny)), plain) < CLOSE
    with attach(tiny.pipe, guidance=CFG(rescale=0.7)), pytest.raises(ConfigError, match="rescale needs"):
        run(tiny)


def test_a_call_without_guidance_is_left_alone_and_the_report_says_so(tiny):
    plain = run(tiny, guidance_scale=1.0)
    with attach(tiny.pipe, guidance=raw(0.9)) as attached, counted(tiny.denoiser) as rows:
        assert torch.equal(run(tiny, guidance_scale=1.0), plain)
    assert sum(rows) == attached.report.nfe == 2 * STEPS
    assert "ran without it" in str(attached.report)


def test_a_cutoff_callback_of_diffusers_ends_the_policys_work(tiny):
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    plain = run(tiny, 0, callback_on_step_end=cutoff)
    with attach(tiny.pipe, guidance=raw(2.0)) as attached:
        assert torch.equal(run(tiny, 0, callback_on_step_end=cutoff), plain)
    assert attached.report.nfe == STEPS + 2


def test_guidance_cannot_come_in_mid_run(tiny):
    def on(pipe, i, t, tensors):
        pipe._guidance_scale = 4.0
        return tensors

    with attach(tiny.pipe, guidance=raw(2.0)), pytest.raises(IncompatibleError, match="mid-run"):
        run(tiny, guidance_scale=1.0, callback_on_step_end=on)


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_counts_and_says_it_in_a_line(tiny, gammas):
    threshold = apart(gammas)
    with attach(tiny.pipe, guidance=raw(threshold)) as attached:
        assert attached.report is None
        run(tiny)
    report = attached.report
    assert report.batch == 2 and report.evaluations == STEPS
    first = crossings(gammas, threshold)
    assert report.switched == tuple(None if k is None or k + 1 == STEPS else k + 1 for k in first)
    assert math.isclose(report.saved, 1.0 - report.nfe / (4 * STEPS))
    assert f"{report.nfe / 2:g} NFE an image of {2 * STEPS}" in str(report) and "switched at step" in str(report)
    assert [(math.isnan(a), math.isnan(b)) for a, b in report.scores.values()][-1] != (False, False)


def test_a_solver_alone_has_no_report(tiny):
    with attach(tiny.pipe, solver="2m") as attached:
        run(tiny)
        assert attached.report is None and tiny.pipe.scheduler.solver == DPMpp2M()


# --- as it was -------------------------------------------------------------------------------------------------------


def test_calls_do_not_know_of_each_other(tiny, plain, gammas):
    """A second call, one after another number of steps, one after an exception in mid-run, one after detach."""

    def stop(pipe, i, t, tensors):
        if i == 2:
            raise RuntimeError("stopped")
        return tensors

    with attach(tiny.pipe, guidance=raw(apart(gammas))) as attached:
        first, report = run(tiny), attached.report
        run(tiny, num_inference_steps=3)
        assert torch.equal(run(tiny), first)
        with pytest.raises(RuntimeError, match="stopped"):
            run(tiny, callback_on_step_end=stop)
        assert len(attached.report.ticks) == 3 and "forward" not in vars(tiny.denoiser)
        assert torch.equal(run(tiny), first) and attached.report.nfe_per_image == report.nfe_per_image
    assert torch.equal(run(tiny), plain)
    attached.detach()  # once more does nothing


def test_other_pipelines_share_the_components(tiny, plain):
    other = StableDiffusionPipeline(**tiny.pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with attach(tiny.pipe, guidance=raw(-1.0)):
        run(tiny)
        assert torch.equal(run(tiny._replace(pipe=other)), plain)


def test_the_pipeline_stays_what_it_is(tiny, tmp_path):
    with attach(tiny.pipe, guidance=raw(2.0)):
        kind = type(tiny.pipe)
        assert isinstance(tiny.pipe, StableDiffusionPipeline) and kind.__name__ == "StableDiffusionPipeline"
        assert kind.__module__ == StableDiffusionPipeline.__module__
        assert set(tiny.pipe.components) >= {"unet", "vae"}
        assert kind.__call__.__doc__ == StableDiffusionPipeline.__call__.__doc__


def test_detach_in_mid_run_ends_with_that_run(tiny, plain):
    attached = attach(tiny.pipe, guidance=raw(2.0))

    def leave(pipe, i, t, tensors):
        attached.detach()
        return tensors

    assert torch.equal(run(tiny, callback_on_step_end=leave), plain)
    assert type(tiny.pipe) is StableDiffusionPipeline


def test_a_call_inside_a_call_is_refused(tiny):
    def again(pipe, i, t, tensors):
        run(tiny)
        return tensors

    with attach(tiny.pipe, guidance=raw(2.0)), pytest.raises(IncompatibleError, match="while another call"):
        run(tiny, callback_on_step_end=again)


def test_several_images_a_prompt(tiny):
    generators = [torch.Generator().manual_seed(k) for k in range(4)]
    states = [g.get_state() for g in generators]

    def four():
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return tiny.pipe(**tiny.call, num_images_per_prompt=2, generator=generators).images

    plain = four()
    with attach(tiny.pipe, guidance=raw(2.0)) as attached:
        assert torch.equal(four(), plain)
    threshold = apart(attached.report.scores)
    with attach(tiny.pipe, guidance=raw(threshold)) as attached, counted(tiny.denoiser) as rows:
        four()
    assert attached.report.batch == 4 and sum(rows) == attached.report.nfe < 8 * STEPS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tiny = guided(tiny_flow.sd3, 2)
    tiny.pipe.to(dtype)
    tiny.call.update({k: v.to(dtype) for k, v in tiny.call.items() if isinstance(v, torch.Tensor)})
    plain = run(tiny)
    with attach(tiny.pipe, guidance=raw(2.0)) as attached:
        assert torch.equal(run(tiny), plain)
    with attach(tiny.pipe, guidance=raw(apart(attached.report.scores))) as attached:
        found = run(tiny)
    assert found.dtype == plain.dtype and found.isfinite().all() and attached.report.nfe < 4 * STEPS


# --- with a solver ---------------------------------------------------------------------------------------------------


def test_lower_order_needs_our_solver_and_makes_it_begin_anew(tiny, gammas):
    with pytest.raises(ConfigError, match="solver="):
        attach(tiny.pipe, guidance=raw(0.9, lower_order=True))
    with attach(tiny.pipe, solver="2m", guidance=raw(2.0)) as attached:
        run(tiny)
    threshold = apart(attached.report.scores)
    found = {}
    for lower in (False, True):
        with attach(tiny.pipe, solver="2m", guidance=raw(threshold, lower_order=lower)) as attached:
            found[lower] = run(tiny)
            if lower:
                singles = torch.cat([run(tiny, k) for k in range(2)])
                assert relative(singles, found[True]) < CLOSE
    assert relative(found[True], found[False]) > 1e-4


def test_a_scheduler_that_was_put_in_later_stays(tiny):
    before = tiny.pipe.scheduler
    try:
        with attach(tiny.pipe, solver="2m"):
            tiny.pipe.scheduler = later = HeunDiscreteScheduler.from_config(before.config)
        assert tiny.pipe.scheduler is later
    finally:
        tiny.pipe.scheduler = before


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_attached(tiny):
    with pytest.raises(ConfigError, match="needs solver="):
        attach(tiny.pipe)
    with pytest.raises(ConfigError, match="grid="):
        attach(tiny.pipe, guidance=raw(0.9), grid="karras")
    with pytest.raises(ConfigError, match="AdaptiveGuidance"):
        attach(tiny.pipe, guidance="ag")  # type: ignore[arg-type]
    with attach(tiny.pipe, guidance=raw(0.9)), pytest.raises(ConfigError, match="already"):
        attach(tiny.pipe, guidance=raw(0.9))
    assert fewstep.attach is attach


def test_pipelines_that_are_not_known():
    parts = sd(1).pipe.components
    edit = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(IncompatibleError, match=r"InstructPix2Pix.*three.*StableDiffusionPipeline"):
        attach(edit, guidance=raw(0.9))

    class Own(StableDiffusionPipeline):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    class Named(StableDiffusionPipeline):
        pass

    with pytest.raises(IncompatibleError, match="Own"):
        attach(Own(**parts, requires_safety_checker=False), guidance=raw(0.9))
    named = Named(**parts, requires_safety_checker=False)
    with attach(named, guidance=raw(0.9)):
        assert isinstance(named, Named)
    assert type(named) is Named


def test_a_scheduler_that_is_not_known_allows_raw_predictions_alone(tiny, monkeypatch):
    monkeypatch.setattr(tiny.pipe, "scheduler", IPNDMScheduler())
    plain = run(tiny)
    with attach(tiny.pipe, guidance=raw(2.0)):
        assert torch.equal(run(tiny), plain)
    for other in (AdaptiveGuidance(0.9), Interval(sigma=(0.3, 5.0))):
        with attach(tiny.pipe, guidance=other), pytest.raises(IncompatibleError, match='space="raw"'):
            run(tiny)


def test_arguments_that_nobody_knows_how_to_cut_are_refused_by_name(tiny):
    masks = {"ip_adapter_masks": [torch.ones(1, 1, 8, 8)]}
    with attach(tiny.pipe, guidance=raw(2.0)), pytest.raises(IncompatibleError, match="cross_attention_kwargs"):
        run(tiny, cross_attention_kwargs=masks)


def test_attention_that_mixes_rows_is_refused():
    tiny = guided(sd, 1)
    tiny.denoiser.set_attn_processor(PAGCFGIdentitySelfAttnProcessor2_0())
    with attach(tiny.pipe, guidance=raw(2.0)), pytest.raises(IncompatibleError, match="set_default_attn_processor"):
        run(tiny)


def test_a_cache_is_refused(monkeypatch):
    tiny = guided(tiny_flow.sd3, 1)
    monkeypatch.setattr(type(tiny.denoiser), "is_cache_enabled", True, raising=False)
    with attach(tiny.pipe, guidance=raw(2.0)), pytest.raises(IncompatibleError, match="disable_cache"):
        run(tiny)


def test_a_policy_that_asks_for_what_the_pipeline_has_not(tiny):
    class Third(CFG):
        def branches(self, i, memory):
            return {"uncond": None, "cond": None, "image": None}

    class Some(CFG):
        def branches(self, i, memory):
            return {"uncond": (0,), "cond": (1,)}

        def weights(self, i, gram, memory):
            return {"uncond": (1.0, 0.0), "cond": (0.0, 1.0)}

    with attach(tiny.pipe, guidance=Third()), pytest.raises(IncompatibleError, match="'image'"):
        run(tiny)
    with attach(tiny.pipe, guidance=Some(4.0)), pytest.raises(IncompatibleError, match="no branch for all"):
        run(tiny)
