"""Guidance policies in the native loop: the definitions of adaptive guidance on closed-form networks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import NumericsError
from fewstep.guidance.cfg import CFG
from fewstep.guidance.interval import Interval
from fewstep.samplers import X0, Policy, feeding

from .guided_problems import AG, SCALE, Pair, mixed_threshold, run, start_of, table_of

EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64, values of order 1, some 40 roundings
NAMES = ("2m", "unipc-3", "2s", "heun", "sde-2m", "ddim")
THRESHOLD = mixed_threshold()
SWITCHES = run(AG(THRESHOLD, scale=SCALE)).report.switched


def test_the_problem_has_images_that_switch_at_different_ticks():
    assert len(set(SWITCHES)) == 3 and all(k is None or 0 < k < 12 for k in SWITCHES)


# --- E1 to E5: the ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ({}, {"rule": "same"}, {"lag": 2}, {"batch": "all"}, {"on_switch": "delta_reuse"},
                                    {"lower_order": True}), ids=str)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_above_one_it_is_cfg(name, policy):
    net = Pair()
    found, expected = run(AG(1.5, scale=SCALE, **policy), name, net=net), run(CFG(SCALE), name)
    assert torch.equal(found.x, expected.x)
    assert found.report.nfe == expected.report.nfe == sum(net.rows.values()) == 6 * found.report.evaluations
    assert found.report.switched == (None,) * 3 and found.report.saved == 0.0


@pytest.mark.parametrize("threshold", (-1.0, -2.0, -math.inf))
@pytest.mark.parametrize("rule", ("next", "same"))
def test_at_minus_one_it_is_the_conditional_run(threshold, rule):
    net = Pair()
    found, expected = run(AG(threshold, scale=SCALE, rule=rule), net=net), run(None)
    assert torch.equal(found.x, expected.x) and found.report.nfe == expected.report.nfe
    assert net.rows == {"cond": 36} and found.report.saved == 0.5 and found.report.switched == (0, 0, 0)


def test_the_literal_readings_cost_one_evaluation_more():
    just_above = math.nextafter(-1.0, 0.0)
    literal_next, literal_same = (run(AG(just_above, scale=SCALE, rule=rule)) for rule in ("next", "same"))
    expected = run(None)
    assert literal_next.report.nfe == literal_same.report.nfe == 3 * 13
    assert torch.equal(literal_same.x, expected.x)
    assert (literal_next.x - expected.x).abs().max() > 1e-3
    first = run(Interval(SCALE, stop=1 / 12))
    assert torch.equal(literal_next.x, first.x)
    assert torch.equal(run(AG(-1.0, scale=SCALE, min_steps=1)).x, first.x)


class Same(Pair):
    """An empty prompt on both sides."""

    def _branch(self, x, m, level, branch):
        return super()._branch(x, m, level, "cond")


def test_equal_predictions_switch_at_exactly_one():
    found, plain = run(AG(1.0, scale=SCALE), net=Same()), run(None)
    assert found.report.scores == {0: (1.0, 1.0, 1.0)} and found.report.nfe == 3 * 13
    assert torch.allclose(found.x, plain.x, **EXACT)


@pytest.mark.parametrize("policy", (CFG(1.0), Interval(1.0), AG(0.9, scale=1.0), AG(2.0, scale=1.0, rule="same"),
                                    AG(2.0, scale=1.0, on_switch="delta_reuse")), ids=repr)  # fmt: skip
def test_scale_one_never_evaluates_the_unconditional_branch(policy):
    net = Pair()
    assert torch.equal(run(policy, net=net).x, run(None).x)
    assert net.rows == {"cond": 36}


# --- E6, E7: intervals, monotonicity ----------------------------------------------------------------------------------


def test_intervals_that_hold_all_or_nothing():
    assert torch.equal(run(Interval(SCALE)).x, run(CFG(SCALE)).x)
    assert torch.equal(run(Interval(SCALE, stop=0.0)).x, run(None).x)
    assert [run(Interval(SCALE, stop=k / 100), steps=100, images=(0,)).report.nfe for k in (28, 29, 57)] == [
        128,
        129,
        157,
    ]


@pytest.mark.parametrize("image", range(3))
@pytest.mark.parametrize("name", ("2m", "unipc-3", "2s", "heun"))
@pytest.mark.parametrize("rule", ("next", "same"))
def test_a_trigger_at_a_step_is_an_interval(name, rule, image):
    threshold = mixed_threshold(name)
    found = run(AG(threshold, scale=SCALE, rule=rule), name, (image,))
    step_of = table_of(name).plan.step
    crossed = [step_of[i] for i, (g,) in found.report.scores.items() if g >= threshold]
    steps = step_of[-1] + 1
    if not crossed:
        assert torch.equal(found.x, run(CFG(SCALE), name, (image,)).x)
        return
    stop = (crossed[0] + (rule == "next")) / steps
    expected = run(Interval(SCALE, stop=stop), name, (image,))
    assert torch.equal(found.x, expected.x)
    assert found.report.nfe == expected.report.nfe + (rule == "same")


@settings(max_examples=25, deadline=None)
@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), st.sampled_from(("next", "same")), st.integers(0, 2))
def test_a_larger_threshold_never_evaluates_less(a, b, rule, lag):
    lag = 0 if rule == "same" else lag
    low, high = (run(AG(t, scale=SCALE, rule=rule, lag=lag), steps=6).report for t in sorted((a, b)))
    pairs = zip(low.nfe_per_image, high.nfe_per_image, strict=True)
    assert all(x <= y for x, y in pairs)


# --- E8, E9, E16: batches, second calls, counts -----------------------------------------------------------------------

EVERY = [
    AG(THRESHOLD, scale=SCALE),
    AG(THRESHOLD, scale=SCALE, rule="same"),
    AG(THRESHOLD, scale=SCALE, lag=1),
    AG(THRESHOLD, scale=SCALE, on_switch="delta_reuse"),
    AG(THRESHOLD, scale=SCALE, lower_order=True),
    AG(THRESHOLD, scale=(3.0, 0.0) * 6),
    AG(THRESHOLD, scale=SCALE, max_fraction=0.5),
    AG(-1.0, scale=SCALE, min_steps=3, max_fraction=0.1),
]


@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_a_batch_is_its_images(policy):
    net = Pair()
    together = run(policy, net=net)
    assert sum(net.rows.values()) == together.report.nfe
    for k in range(3):
        alone = run(policy, images=(k,))
        assert alone.report.nfe == together.report.nfe_per_image[k]
        assert alone.report.switched[0] == together.report.switched[k]
        assert torch.allclose(alone.x, together.x[k : k + 1], **EXACT)


@pytest.mark.parametrize("rule", ("next", "same"))
def test_all_is_the_slowest_image(rule):
    together = run(AG(THRESHOLD, scale=SCALE, batch="all", rule=rule)).report
    alone = [run(AG(THRESHOLD, scale=SCALE, rule=rule), images=(k,)).report.nfe for k in range(3)]
    assert together.nfe_per_image == (max(alone),) * 3 and len(set(alone)) > 1


@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_a_second_call_is_the_first(policy):
    first = run(policy)
    with pytest.raises(NumericsError):
        run(AG(0.9, scale=SCALE), net=Pair(broken=("uncond", 0)))
    second = run(policy)
    assert torch.equal(first.x, second.x) and first.report.scores == second.report.scores


@pytest.mark.parametrize("name", ("2m", "2s", "heun", "sde-2m", "unipc-3"))
@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_what_was_not_evaluated_never_reaches_an_output(policy, name, monkeypatch):
    if len(table_of(name)) != 12 and isinstance(policy.scale, tuple):
        pytest.skip("a scale per step")
    expected = run(policy, name).x
    monkeypatch.setattr(feeding, "unfilled", lambda like: torch.full_like(like, math.nan))
    found = run(policy, name)
    assert torch.equal(found.x, expected) and torch.isfinite(found.x).all()


@pytest.mark.parametrize("name", ("2s", "heun", "dpmpp-sde"))
def test_a_step_is_decided_once(name):
    table = table_of(name)
    for threshold in (mixed_threshold(name), 0.97):
        for rule in ("next", "same"):
            report = run(AG(threshold, scale=SCALE, rule=rule), name).report
            assert all(table.plan.stage[i] == 0 for i in report.scores)
            for tick in report.ticks:
                stage, before = table.plan.stage[tick.tick], report.ticks[tick.tick - 1]
                assert not stage or rule == "same" or tick.asked == before.asked


# --- what predictions may be ------------------------------------------------------------------------------------------


def test_zero_predictions_do_not_cross():
    found = run(AG(0.5, scale=SCALE, space="raw"), net=Pair(zero=True)).report
    assert found.nfe == 72 and set(found.scores.values()) == {(-1.0,) * 3}


@pytest.mark.parametrize(("lag", "broken"), [(0, "uncond"), (1, "cond"), (0, "cond")])
def test_predictions_that_are_no_numbers_are_named(lag, broken):
    level = table_of().plan.nodes[4]
    with pytest.raises(NumericsError) as error:
        run(AG(2.0, scale=SCALE, lag=lag), net=Pair(broken=(broken, 4)))
    assert "tick 4" in str(error.value) and str(level) in str(error.value)


def test_delta_reuse_goes_on_with_the_last_difference():
    found = run(AG(-1.0, scale=SCALE, min_steps=1, on_switch="delta_reuse"), "ddim", (1,), steps=3)
    table, net, x = table_of("ddim", 3), Pair(images=(1,)), start_of((1,))
    delta = None
    for i, (s, t) in enumerate(zip(table.plan.nodes, table.plan.targets, strict=True)):
        c, u = net(x, s, ("cond", "uncond"))
        delta = c - u if i == 0 else delta
        out = c + (SCALE - 1.0) * delta
        x0 = (x - s.sigma * out) / s.alpha
        x = t.alpha * x0 + t.sigma * out
    assert torch.allclose(found.x, x, **EXACT)
    assert found.report.nfe == 4


def test_image_to_image_is_guided_from_where_it_begins():
    for policy in (AG(-1.0, scale=SCALE, min_steps=2), AG(0.5, scale=SCALE, min_steps=2, on_switch="delta_reuse")):
        report = run(policy, first_tick=6).report
        assert report.nfe_per_image == (6 + 2,) * 3
    assert run(AG(2.0, scale=SCALE, max_fraction=0.5), first_tick=6).report.nfe_per_image == (6 + 3,) * 3
    assert run(AG(2.0, scale=SCALE, max_fraction=0.1, on_switch="delta_reuse"), first_tick=6).report.nfe == 3 * 7


class Shifted(Policy):
    """A line with "x": cond + 0.1 x, as a network might have returned."""

    def branches(self, i, memory):
        return {"cond": None}

    def weights(self, i, gram, memory):
        return {"cond": 1.0, "x": 0.1}


class ShiftedNet(Pair):
    def __call__(self, x, level, branches, rows=None):
        return tuple(out + 0.1 * x for out in super().__call__(x, level, branches, rows))


@pytest.mark.parametrize("kind", (X0,), ids=repr)
@pytest.mark.parametrize("name", ("2m", "unipc-3"))
def test_x_in_a_line_is_a_register_like_any_other(name, kind):
    found = run(Shifted(), name, net=Pair(kind))
    assert torch.allclose(found.x, run(None, name, net=ShiftedNet(kind)).x, **EXACT)
    found = run(Shifted(), name)
    assert torch.allclose(found.x, run(None, name, net=ShiftedNet()).x, **EXACT)
