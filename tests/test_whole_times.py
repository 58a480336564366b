"""Whole times: what the network is fed is the level that is integrated, and no step has length zero."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import ConfigError
from fewstep.samplers import GRIDS, DiscreteVP, DPMpp3M, RectifiedFlow, karras, leading, trace, uniform_lambda
from fewstep.samplers.whole_times import spread, whole_times

SD = DiscreteVP.scaled_linear()
SMALL = DiscreteVP.scaled_linear(n=12)


@pytest.mark.parametrize(
    "name", ["lambda", "karras", "time", "quadratic", "polyexponential", "beta", "ays-sd", "trailing"]
)
@pytest.mark.parametrize("n", [1, 2, 3, 30, 100])
def test_times_are_whole_and_levels_are_theirs(name, n):
    levels = GRIDS[name](SD, n)
    whole = whole_times(SD, levels)
    assert len(whole) == n + 1 and whole[-1] == levels[-1] and whole[0] == levels[0]
    for level in whole[:-1]:
        assert level.time == int(level.time) and level == SD.level(level.time)
    assert all(a.time > b.time for a, b in itertools.pairwise(whole[:-1]))
    nearest = [int(level.time + 0.5) for level in levels[:-1]]
    if len(set(nearest)) == n:
        assert [level.time for level in whole[:-1]] == nearest


def test_many_steps_of_karras():
    """50 steps round to 49 times: others then feed one time twice, and look steps up by their time."""
    levels = karras(SD, 50)
    assert len({round(level.time) for level in levels[:-1]}) == 49
    whole = whole_times(SD, levels)
    assert max(abs(a.time - b.time) for a, b in zip(levels, whole, strict=True)) < 1.0
    trace(DPMpp3M(), whole, SD)


@settings(max_examples=200, deadline=None)
@given(times=st.lists(st.integers(0, 11), min_size=1, max_size=5).map(lambda v: sorted(v, reverse=True)))
def test_the_largest_move_is_the_smallest_there_is(times):
    """Against every strictly falling choice of so many times."""
    ours = spread(times, 11)
    assert all(a > b for a, b in itertools.pairwise(ours)) and 0 <= ours[-1] and ours[0] <= 11
    assert max(abs(a - b) for a, b in zip(ours, times, strict=True)) == min(
        max(abs(a - b) for a, b in zip(choice, times, strict=True))
        for choice in itertools.combinations(range(11, -1, -1), len(times))
    )


def test_as_many_steps_as_there_are_times():
    assert [level.time for level in whole_times(SMALL, karras(SMALL, 12))[:-1]] == list(range(11, -1, -1))
    with pytest.raises(ConfigError, match="13 nodes do not fit on 12"):
        whole_times(SMALL, karras(SMALL, 13))


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="real times"):
        whole_times(RectifiedFlow(1000.0), uniform_lambda(RectifiedFlow(1000.0), 5))
    with pytest.raises(ConfigError, match="falls"):
        whole_times(SD, leading(SD, 5)[::-1])
