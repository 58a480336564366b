"""attach itself, on a tiny Stable Diffusion: policies, scales, reports, and leaving everything as it was."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.interval import Interval
from fewstep.guidance.searched import SearchedPolicy
from fewstep.samplers import DPMpp2M, solve

from . import attach_runs
from .attach_runs import STEPS, counted, gammas_of, raw, run
from .pipeline_runs import relative
from .thresholds import apart, crossings, early
from .tiny_flow import Tiny

CLOSE = 1e-5


tiny, plain, untouched = attach_runs.tiny, attach_runs.plain, attach_runs.untouched
pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture(scope="module")
def gammas(tiny) -> dict[int, tuple[float, ...]]:
    """Of the raw predictions of a run that is guided to the end."""
    return gammas_of(tiny)


# --- policies --------------------------------------------------------------------------------------------------------


def test_a_switch_after_step_k_is_the_interval_up_to_it(tiny, gammas):
    """Both images of the batch switch together, as an interval does."""
    threshold = min(max(g[k] for k in range(2)) for g in gammas.values()) - 1e-6
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
    with attach(tiny.pipe, guidance=raw(2.0, scale=5.0)) as attached:
        run(without_scale(tiny))
        assert attached.report is not None
        with pytest.raises(ConfigError, match=r"guidance_scale=4 was given.*scale 5\.0"):
            run(tiny)
        with pytest.raises(ConfigError, match="guidance_rescale"):
            run(without_scale(tiny), guidance_rescale=0.7)
        assert attached.report is None
        with pytest.raises(ConfigError, match="'4'"):
            run(tiny, guidance_scale="4")
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
    assert "no unconditional evaluation (guidance_scale <= 1" in str(attached.report)


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
    assert not report.guided._registers and not report.guided.recalled  # no tensor of the run lives on
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


class Native:
    """The UNet of a pipeline as a network of our own loop, with the embeddings of both branches."""

    def __init__(self, tiny: Tiny, schedule, parametrisation) -> None:
        words, others = tiny.call["prompt"], tiny.call["negative_prompt"]
        cond, uncond = tiny.pipe.encode_prompt(words, "cpu", 1, True, negative_prompt=others)
        self.unet, self.embeds = tiny.denoiser, {"cond": cond, "uncond": uncond}
        self.schedule, self.parametrisation = schedule, parametrisation

    def __call__(self, x, level, branches, rows=None):
        rows = torch.arange(len(x)) if rows is None else rows
        embeds = torch.cat([self.embeds[b][rows] for b in branches])
        out = self.unet(torch.cat([x[rows]] * len(branches)), torch.tensor(level.time), encoder_hidden_states=embeds)
        return out[0].chunk(len(branches))


@pytest.mark.parametrize("lower_order", [False, True])
def test_the_native_loop_decides_and_computes_the_same(lower_order, tiny):
    """Pipeline and loop, with one solver, one policy and one noise."""
    noise = torch.cat([torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(k)) for k in range(2)])
    with attach(tiny.pipe, solver="2m", guidance=AdaptiveGuidance(2.0, space="x0")) as attached:
        run(tiny)
    policy = AdaptiveGuidance(apart(attached.report.scores), space="x0", lower_order=lower_order)
    with attach(tiny.pipe, solver="2m", guidance=policy) as attached:
        found, scheduler = run(tiny), tiny.pipe.scheduler
    network = Native(tiny, scheduler.schedule, scheduler.parametrisation)
    native = solve(scheduler.table, network, noise, guidance=replace(policy, scale=4.0))
    assert native.report.nfe_per_image == attached.report.nfe_per_image
    assert relative(found, native.x) < CLOSE
