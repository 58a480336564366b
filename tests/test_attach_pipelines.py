"""attach leaves everything as it was, refuses what it does not know, and takes policies from files."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    IPNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import PAGCFGIdentitySelfAttnProcessor2_0

import fewstep
from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance import policy_file
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.fingerprint import of_pipeline
from fewstep.guidance.interval import Interval
from fewstep.guidance.linear import LinearAG
from fewstep.guidance.made_for import GIVEN, MadeFor

from . import attach_runs, tiny_flow
from .attach_runs import STEPS, counted, gammas_of, guided, raw, run, sd
from .pipeline_runs import relative
from .thresholds import apart

CLOSE = 1e-5


tiny, plain, untouched = attach_runs.tiny, attach_runs.plain, attach_runs.untouched
pytestmark = pytest.mark.usefixtures("untouched")


# --- as it was -------------------------------------------------------------------------------------------------------


def test_calls_do_not_know_of_each_other(tiny, plain):
    """A second call, one after another number of steps, one after an exception in mid-run, one after detach."""

    def stop(pipe, i, t, tensors):
        if i == 2:
            raise RuntimeError("stopped")
        return tensors

    with attach(tiny.pipe, guidance=raw(apart(gammas_of(tiny)))) as attached:
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


def test_a_copy_of_an_attached_pipeline_is_a_pipeline(tiny, plain):
    with attach(tiny.pipe, guidance=raw(-1.0)):
        other = copy.copy(tiny.pipe)
        assert torch.equal(run(tiny._replace(pipe=other)), plain)  # the policy is the first one's
        with attach(other, guidance=raw(2.0)) as attached:
            assert torch.equal(run(tiny._replace(pipe=other)), plain) and attached.report.saved == 0.0
        assert run(tiny).shape == plain.shape and type(other) is StableDiffusionPipeline


def test_a_scheduler_that_was_put_in_later_stays(tiny):
    before = tiny.pipe.scheduler
    try:
        with attach(tiny.pipe, solver="2m"):
            tiny.pipe.scheduler = later = HeunDiscreteScheduler.from_config(before.config)
        assert tiny.pipe.scheduler is later
    finally:
        tiny.pipe.scheduler = before


# --- files and names --------------------------------------------------------------------------------------------------


def test_a_policy_by_name(tiny, plain):
    with attach(tiny.pipe, guidance="adaptive:threshold=2,space=raw") as attached:
        assert torch.equal(run(tiny), plain)
    assert attached.policy == raw(2.0)
    with pytest.raises(ConfigError, match="unknown guidance"):
        attach(tiny.pipe, guidance="adapt")


def test_a_policy_from_a_file_refuses_what_it_was_not_made_for(tiny, tmp_path):
    """Linear in what was evaluated at the first tick: frozen differences, by other names."""
    kinds = ("cfg", *("linear",) * (STEPS - 1))
    rest = {i: {"cond": 1.0, "cond@0": -1.0, "uncond@0": 1.0} for i in range(1, STEPS)}
    with attach(tiny.pipe, solver="2m", guidance=DeltaReuse(stop=1 / STEPS)):
        expected, table = run(tiny), tiny.pipe.scheduler.table
    weights = of_pipeline(tiny.pipe)
    made_for = MadeFor.of_table(table, weights=weights, prediction="eps", scale=4.0, negative=GIVEN, space="raw")
    policy_file.save(LinearAG(rest, kinds), tmp_path / "own.safetensors", made_for)
    with pytest.raises(IncompatibleError), attach(tiny.pipe, guidance=tmp_path / "own.safetensors"):
        run(tiny)  # the levels of another scheduler
    with attach(tiny.pipe, solver="2m", guidance=tmp_path / "own.safetensors") as attached:
        assert relative(run(tiny), expected) < CLOSE
        assert attached.report.nfe_per_image == (STEPS + 1,) * 2
        for change, words in (
            ({"guidance_scale": 5.0}, "scale 4, and this is 5"),
            ({"num_inference_steps": STEPS + 1}, "steps"),
            ({"negative_prompt": ["", ""]}, "negative prompt of its own"),
        ):
            with pytest.raises(IncompatibleError, match=words):
                run(tiny, **change)
        kept = {name: value.clone() for name, value in tiny.denoiser.state_dict().items()}
        tiny.denoiser.load_state_dict({name: 2.0 * value for name, value in kept.items()})
        with pytest.raises(IncompatibleError, match="another model"):
            run(tiny)
        tiny.denoiser.load_state_dict(kept)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_attached(tiny):
    with pytest.raises(ConfigError, match="needs solver="):
        attach(tiny.pipe)
    with pytest.raises(ConfigError, match="grid="):
        attach(tiny.pipe, guidance=raw(0.9), grid="karras")
    with pytest.raises(ConfigError, match="AdaptiveGuidance"):
        attach(tiny.pipe, guidance=7.5)  # type: ignore[arg-type]
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
        with attach(tiny.pipe, guidance=other), pytest.raises(IncompatibleError, match=r"not known.*solver="):
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
