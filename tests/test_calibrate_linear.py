"""Calibration of LinearAG: where u is evaluated, the fit, and the images that it leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.guidance.calibrate import Goal, calibrate
from fewstep.guidance.calibrate_runs import Bench, Nobody, Samples
from fewstep.guidance.calibrate_state import Kept
from fewstep.guidance.linear import LinearAG, kinds_alternating
from fewstep.guidance.linear_fit import fit_linear
from fewstep.guidance.linear_plan import choose_kinds, fit_recorded, record_linear
from fewstep.guidance.policy_file import load, save
from fewstep.guidance.sampling import sample

from .calibrate_problems import PROMPTS, Interrupting, N, samples_of


@pytest.fixture(scope="module")
def samples() -> Samples:
    return samples_of()


def test_the_fit_is_that_of_the_library(samples, tmp_path):
    """And what a file of it makes is what was measured."""
    found = calibrate(samples, Goal("linear", plan="alternating", window=1, ridge=1e-4), name="tiny")
    assert isinstance(found.policy, LinearAG) and found.policy.kinds == kinds_alternating(6, 4)[:6]

    def run(policy, part):
        samples.run(policy, part, lambda *_: None)

    kinds = found.policy.kinds
    assert fit_linear(run, samples.batches, kinds, scale=4.0, window=1, ridge=1e-4).policy == found.policy
    save(found.policy, tmp_path / "p.safetensors", found.made_for)
    assert load(tmp_path / "p.safetensors") == (found.policy, found.made_for)
    made = sample(samples.backbone, PROMPTS[:2], guidance=tmp_path / "p.safetensors", table=samples.table)
    assert made.report.nfe_per_image == tuple(found.measured.nfe[:2].int().tolist())


def test_plans_that_begin_alike_share_their_coefficients(samples):
    network = Interrupting(samples.backbone, 10**9)
    bench = Bench(replace(samples, backbone=network), Kept(None, ""), Nobody())
    short = bench.fit(kinds_alternating(6, 2), None, 1e-6)
    before = network.calls
    long = bench.fit(kinds_alternating(6, 4), None, 1e-6)
    assert dict(long.coefficients[1]) == dict(short.coefficients[1])
    assert network.calls == before + len(samples.batches) * 4  # of tick 3 alone
    fresh = Bench(samples, Kept(None, ""), Nobody())
    assert long == fresh.fit(kinds_alternating(6, 4), None, 1e-6)


def test_plans_that_begin_otherwise_do_not(samples):
    """Tick 3 after other ticks, or with another window or ridge, is another fit."""
    plan = ("cfg", "cfg", "cond", "linear", "cond", "cond")
    others = [(plan, None, 1e-6), (plan, 1, 1e-6), (plan, 1, 1e-2)]
    bench = Bench(samples, Kept(None, ""), Nobody())
    bench.fit(kinds_alternating(6, 4), None, 1e-6)
    for k, other in enumerate(others):
        made = bench.fit(*other)
        assert k or made == Bench(samples, Kept(None, ""), Nobody()).fit(*other)
    lines = {tuple(bench.fit(*other).coefficients[3].items()) for other in others}
    assert len(lines) == 3


@pytest.fixture(scope="module")
def chosen(samples):
    return calibrate(samples, Goal("linear"))


def test_the_chosen_plan_is_that_of_the_library(samples, chosen):
    """A pass of its own gives the same plan and coefficients; the one that also scores gamma is still full guidance."""

    def run(policy, part):
        samples.run(policy, part, lambda *_: None)

    recorded = record_linear(run, samples.batches, 6, scale=4.0)
    kinds = choose_kinds(recorded, 2)
    expected = fit_recorded(recorded, kinds).policy
    assert chosen.policy.kinds == kinds and chosen.measured.nfe.tolist() == [8.0] * N
    for t, line in expected.coefficients.items():
        assert dict(chosen.policy.coefficients[t]) == pytest.approx(dict(line), rel=1e-6)
    for other in ("2m", "2s"):
        plain, watched = (Bench(samples_of(other, 3), Kept(None, ""), Nobody()) for _ in range(2))
        assert torch.allclose(plain.full(), watched.full(recorded=True), rtol=0, atol=1e-12)
        for k in range(len(samples.batches)):
            assert torch.equal(plain._kept[f"cfg.{k}.x"], watched._kept[f"cfg.{k}.x"])


def test_targets_of_a_chosen_plan(samples, chosen):
    """Evaluations: exactly as many. Fidelity: no cheaper one of those that were tried meets it."""
    found = calibrate(samples, Goal("linear", target_nfe=9.5))
    assert found.measured.nfe.tolist() == [9.0] * N and found.policy.kinds.count("cfg") == 3
    target = float(chosen.measured.error.mean()) * 0.99
    found = calibrate(samples, Goal("linear", target_fidelity=target))
    error, nfe = float(found.measured.error.mean()), float(found.measured.nfe.mean())
    assert error <= target and nfe > 8.0 and all(e > target for n, e in found.tried if n < nfe)


def test_what_is_held_out_is_not_fitted_on(samples):
    """Other prompts in the last fifth of the batches leave the policy what it was."""
    five = replace(samples_of("2m", 4), prompts=("a", "b", "c", "d", "e"), seeds=tuple(range(5)), batch=1)
    other = replace(five, prompts=(*five.prompts[:4], "z z z"))
    assert samples_of().batches == Bench(samples, Kept(None, ""), Nobody()).fitted
    for goal in (Goal("linear"), Goal("linear", plan="alternating")):
        one, two = calibrate(five, goal), calibrate(other, goal)
        assert one.held == two.held == 1 and one.policy == two.policy
        assert not torch.equal(one.measured.error[-1:], two.measured.error[-1:])
    assert calibrate(five, Goal("delta-reuse")).held == 0
