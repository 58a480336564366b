"""attach on pipelines that ask a guider: HunyuanVideo 1.5, HunyuanImage 2.1, Modular SDXL and Wan."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from diffusers import guiders
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
)

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.interval import Interval
from fewstep.guidance.searched import SearchedPolicy

from . import tiny_guider
from .attach_runs import counted
from .thresholds import STEPS, apart, clean_cosines, crossings, early, run
from .tiny_flow import Tiny
from .tiny_guider import hunyuan_image, modular_sdxl, modular_wan

FAMILIES = {
    "hunyuan_video": tiny_guider.hunyuan_video,
    "hunyuan_image": hunyuan_image,
    "modular_sdxl": modular_sdxl,
    "modular_wan": modular_wan,
    "modular_wan22": partial(modular_wan, second=True),
}
families = pytest.mark.parametrize("family", FAMILIES)


def attached_run(tiny: Tiny, policy, solver=None, **images):
    """(latents, rows that the denoisers evaluated, report)."""
    with attach(tiny.pipe, solver=solver, guidance=policy) as attached, counted(tiny.denoiser) as rows:
        found = run(tiny, **images)
    return found, sum(rows), attached.report


@families
def test_without_a_switch_it_is_the_pipeline_to_the_bit(family):
    tiny = FAMILIES[family](2)
    before = run(tiny)
    found, rows, report = attached_run(tiny, AdaptiveGuidance(2.0))
    assert torch.equal(found, before)
    assert rows == report.nfe == 2 * 2 * STEPS
    without, _, _ = attached_run(tiny, AdaptiveGuidance(-1.0))
    assert not torch.allclose(without, before, atol=1e-3)  # guidance does something here


@families
def test_a_run_costs_a_row_for_each_tick_and_one_for_each_guided_tick(family):
    tiny = FAMILIES[family]()
    _, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
    threshold, ticks = early(report.scores)
    found, rows, report = attached_run(tiny, AdaptiveGuidance(threshold))
    assert rows == report.nfe == STEPS + ticks
    assert report.nfe_per_branch == {"cond": (STEPS,), "uncond": (ticks,)}
    interval, rows, _ = attached_run(tiny, Interval(stop=(ticks + 0.5) / STEPS))
    assert torch.equal(found, interval) and rows == STEPS + ticks


@pytest.mark.parametrize("family", ["hunyuan_video", "modular_wan"])
def test_gamma_compares_the_clean_images(family):
    tiny = FAMILIES[family](2)
    expected = clean_cosines(tiny)
    _, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
    found = torch.tensor(list(report.scores.values()), dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0.0, atol=1e-6)


def test_the_step_that_crosses_may_be_left_unguided():
    tiny = modular_wan()
    _, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
    threshold, ticks = early(report.scores)
    found, rows, _ = attached_run(tiny, AdaptiveGuidance(threshold, rule="same"))
    interval, _, _ = attached_run(tiny, Interval(stop=(ticks - 0.5) / STEPS))
    assert torch.equal(found, interval) and rows == STEPS + ticks


@families
def test_a_batch_is_its_images_one_by_one(family):
    """The last image to switch decides the cost, and nothing else."""
    tiny = FAMILIES[family](3)
    _, _, report = attached_run(tiny, AdaptiveGuidance(2.0))
    threshold = apart(report.scores)
    ticks = [STEPS if k is None else k + 1 for k in crossings(report.scores, threshold)]
    found, rows, report = attached_run(tiny, AdaptiveGuidance(threshold))
    assert rows == report.nfe == 3 * (STEPS + max(ticks))
    for k in range(3):
        alone, rows, _ = attached_run(tiny, AdaptiveGuidance(threshold), images=slice(k, k + 1))
        assert rows == STEPS + ticks[k]
        assert_same(found[k : k + 1], alone)


@families
def test_with_a_solver_it_is_that_scheduler(family):
    tiny = FAMILIES[family]()
    with attach(tiny.pipe, solver="2m"):
        alone = run(tiny)
    found, rows, _ = attached_run(tiny, AdaptiveGuidance(2.0), solver="2m")
    torch.testing.assert_close(found, alone, rtol=0.0, atol=1e-5)
    assert rows == 2 * STEPS


@families
def test_later_calls_are_the_first(family, monkeypatch):
    tiny = FAMILIES[family]()
    before, guider, state = run(tiny), tiny.pipe.guider, dict(vars(tiny.pipe))
    with attach(tiny.pipe, guidance=AdaptiveGuidance(-1.0, min_steps=2)) as attached:
        first = run(tiny)
        assert torch.equal(run(tiny), first)
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stop here"):
            patch.setattr(tiny.pipe.scheduler, "step", stop(tiny.pipe.scheduler.step))
            run(tiny)
        assert tiny.pipe.guider is guider and not tiny.denoiser._forward_pre_hooks
        assert torch.equal(run(tiny), first) and attached.report.nfe == STEPS + 2
    assert torch.equal(run(tiny), before)
    assert set(vars(tiny.pipe)) == set(state) and tiny.pipe.guider is guider


def assert_same(found, expected):
    """Within 1e-5 of the latents' size, which is 1 to 20 here: batches of other sizes round differently."""
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def stop(step):
    calls = []

    def stopping(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise RuntimeError("stop here")
        return step(*args, **kwargs)

    return stopping


# --- what the guider that is replaced says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guider",
    [
        ClassifierFreeGuidance(4.0, guidance_rescale=0.7),
        ClassifierFreeGuidance(3.0, use_original_formulation=True),
        ClassifierFreeZeroStarGuidance(4.0),
        AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_momentum=-0.5, eta=0.5),
        AdaptiveProjectedMixGuidance(4.0, adaptive_projected_guidance_start_step=1),
    ],
    ids=lambda guider: type(guider).__name__,
)
def test_the_formula_is_that_of_the_guider(guider):
    tiny = modular_wan(2, guider)
    before = run(tiny)
    found, rows, report = attached_run(tiny, AdaptiveGuidance(2.0))
    assert torch.equal(found, before) and rows == 2 * 2 * STEPS
    threshold = apart(report.scores)
    found, _, _ = attached_run(tiny, AdaptiveGuidance(threshold))
    for k in range(2):
        alone, _, _ = attached_run(tiny, AdaptiveGuidance(threshold), images=slice(k, k + 1))
        assert_same(found[k : k + 1], alone)
    assert torch.equal(run(tiny), before)  # its momentum too


