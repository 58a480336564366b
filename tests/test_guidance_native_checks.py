"""What a policy may not return, runs that begin later, and what a run lets go of."""

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.interval import Interval
from fewstep.guidance.linear import LinearAG
from fewstep.guidance.steps import whole_steps
from fewstep.samplers import Memory, Policy, Statistics

from .guided_problems import SCALE, run

BOTH = {"uncond": None, "cond": None}
LINE = {"uncond": -2.0, "cond": 3.0}
SOME = {"uncond": (0, 1), "cond": None}


class Given(Policy):
    """Returns what it is told to, a line of full guidance elsewhere."""

    def __init__(self, **given):
        self.given = given

    def begin(self, run):
        return self.given.get("begin", Memory(run))

    def branches(self, i, memory):
        return self.given.get("branches", BOTH)

    def statistics(self, i, memory):
        return self.given.get("statistics")

    def weights(self, i, gram, memory):
        return self.given.get("weights", LINE)

    def remember(self, i, memory):
        return self.given.get("remember", {})

    def score(self, i, gram, memory):
        return self.given.get("score")

    def decide(self, i, scores, memory):
        return self.given.get("decide", memory)


@pytest.mark.parametrize("images", [(-1,), (0, 1, 1), (0, 5), (1, 0), (True,), [0], 1, (0.0,)], ids=str)
def test_images(images):
    with pytest.raises(ConfigError, match="Given at tick 0: the images of the branch 'uncond'"):
        run(Given(branches={"uncond": images, "cond": None}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"branches": ("uncond", "cond")}, "branches must be a mapping"),
        ({"branches": SOME}, "image 2 has the weight -2 of 'uncond'"),
        ({"branches": SOME, "weights": {"uncond": (0.0, 1.0, 1.0), "cond": 1.0}}, "image 2 has the weight 1"),
        ({"branches": SOME, "weights": {"cond": 1.0}, "remember": {"d": LINE}}, "line of 'd': image 2"),
        ({"weights": {"delta": 1.0}}, "weights reads 'delta', which was neither evaluated nor remembered"),
        ({"weights": {"cond": [1.0, 1.0, 1.0]}}, r"tuple of 3 numbers or a tensor \(3,\)"),
        ({"weights": {"cond": (1.0, 1.0)}}, "got a tuple of 2"),
        ({"weights": {"cond": torch.ones(1)}}, r"got a tensor \(1,\)"),
        ({"weights": {}}, "one register at least"),
        ({"weights": None}, "must be a line"),
        ({"statistics": Statistics(({"image": 1.0},))}, "statistics reads 'image'"),
        ({"remember": {"d": {"image": 1.0}}}, "the line of 'd' reads 'image'"),
        ({"remember": {"x": {"cond": 1.0}}}, "remember it by another name"),
        ({"score": torch.tensor(1.0)}, r"score must be a tensor \(3,\)"),
        ({"score": torch.ones(1)}, r"got a tensor \(1,\)"),
        ({"score": torch.ones(3), "decide": None}, "decide must return a Memory, got None"),
        ({"begin": None}, "begin must return a Memory"),
    ],
    ids=str,
)
def test_what_fits_nothing_is_refused_by_name(given, message):
    with pytest.raises(IncompatibleError, match=f"Given.*{message}"):
        run(Given(**given))


def test_what_fits_is_taken():
    expected = run(CFG(SCALE)).x
    for given in (
        {},
        {"weights": {"uncond": (-2.0,) * 3, "cond": torch.full((3,), 3.0)}},
        {"weights": {"uncond": -2, "cond": 3}},
    ):
        assert torch.allclose(run(Given(**given)).x, expected, rtol=0.0, atol=1e-12)


def test_a_run_that_begins_later_counts_from_there():
    for policy in (DeltaReuse(SCALE), Interval(SCALE, stop=0.5), AdaptiveGuidance(2.0, SCALE, max_fraction=0.5)):
        report = run(policy, first_tick=8).report
        assert [len(tick.branches) for tick in report.ticks] == [2, 2, 1, 1]
    with pytest.raises(ConfigError, match="begins at tick 8"):
        run(LinearAG({}, ("cfg",) * 12, SCALE), first_tick=8)


def test_one_part_is_the_same_steps():
    """0.29 of 100 are 29, though the product is below."""
    rows = {run(policy, "ddim", (0,), steps=100).report.nfe
            for policy in (DeltaReuse(SCALE, stop=0.29), Interval(SCALE, stop=0.29))}  # fmt: skip
    assert rows == {129}


def test_every_number_of_steps_has_its_part():
    """k / n of n are k, whichever way the division rounds."""
    for n in range(1, 400):
        assert [whole_steps(k / n, n) for k in range(n + 1)] == list(range(n + 1))
    assert int(1 / 49 * 49) == 0  # what it is for


def test_a_report_holds_no_tensors():
    guided = run(DeltaReuse(SCALE)).report.guided
    assert not guided.recalled and not guided._registers
    report = run(AdaptiveGuidance(2.0, SCALE)).report
    assert len(report.scores) == 12
