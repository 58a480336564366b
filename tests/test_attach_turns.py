"""attach on two-forward pipelines: which call is which, the two transformers of Wan 2.2, offload and half precision."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, WanPipeline

from fewstep.errors import IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.attach_layouts import LAYOUTS
from fewstep.guidance.delta_reuse import DeltaReuse

from . import tiny_video
from .test_attach_separate import attached_run, guided
from .thresholds import STEPS, early, run
from .tiny_flow import Tiny

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


def test_the_calls_of_inference_tensors_are_told_by_their_timesteps():
    """Such tensors do not count how often they were written to."""
    tiny = guided("lumina2")
    tiny.pipe.scheduler = InPlace.from_config(tiny.pipe.scheduler.config)
    with torch.inference_mode():
        for scale in (1.0, 4.0):
            before = run(tiny, guidance_scale=scale)
            found, rows, report = attached_run(tiny, AdaptiveGuidance(2.0), guidance_scale=scale)
            assert torch.equal(found, before) and rows == report.nfe == STEPS * (1 + (scale > 1.0))
        tiny = guided("wan")
        tiny.pipe.scheduler = InPlace.from_config(tiny.pipe.scheduler.config)
        before = run(tiny)
        found, rows, report = attached_run(tiny, AdaptiveGuidance(2.0))
        assert torch.equal(found, before) and rows == report.nfe == 2 * STEPS


def test_a_tensor_argument_that_is_not_known_is_refused_at_the_first_tick():
    tiny = guided("flux", 2)
    kwargs = {"joint_attention_kwargs": {"other": torch.zeros(2, 3)}}
    with attach(tiny.pipe, guidance=AdaptiveGuidance(2.0)) as attached:
        with pytest.raises(IncompatibleError, match="joint_attention_kwargs"):
            run(tiny, **kwargs)
        assert attached.report is None


def test_a_cache_is_refused_where_images_may_differ():
    tiny = guided("flux", 2)
    tiny.denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    plain = run(tiny)
    with attach(tiny.pipe, guidance=AdaptiveGuidance(2.0)), pytest.raises(IncompatibleError, match="disable_cache"):
        run(tiny)
    found, _, _ = attached_run(tiny, AdaptiveGuidance(2.0, batch="all"))
    assert torch.equal(found, plain)


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
