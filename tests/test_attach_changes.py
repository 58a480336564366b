"""attach when a callback changes the run, and what is made from an attached pipeline."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline

from fewstep.errors import IncompatibleError
from fewstep.guidance.attach import attach
from fewstep.guidance.attach_session import negative_of
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.made_for import EMPTY, GIVEN

from .attach_runs import guided, raw, run, sd
from .tiny_flow import Tiny


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return guided(sd, 2)


@pytest.fixture(scope="module")
def plain(tiny) -> torch.Tensor:
    return run(tiny)


def after(step, change):
    """A callback that changes the pipeline, or the tensors, after this step."""

    def call(pipe, i, t, tensors):
        return change(pipe, tensors) or tensors if i == step else tensors

    return {"callback_on_step_end": call, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}


def test_guidance_that_was_off_cannot_come_back(tiny):
    class OffAndOn:
        def __call__(self, pipe, i, t, tensors):
            pipe._guidance_scale = 1.0 if i == 0 else 4.0
            negative, positive = (
                tensors["prompt_embeds"].chunk(2) if i == 0 else (self.negative, tensors["prompt_embeds"])
            )
            self.negative = negative
            return {"prompt_embeds": positive if i == 0 else torch.cat([negative, positive])} if i < 2 else {}

    inputs = {"callback_on_step_end": OffAndOn(), "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    for policy in (DeltaReuse(stop=0.4), raw(2.0)):
        with attach(tiny.pipe, guidance=policy), pytest.raises(IncompatibleError, match="guidance on in mid-run"):
            run(tiny, **inputs)


def test_a_batch_that_changes_in_mid_run_is_refused(tiny):
    def first(pipe, tensors):
        return {"latents": tensors["latents"][:1], "prompt_embeds": tensors["prompt_embeds"][::2]}

    with attach(tiny.pipe, guidance=raw(2.0)), pytest.raises(IncompatibleError, match="batch changed in mid-run"):
        run(tiny, **after(1, first))


def test_what_is_made_from_an_attached_pipeline_is_not_attached(tiny, plain):
    with attach(tiny.pipe, guidance=raw(-1.0)):
        attached_kind = type(tiny.pipe)
        make, arguments, *_ = tiny.pipe.__reduce_ex__(4)  # what pickle stores
        deep, stored = copy.deepcopy(tiny.pipe), make(*arguments)
        other = tiny.pipe.from_pipe(tiny.pipe)
        assert type(tiny.pipe) is attached_kind
    for made in (deep, stored, other):
        assert type(made) is StableDiffusionPipeline
    deep.set_progress_bar_config(disable=True)
    assert torch.equal(run(tiny._replace(pipe=deep)), plain)


@pytest.mark.parametrize("name", ["negative_prompt", "negative_prompt_2", "negative_prompt_3"])
def test_a_negative_prompt_of_any_text_encoder_counts(name):
    assert negative_of({name: "blue"}) == negative_of({name: ["", "blue"]}) == GIVEN
    assert negative_of({name: None}) == negative_of({name: ["", ""]}) == negative_of({}) == EMPTY
    assert negative_of({name: "blue", "negative_prompt_embeds": torch.ones(1)}) is None
