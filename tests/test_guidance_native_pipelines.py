"""Guidance policies in `fewstep.sample` and around real networks: one call a tick for the rows that are needed."""

import math

import pytest
import torch

import fewstep
from fewstep.guidance.adaptive import AdaptiveGuidance as AG
from fewstep.guidance.cfg import CFG
from fewstep.guidance.interval import Interval
from fewstep.samplers import feeding
from fewstep.samplers.backbones import backbone_of

from .guided_problems import apart
from .tiny import tiny_sd, tiny_sdxl

PROMPTS = ["a red circle", "two blue squares left of a star", "x"]
STEPS, SCALE = 6, 5.0
TINY = {"sd": tiny_sd, "sdxl": tiny_sdxl}
ROUNDED = {"rtol": 0.0, "atol": 1e-5}  # float32: a network's own sums depend on its batch


class Counter:
    """Rows and calls of a denoiser, by a hook of its own."""

    def __init__(self, module):
        self.rows = []
        module.register_forward_pre_hook(lambda _, args: self.rows.append(args[0].shape[0]))

    def taken(self):
        rows, self.rows = self.rows, []
        return rows


@pytest.fixture(scope="module", params=TINY)
def model(request):
    pipe = TINY[request.param]()
    torch.manual_seed(1)
    with torch.no_grad():  # so that the prompt matters
        for name, parameter in pipe.unet.named_parameters():
            if "attn2" in name:
                parameter.mul_(6.0)
    return backbone_of(pipe), Counter(pipe.unet)


def sample(model, guidance, prompts=PROMPTS, **options):
    """(images, report, rows of every call)."""
    options = {"solver": "2m", "steps": STEPS, "seeds": list(range(len(prompts))), **options}
    result = fewstep.sample(model[0], prompts, guidance=guidance, **options)
    return result.images, result.report, model[1].taken()


@pytest.fixture(scope="module")
def threshold(model):
    return apart(sample(model, AG(2.0, scale=SCALE, space="raw"))[1].scores)


def test_above_one_and_below_minus_one(model):
    cfg, report, rows = sample(model, CFG(SCALE))
    for policy in (AG(1.5, scale=SCALE), AG(1.5), AG(1.5, scale=SCALE, rule="same"), Interval(SCALE)):
        images, found, its_rows = sample(model, policy, guidance_scale=SCALE)
        assert torch.equal(images, cfg) and its_rows == rows == [6] * STEPS and found.nfe == report.nfe == sum(rows)
    plain, _, rows = sample(model, CFG(1.0))
    for policy in (AG(-1.0, scale=SCALE), AG(0.9, scale=1.0), Interval(SCALE, stop=0.0)):
        images, found, its_rows = sample(model, policy)
        assert torch.equal(images, plain) and its_rows == rows == [3] * STEPS and found.nfe == sum(rows)
    assert (plain - cfg).abs().max() > 1e-3


@pytest.mark.parametrize("options", ({}, {"rule": "same"}, {"on_switch": "delta_reuse"}), ids=str)
def test_mixed_images_are_one_call_a_tick(model, threshold, options, monkeypatch):
    policy = AG(threshold, space="raw", scale=SCALE, **options)
    images, report, rows = sample(model, policy)
    assert len(rows) == STEPS and sum(rows) == report.nfe
    assert any(3 < n < 6 for n in rows)
    monkeypatch.setattr(feeding, "unfilled", lambda like: torch.full_like(like, math.nan))
    again, _, _ = sample(model, policy)
    assert torch.equal(again, images) and torch.isfinite(images).all()
    for k, prompt in enumerate(PROMPTS):
        alone, its_report, _ = sample(model, policy, [prompt], seeds=[k])
        assert its_report.nfe == report.nfe_per_image[k]
        assert torch.allclose(alone[0], images[k], **ROUNDED)


def test_all_keeps_one_shape(model, threshold):
    _, report, rows = sample(model, AG(threshold, space="raw", scale=SCALE, batch="all"))
    assert set(rows) <= {3, 6} and len(set(report.nfe_per_image)) == 1


def test_a_solver_by_steps_and_a_negative_prompt(model, threshold):
    policy = AG(threshold, space="raw", scale=SCALE)
    _, report, rows = sample(model, policy, solver="heun", negative_prompts="blurry")
    assert sum(rows) == report.nfe and len(rows) == report.evaluations
    table = fewstep.sample(model[0], PROMPTS[0], solver="heun", steps=STEPS, guidance=policy).table
    assert all(table.plan.stage[i] == 0 for i in report.scores)