def test_a_policy_with_a_scale_replaces_that_of_the_guider():
    tiny = modular_wan(1, ClassifierFreeGuidance(3.0))
    expected = run(tiny)
    tiny = modular_wan(1, ClassifierFreeGuidance(1.0))
    found, rows, _ = attached_run(tiny, CFG(3.0))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert rows == 2 * STEPS
    tiny = modular_wan(1, ClassifierFreeGuidance(3.0, guidance_rescale=0.7))
    expected = run(tiny)
    tiny = modular_wan()
    found, _, _ = attached_run(tiny, CFG(3.0, rescale=0.7))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


def test_policies_that_ask_for_other_branches():
    tiny = modular_wan()
    policy = SearchedPolicy((5.0, "uncond", "cond", 2.0, "cond", "cond"))
    _, rows, report = attached_run(tiny, policy)
    assert rows == report.nfe == 2 + 1 + 1 + 2 + 1 + 1
    assert report.nfe_per_branch == {"cond": (5,), "uncond": (3,)}
    with_scale, rows, report = attached_run(tiny, DeltaReuse(5.0, stop=0.5))
    assert rows == report.nfe == STEPS + STEPS // 2
    without, rows, _ = attached_run(tiny, DeltaReuse(stop=0.5))  # the tiny guider's own is 5
    torch.testing.assert_close(with_scale, without, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("guider", [ClassifierFreeGuidance(1.0), ClassifierFreeGuidance(5.0, enabled=False)])
def test_without_guidance_there_is_nothing_to_do(guider):
    tiny = modular_wan(1, guider)
    before = run(tiny)
    found, rows, report = attached_run(tiny, AdaptiveGuidance())
    assert torch.equal(found, before) and rows == report.nfe == STEPS and "none" in str(report)


@pytest.mark.parametrize(
    ("guider", "policy", "error", "match"),
    [
        (guiders.SkipLayerGuidance(skip_layer_guidance_layers=[0]), AdaptiveGuidance(), IncompatibleError, "SkipLayer"),
        (ClassifierFreeGuidance(5.0, stop=0.5), AdaptiveGuidance(), ConfigError, "interval of its own"),
        (ClassifierFreeGuidance(5.0, guidance_rescale=0.7), CFG(4.0), ConfigError, "guidance_rescale=0.7"),
        (AdaptiveProjectedGuidance(5.0), CFG(4.0), ConfigError, "AdaptiveProjectedGuidance"),
    ],
)
def test_guiders_that_contradict_the_policy_are_refused(guider, policy, error, match):
    tiny = modular_wan(1, guider)
    with attach(tiny.pipe, guidance=policy), pytest.raises(error, match=match):
        run(tiny)
    assert tiny.pipe.guider is guider


def test_predictions_do_not_outlive_the_change_of_transformers():
    tiny = modular_wan(second=True)
    with attach(tiny.pipe, guidance=DeltaReuse(stop=0.2)), pytest.raises(IncompatibleError, match="another denoiser"):
        run(tiny)
    _, rows, report = attached_run(tiny, AdaptiveGuidance(-1.0, min_steps=4, on_switch="delta_reuse"))
    assert rows == report.nfe == STEPS + 4  # the second guider's ticks make a difference of their own


def test_a_policy_that_makes_the_solver_begin_anew_needs_ours():
    tiny = modular_wan()
    with pytest.raises(ConfigError, match="lower_order"):
        attach(tiny.pipe, guidance=AdaptiveGuidance(lower_order=True))
