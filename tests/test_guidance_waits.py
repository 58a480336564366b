"""When the host waits for the device: for values of which tick, and how often."""

import ast
from pathlib import Path

import pytest
import torch

import fewstep
from fewstep.guidance.cfg import CFG
from fewstep.guidance.interval import Interval

from .guided_problems import AG, SCALE, Pair, mixed_threshold, run
from .watch_reads import HostReads


class Watched(Pair):
    """Marks its outputs with the tick of the call. Images that differ are two calls of one tick."""

    def __init__(self, mode):
        super().__init__()
        self.mode, self.levels = mode, []

    def __call__(self, x, level, branches, rows=None):
        if level not in self.levels:
            self.levels.append(level)
        outputs = super().__call__(x, level, branches, rows)
        self.mode.outputs(len(self.levels) - 1, outputs)
        return outputs


def watched(policy, name="2m"):
    with HostReads() as mode:
        report = run(policy, name, net=Watched(mode)).report
    assert set(op for op, _, _ in mode.reads) <= {"aten::_local_scalar_dense"}
    return mode.reads, report


@pytest.mark.parametrize("policy", (None, CFG(SCALE), CFG((3.0, 2.0) * 6), CFG(SCALE, rescale=0.7),
                                    Interval(SCALE, stop=0.5), AG(-1.0, scale=SCALE)), ids=repr)  # fmt: skip
def test_what_is_known_before_the_run_never_waits(policy):
    assert watched(policy)[0] == []


@pytest.mark.parametrize("options", ({}, {"rule": "same"}, {"on_switch": "delta_reuse"}, {"lower_order": True},
                                     {"batch": "all"}), ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ("2m", "2s", "unipc-3"))
def test_without_lag_every_guided_decision_waits_once(name, options):
    reads, report = watched(AG(mixed_threshold(name), scale=SCALE, **options), name)
    decided = sorted(report.scores)
    assert decided and decided[-1] < report.ticks[-1].tick  # all switched: every gamma was waited for
    assert sorted({of for _, _, of in reads}) == decided
    assert all(newest == of for _, newest, of in reads)
    assert len(reads) == 3 * len(decided)  # a batch's three numbers of one tick come in one copy


@pytest.mark.parametrize("lag", (1, 2))
@pytest.mark.parametrize(
    "options", ({}, {"on_switch": "delta_reuse"}, {"lower_order": True}, {"batch": "all"}), ids=str
)
@pytest.mark.parametrize("name", ("2m", "unipc-3"))
def test_with_lag_the_newest_tick_is_never_waited_for(name, lag, options):
    reads, report = watched(AG(mixed_threshold(name), scale=SCALE, lag=lag, **options), name)
    assert reads and all(of <= newest - lag for _, newest, of in reads)
    assert any(k is not None for k in report.switched)


def test_the_watch_sees_what_it_must():
    """Through arithmetic, views, writes in place and other kinds of reading."""
    with HostReads() as mode:
        a, clean = torch.ones(3), torch.ones(3)
        mode.outputs(4, (a,))
        b = torch.zeros(3)
        b.add_(a * 2.0 + clean)
        b[1:].view(2, 1)[0].item()
        torch.zeros(3).copy_(a).sum().item()
        float(a.view(3, 1)[0])
        torch.equal(a, clean)
        bool(a[0] > 0)
        a.nonzero()
        clean.sum().item()
    assert [tick for _, _, tick in mode.reads] == [4] * 6


def test_no_read_passes_by_the_dispatcher():
    """On a CPU tensor tolist() and numpy() are seen by no mode, and on a GPU they wait."""
    root = Path(fewstep.__path__[0])
    loop = ["guided", "readback", "policy", "feeding", "report", "ragged", "engine"]
    policies = ["adaptive", "cfg", "interval", "scale", "space"]
    for path in [root / "samplers" / f"{n}.py" for n in loop] + [root / "guidance" / f"{n}.py" for n in policies]:
        calls = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        assert not calls & {"tolist", "numpy", "cpu"}, path
        assert "item" not in calls or path.name == "readback.py", path
