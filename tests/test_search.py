"""The policy search as a whole: problems whose best policy is known, targets, interruptions."""

import math

import pytest
import torch

from fewstep.errors import ConfigError, NumericsError
from fewstep.guidance.search import NothingToGain, SearchSettings, final_x, search
from fewstep.guidance.search_discrete import Standing, neighbours
from fewstep.guidance.search_loss import discrete
from fewstep.guidance.search_runs import branches_of, nfe_of, states_of, ticks_of
from fewstep.samplers import DPMpp2S

from .gaussians import normal
from .search_problems import STEPS, W, batch, table_for

# --- known answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [(0, 1, 2), (1, 3), (2,)])
def test_guidance_goes_where_the_branches_differ(where):
    """Elsewhere u = c, so with as many guided steps as that the search reaches distance 0, by its gradients alone."""
    table = table_for()
    batches = [batch(table, seed, where=where) for seed in (1, 2)]
    settings = SearchSettings(W, STEPS + len(where), iterations=80, rate=0.2, refinements=0)
    found = search(table, batches, settings)
    assert tuple(k for k, c in enumerate(found.policy.choices) if c == W) == where
    assert found.nfe == settings.target
    assert found.distance < 1e-12
    assert found.complete


def test_no_guided_step_is_spent_where_nothing_differs():
    table = table_for()
    batches = [batch(table, 1, where=(0, 1, 2, 3))]
    found = search(table, batches, SearchSettings(W, STEPS + 2, iterations=80, rate=0.2, refinements=50))
    guided = {k for k, c in enumerate(found.policy.choices) if c == W}
    assert len(guided) == 2
    assert guided < {0, 1, 2, 3}
    others = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    wanted = [states_of(table, batches[0], [W] * STEPS)[-1].x]

    def reached(pair):
        choices = tuple(W if k in pair else "cond" for k in range(STEPS))
        return Standing(table, batches, wanted, final_x, choices).distance

    assert reached(tuple(guided)) == min(map(reached, others))  # the best of all six


def test_single_changes_find_what_the_descent_did_not():
    """Without one iteration all gains are equal, and the first policy guides the first steps."""
    table = table_for()
    batches = [batch(table, seed, where=(3, 5)) for seed in (1, 2)]
    first = search(table, batches, SearchSettings(W, STEPS + 2, iterations=0, refinements=0))
    assert [c == W for c in first.policy.choices] == [True, True, False, False, False, False]
    found = search(table, batches, SearchSettings(W, STEPS + 2, iterations=0, refinements=200))
    assert [c == W for c in found.policy.choices] == [False, False, False, True, False, True]
    assert found.distance < 1e-13 < first.distance
    assert 0 < found.tried < 200  # it ended because no change helps
    assert found.complete


def test_a_standing_policy_starts_its_neighbours_in_the_middle():
    table = table_for()
    batches = [batch(table, seed) for seed in (1, 2)]
    wanted = [states_of(table, pairs, [W] * STEPS)[-1].x for pairs in batches]
    worse, better = (W, W, "cond", "cond", "cond", "cond"), (W, W, "cond", "cond", W, "cond")
    standing = Standing(table, batches, wanted, final_x, worse)
    calls = [len(pairs.network.log) for pairs in batches]
    assert standing.improved_by(better)
    assert [len(p.network.log) - n for p, n in zip(batches, calls, strict=True)] == [2, 2]  # ticks 4 and 5
    assert standing.distance == Standing(table, batches, wanted, final_x, better).distance
    calls = [len(pairs.network.log) for pairs in batches]
    assert not standing.improved_by((50.0,) * STEPS)
    assert len(batches[1].network.log) == calls[1]  # the first batch was enough to know
    assert standing.choices == better


# --- the target -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [11.0, 13.0, 14.5, 21.9])
def test_the_target_is_respected_where_steps_cost_differently(target):
    table = table_for(DPMpp2S())
    ticks = ticks_of(table)
    assert set(ticks) == {1, 2}  # 11 without guidance
    logits, candidates = normal(len(ticks), 4, seed=1), ("uncond", "cond", W, 5.0)
    choices, gains = discrete(logits, candidates, ticks, target)
    assert nfe_of(choices, ticks) <= target
    single = [c for c in choices if branches_of(c) == 1]
    left = target - nfe_of(choices, ticks)
    assert not single or left < min(n for n, c in zip(ticks, choices, strict=True) if branches_of(c) == 1)
    for step, (choice, line) in enumerate(zip(choices, logits.tolist(), strict=True)):
        alike = [k for k, c in enumerate(candidates) if branches_of(c) == branches_of(choice)]
        assert candidates.index(choice) == max(alike, key=lambda k: line[k])
        assert gains[step] == max(line[2:]) - max(line[:2])
    around = neighbours(choices, logits, candidates, ticks, target)
    assert all(nfe_of(n.choices, ticks) <= target for n in around)
    assert all(1 <= sum(a != b for a, b in zip(n.choices, choices, strict=True)) <= 2 for n in around)
    assert [n.cost for n in around] == sorted(n.cost for n in around)
    assert len({n.choices for n in around}) == len(around)
    found = search(table, [batch(table, 1)], SearchSettings(W, target, iterations=3, refinements=10))
    assert found.nfe <= target


