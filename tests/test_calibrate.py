"""Calibration: the cost is met exactly, the error is what a run has, an interrupted one ends as if it had not been."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.errors import ConfigError, NumericsError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.calibrate import Goal, calibrate, quantiles
from fewstep.guidance.calibrate_candidates import nfe_at
from fewstep.guidance.calibrate_runs import Bench, Nobody, Samples, apart
from fewstep.guidance.calibrate_state import Kept
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.made_for import EMPTY, GIVEN
from fewstep.samplers.backbones import backbone_of

from .calibrate_problems import Interrupting, N, samples_of
from .tiny import tiny_sd


@pytest.fixture(scope="module")
def samples() -> Samples:
    return samples_of()


@pytest.fixture(scope="module")
def bench(samples) -> Bench:
    bench = Bench(samples, Kept(None, ""), Nobody())
    bench.full()
    return bench


@pytest.mark.parametrize("solver", ["2m", "2s"])
def test_the_cost_of_a_threshold_is_known_before_it_is_run(solver):
    samples = samples_of(solver, 4)
    bench = Bench(samples, Kept(None, ""), Nobody())
    gamma = bench.full()
    assert gamma.shape == (N, 4)
    for threshold in (-0.99, *gamma.flatten().quantile(torch.tensor([0.3, 0.7], dtype=torch.float64)).tolist(), 2):
        measured = bench.measure(AdaptiveGuidance(threshold=threshold + 1e-7, scale=4.0))
        assert torch.equal(measured.nfe, nfe_at(threshold + 1e-7, gamma, samples.ticks_of_step))
        assert measured.guided.sum() + N * samples.ticks == measured.nfe.sum()


def test_full_guidance_has_no_error(bench, samples):
    measured = bench.measure(AdaptiveGuidance(threshold=3.0, scale=4.0))
    assert measured.error.tolist() == [0.0] * N and measured.nfe.tolist() == [2.0 * samples.ticks] * N


def test_the_error_is_relative():
    x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert apart(x * 1.5, x).tolist() == [0.5, 0.5] and apart(x.flip(1), x)[1] == pytest.approx(2**0.5)


@pytest.mark.parametrize("target", [7.5, 9.2, 11.0])
def test_a_target_of_evaluations(samples, target):
    found = calibrate(samples, Goal(target_nfe=target))
    nfe = float(found.measured.nfe.mean())
    assert nfe <= target and found.why is None and found.full == 12
    assert found.saved == pytest.approx(1.0 - nfe / 12)
    assert found.made_for.space == "x0" and found.made_for.scale == found.policy.scale == 4.0
    above = found.gamma.cummax(1).values.flatten().unique()
    nearest = above[above > found.policy.threshold][:2]
    if len(nearest) == 2:  # the next threshold would cost too much
        assert float(nfe_at(float(nearest.mean()), found.gamma, samples.ticks_of_step).mean()) > target


@pytest.mark.parametrize("policy", ["adaptive", "delta-reuse"])
def test_a_target_of_fidelity(samples, bench, policy):
    """The chosen one meets the target; the ones that were tried and cost less do not."""
    first = calibrate(samples, Goal(policy))
    target = float(first.measured.error.mean()) * 0.7
    found = calibrate(samples, Goal(policy, target_fidelity=target))
    error, nfe = float(found.measured.error.mean()), float(found.measured.nfe.mean())
    assert error <= target and (nfe, error) in found.tried and len(found.tried) > 1
    assert all(e > target for n, e in found.tried if n < nfe)
    again = bench.measure(found.policy)
    assert torch.equal(again.error, found.measured.error)


def test_targets_that_no_policy_meets(samples):
    for target in (6, 12, 40):
        with pytest.raises(ConfigError, match="choose from 7 to 11"):
            calibrate(samples, Goal(target_nfe=target))
    with pytest.raises(ConfigError, match=r"target_fidelity 1e-09 is not met by any linear policy.*the most expensive"):
        calibrate(samples, Goal("linear", target_fidelity=1e-9))
    with pytest.raises(ConfigError, match="a run of 1 tick has none"):
        calibrate(samples_of(steps=1), Goal("linear"))


@pytest.mark.parametrize("wrong", [{"target_nfe": float("nan")}, {"target_fidelity": -1.0}, {"window": 0},
                                   {"ridge": float("nan")}, {"policy": "cfg"},
                                   {"policy": "linear", "plan": "best"}, {"plan": "alternating"},
                                   {"target_nfe": 8.0, "target_fidelity": 0.1}], ids=str)  # fmt: skip
def test_goals_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        Goal(**wrong)


def test_frozen_differences(samples):
    found = calibrate(samples, Goal("delta-reuse", target_nfe=10))
    assert found.policy == DeltaReuse(4.0, stop=4 / 6) and found.measured.nfe.tolist() == [10.0] * N
    assert calibrate(samples, Goal("delta-reuse")).measured.nfe.tolist() == [9.0] * N


@pytest.mark.parametrize("goal", [Goal(target_nfe=9), Goal("linear"), Goal("linear", plan="alternating")],
                         ids=["adaptive", "linear", "alternating"])  # fmt: skip
def test_an_interrupted_calibration_goes_on(samples, goal, tmp_path):
    path, notes = tmp_path / "c", []
    whole = replace(samples, backbone=Interrupting(samples.backbone, 10**9))
    expected = calibrate(whole, goal)
    total, runs = whole.backbone.calls, 0
    while True:
        runs += 1
        part = replace(samples, backbone=Interrupting(samples.backbone, 14))
        try:
            found = calibrate(part, goal, checkpoint=path, on_note=notes.append)
            break
        except KeyboardInterrupt:
            assert path.is_file()
        assert runs < 20
    assert not path.exists() and runs >= 2 and all("going on" in note for note in notes) and len(notes) == runs - 1
    assert total > 14
    assert found.policy == expected.policy and found.tried == expected.tried
    for a, b in ((found.gamma, expected.gamma), *zip(found.measured, expected.measured, strict=True)):
        assert torch.equal(a, b)


def test_a_checkpoint_of_other_settings_is_left_aside(samples, tmp_path):
    path, notes = tmp_path / "c", []
    with pytest.raises(KeyboardInterrupt):
        calibrate(replace(samples, backbone=Interrupting(samples.backbone, 14)), Goal(), checkpoint=path)
    other = replace(samples, scale=3.0)  # and then a file that is none
    found = calibrate(other, Goal(), checkpoint=path, on_note=notes.append)
    assert len(notes) == 1 and "other settings" in notes[0]
    assert torch.equal(found.gamma, calibrate(other, Goal()).gamma)
    path.write_bytes(b"rubbish")
    calibrate(samples, Goal(), checkpoint=path, on_note=notes.append)
    assert "left aside" in notes[1]


def test_progress_ends_at_what_was_expected():
    class Watch:
        expected = done = 0

        def expect(self, ticks):
            self.expected += ticks

        def passed(self, ticks):
            self.done += ticks

    short = samples_of("2m", 4)
    for goal in (Goal(target_nfe=6), Goal("linear"), Goal("linear", plan="alternating"), Goal("delta-reuse")):
        watch = Watch()
        calibrate(short, goal, watch=watch)
        assert watch.done == watch.expected, goal


def test_a_scale_of_1_has_nothing_to_gain(samples):
    found = calibrate(replace(samples, scale=1.0), Goal(target_nfe=100))
    assert found.policy is None and "guidance scale 1" in found.why and found.gamma is None


def test_a_model_without_an_unconditional_branch_has_nothing_to_gain(samples):
    class Distilled(Interrupting):
        def encode(self, *args, **kwargs):
            network = self._backbone.encode(*args, **kwargs)
            del network.conditions["uncond"]
            return network

    found = calibrate(replace(samples, backbone=Distilled(samples.backbone, 0)), Goal())
    assert found.policy is None and "distilled" in found.why


def test_a_model_that_does_not_read_has_nothing_to_gain(samples):
    found = calibrate(replace(samples, prompts=("",) * N), Goal())
    assert found.policy is None and "the same at every step" in found.why


def test_a_threshold_that_is_never_crossed_gains_nothing(samples):
    found = calibrate(samples, Goal(target_fidelity=1e-12))
    assert found.saved == 0.0 and "nothing is gained" in found.why and found.measured.error.max() == 0.0


def test_what_the_file_says(samples):
    made_for = calibrate(replace(samples, negative="n"), Goal("delta-reuse"), name="tiny", about="of mine").made_for
    assert (made_for.model, made_for.negative, made_for.space, made_for.steps) == ("tiny", GIVEN, None, 6)
    assert made_for.calibrated_on == "3 prompts of mine, seeds 0 to 2" and made_for.prediction == "eps"
    assert calibrate(samples, Goal("delta-reuse")).made_for.negative == EMPTY


def test_quantiles():
    gamma = torch.arange(11, dtype=torch.float64)[:, None].expand(11, 2)
    assert quantiles(gamma).tolist() == [[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]]


def test_latents_that_are_not_finite(samples):
    backbone = backbone_of(tiny_sd())
    with torch.no_grad():
        backbone.pipe.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(NumericsError):
        calibrate(replace(samples, backbone=backbone), Goal())