def test_a_target_that_cannot_be():
    for target in (5.0, 13.0):
        with pytest.raises(ConfigError, match="without any guidance it has 6, with guidance at every tick 12"):
            search(table_for(), [], SearchSettings(W, target))


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": -1},
        {"rate": math.nan},
        {"temperature": (1.0, 0.0)},
        {"strengths": (1.0,)},
        {"strengths": (2.0, 2.0)},
        {"cost_weight": 0.0},
        {"strengths": (math.inf,)},
        {"target": -3.0},
    ],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        SearchSettings(**{"scale": W, "target": 8.0, **wrong})


def test_the_result_is_never_further_from_full_guidance_than_no_guidance():
    table = table_for()
    settings = SearchSettings(W, 9.0, strengths=(500.0,), iterations=0, refinements=0)
    found = search(table, [batch(table, 1)], settings)
    assert found.policy.choices == ("cond",) * STEPS
    assert found.distance == 1.0


def test_where_nothing_can_be_gained():
    with pytest.raises(NothingToGain, match="guidance scale 1"):
        SearchSettings(1.0, 8.0)
    table = table_for()
    with pytest.raises(NothingToGain, match="same pictures"):
        search(table, [batch(table, 1, where=())], SearchSettings(W, 8.0))


def test_a_run_that_is_not_finite_is_named():
    table = table_for()
    pairs = batch(table, 1)
    pairs.x[0, 0] = math.nan
    with pytest.raises(NumericsError, match="batch 0"):
        search(table, [pairs], SearchSettings(W, 8.0))


# --- interruptions --------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stopping_at(count):
    """A progress callback that breaks off the work when it is called for the `count`-th time."""
    calls = []

    def tell(*_):
        calls.append(None)
        if len(calls) == count:
            raise Stopped

    return tell


def equal(a, b):
    same = (a.policy, a.nfe, a.distance, a.losses, a.tried, a.complete) == (
        b.policy, b.nfe, b.distance, b.losses, b.tried, b.complete)  # fmt: skip
    return same and torch.equal(a.probabilities, b.probabilities)


@pytest.mark.parametrize("options", [{}, {"gumbel": True, "strengths": (2.0, 4.0)}], ids=["softmax", "gumbel"])
def test_an_interrupted_search_ends_as_if_it_had_not_been(tmp_path, options):
    """To the last bit, wherever it is interrupted, and twice: 2 baselines, 5 iterations, then single changes."""
    table = table_for()
    batches = [batch(table, seed) for seed in (1, 2)]
    settings = SearchSettings(W, 9.0, iterations=5, refinements=6, **options)
    whole = search(table, batches, settings)
    assert whole.tried > 2
    for stops in ((1,), (2,), (3, 4), (6,), (8, 2), (10,)):
        file = tmp_path / f"{stops}.checkpoint"
        for stop in stops:
            with pytest.raises(Stopped):
                search(table, batches, settings, checkpoint=file, on_progress=stopping_at(stop))
        calls = sum(len(p.network.log) for p in batches)
        notes = []
        resumed = search(table, batches, settings, checkpoint=file, on_note=notes.append)
        assert equal(resumed, whole)
        assert len(notes) == (stops != (1,))  # the first time there was nothing to keep
        last = search(table, batches, settings, checkpoint=file)  # of a search that has ended
        assert equal(last, whole)
        assert calls < sum(len(p.network.log) for p in batches)


def test_a_checkpoint_is_for_the_same_search_only(tmp_path):
    table, file, notes = table_for(), tmp_path / "checkpoint", []
    batches = [batch(table, 1)]
    settings = SearchSettings(W, 9.0, iterations=3, refinements=2)
    search(table, batches, settings, checkpoint=file, key="a")
    for other, key in ((SearchSettings(W, 8.0, iterations=3, refinements=2), "a"), (settings, "b")):
        again = search(table, batches, other, checkpoint=file, key=key, on_note=notes.append)
        assert equal(again, search(table, batches, other))
    assert len(notes) == 2
    assert all("other settings" in note for note in notes)
    file.write_bytes(b"\x10\0\0\0\0\0\0\0no safetensors at all")
    with pytest.raises(ConfigError, match="checkpoint of a search"):
        search(table, batches, settings, checkpoint=file)


def test_time_that_is_up_leaves_a_policy_within_the_target():
    table = table_for()
    found = search(table, [batch(table, 1)], SearchSettings(W, 8.0), seconds=1e-9)
    assert (found.losses, found.tried, found.complete) == ((), 0, False)
    assert found.nfe <= 8 and found.distance <= 1.0


def test_progress_only_grows_and_stays_within_what_was_announced():
    table, told = table_for(), []
    batches = [batch(table, seed) for seed in (1, 2)]
    settings = SearchSettings(W, 9.0, iterations=4, refinements=5)
    search(table, batches, settings, on_progress=lambda *a: told.append(a))
    assert [what for what, _, _ in told[:7]] == ["baseline"] * 2 + ["relaxed policy"] * 4 + ["single changes"]
    done = [n for _, n, _ in told]
    assert done == sorted(done)
    assert {total for _, _, total in told} == {told[0][2]}
    assert done[-1] < told[0][2]
