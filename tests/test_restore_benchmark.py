"""The benchmark of posteriors: its pictures, cache, settings, gates and tables, on one scene and a step or two."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.benchmarks import (
    restore,
    restore_choose,
    restore_gates,
    restore_measure,
    restore_memory,
    restore_problems,
    restore_rows,
)
from fewstep.benchmarks.harness import part_of
from fewstep.benchmarks.intervals import Paired, mean_interval, student
from fewstep.benchmarks.restore_choose import Tried, chosen
from fewstep.benchmarks.restore_markdown import markdown
from fewstep.benchmarks.restore_memory import LiveBytes
from fewstep.benchmarks.restore_problems import COUNTS, TASKS, measurement, scenes
from fewstep.benchmarks.restore_report import report_of
from fewstep.benchmarks.restore_rows import BUDGETS, FORWARDS, GRID, MAIN, METHODS, every_row
from fewstep.errors import ConfigError

SETTINGS = {task: {kind: GRID[kind][0] for kind in METHODS} for task in TASKS}


@pytest.fixture(scope="module")
def backbone():
    return restore_measure.model()


def test_scenes_are_held_out_and_no_scene_is_measured_and_chosen_on():
    assert [len(scenes(split)) for split in ("test", "tuning")] == [16, 4]
    assert all(scene.is_heldout() for split in COUNTS for scene in scenes(split))
    assert not set(scenes("test")) & set(scenes("tuning"))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_scene_has_the_same_measurement_in_every_chunk(task):
    together, alone = measurement(task, "test", 2, 3), measurement(task, "test", 4, 1)
    # the operators' sums may be ordered otherwise for another batch: rounding of numbers of size 1
    assert (together.y[2] - alone.y[0]).abs().max() < 1e-6
    assert (together.y[0] - together.y[1]).std() > 0.01
    noise = together.y - together.seen(task.operator.A(restore_problems.truth("test", 2, 3)))
    n = int(together.count.sum())
    assert abs(float(noise.square().sum()) / n / 0.05**2 - 1.0) < 5 * (2 / n) ** 0.5  # five standard deviations


def test_every_method_has_eight_settings_and_the_budgets_that_were_said():
    assert {len({json.dumps(s) for s in GRID[kind]}) for kind in METHODS} == {8}
    rows, untuned = every_row(SETTINGS)
    assert not untuned and len({row.name for row in rows}) == len({row.folder for row in rows}) == len(rows)
    for kind in MAIN:
        main = [row for row in rows if (row.task, row.kind) == ("box", kind) and row.budget and not row.divided]
        steps = [row.method.steps for row in main]
        assert steps == [METHODS[kind].steps * budget for budget in BUDGETS[kind]]
    for row in rows:
        if "equal" in row.label:  # 2 K + 1 forwards a step, K + 1 without the trace term
            forwards = row.method.steps * (row.method.K * (2 if row.method.eta else 1) + 1)
            assert abs(forwards - FORWARDS) <= 1
    names = [row.name for row in every_row(SETTINGS, ["sr-psld", "box-stsl-g"])[0]]
    assert names == ["sr-psld-1x", "box-stsl-gaussian", "sr-psld-2x", "sr-psld-4x", "sr-psld-4x-divided"]
    divided = every_row({"sr": {"psld": {"omega": 1.0, "gamma": 0.1}}}, ["sr-psld-4x-divided"])[0][0]
    assert divided.method == replace(METHODS["psld"], steps=2200, omega=0.25, gamma=0.025)
    assert every_row({}, ["sr-psld-4x", "box"])[1] == ["sr-psld", *(f"box-{kind}" for kind in METHODS)]


def test_a_setting_is_chosen_by_psnr_once_all_were_run():
    runs = [Tried("sr", "ldps", {"zeta": z}, p, 0, 1.0, "") for z, p in ((0.1, 20.0), (0.2, 22.0), (0.3, -np.inf))]
    assert chosen(runs) == {"zeta": 0.2}
    assert chosen([*runs, runs[0]._replace(psnr=None)]) is None
    with pytest.raises(ConfigError, match="all settings of ldps diverge on task sr"):
        chosen([runs[2]])
    assert restore_choose.at_edge("psld", {"omega": 0.1, "gamma": 0.1}) == ["gamma"]


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"settings": {"sr": {"stsl": {"K": 1}}}}', '{"settings": {"zoom": {"stsl": {}}}}']
)
def test_settings_that_are_none_are_refused(tmp_path, text):
    path = tmp_path / "settings.json"
    assert restore_choose.read_settings(path) == {}
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"settings\.json holds no settings of this benchmark"):
        restore_choose.read_settings(path)


def test_intervals():
    for freedom, t in ((1, 12.7062), (3, 3.18245), (15, 2.13145), (1000, 1.96234)):  # of the tables
        assert student(freedom) == pytest.approx(t, rel=1e-5)
    mean, low, high = mean_interval([1.0, 3.0])  # the mean's standard deviation is 1
    assert (mean, mean - low, high - mean) == pytest.approx((2.0, 12.7062, 12.7062), rel=1e-5)
    assert Paired.of(np.array([True, False, True]), np.array([False, False, True])) == (3, 0, 1)


def test_live_bytes_are_those_of_storages_at_their_peak():
    with LiveBytes() as live:
        a = torch.zeros(1000, dtype=torch.float32)
        views = a[10:], a.view(10, 100)
        assert live.now == live.peak == 4000
        del a, views
        b = torch.ones(500, dtype=torch.float32)
        assert (live.now, live.peak) == (2000, 4000)
        with torch.enable_grad():
            x = b.requires_grad_()
            y = x.exp().exp()  # the first result lives on for the backward pass alone
        assert live.now == 6000
        y.sum().backward()
        assert live.peak >= 8000
        del y
    assert live.now == 4000  # b and its gradient


def test_gates_find_other_budgets_counts_and_growth(backbone, monkeypatch):
    few = replace(METHODS["ldps"], steps=3)
    assert restore_gates._budget(backbone, few) == "3 steps take 3 forwards"
    assert restore_gates._counts(backbone, few) is None
    monkeypatch.setattr(restore_gates, "peak_of", lambda backbone, method, steps: 100 + steps)
    assert restore_gates._memory(backbone, few) == "102 bytes in 2 steps and 104 in 4"


@pytest.fixture
def tiny(monkeypatch, backbone):
    """One scene, one step, two settings each."""
    scenes("test"), scenes("tuning")
    for split in COUNTS:
        monkeypatch.setitem(COUNTS, split, 1)
    monkeypatch.setattr(restore_memory, "STEPS", (1, 2))
    monkeypatch.setattr(restore, "MAIN", ("ldps",))  # whose memory is measured
    monkeypatch.setattr(restore, "gates", lambda backbone: [])
    monkeypatch.setattr(restore, "model", lambda: backbone)
    for kind, method in METHODS.items():
        small = {"K": 1} if hasattr(method, "K") else {}
        monkeypatch.setitem(restore_rows.METHODS, kind, replace(method, steps=1, **small))
        monkeypatch.setitem(restore_rows.GRID, kind, GRID[kind][:2])


def run(folder, *more):
    where = ["--cache", folder / "cache", "--settings", folder / "settings.json", "--out", folder / "out"]
    rows = ["--rows", "sr-stsl-1x", "sr-ldps", "sr-p2l-1x", "sr-psld-1x"]
    return restore.main([*map(str, where), *rows, *map(str, more)])


def test_the_whole_benchmark_resumes_and_says_what_it_left_out(tiny, tmp_path, monkeypatch, capsys):
    assert run(tmp_path, "--minutes", 0) == 0
    assert "sr-stsl: not tuned" in capsys.readouterr().err
    assert run(tmp_path, "--minutes", 5, "--tune", "--pictures", tmp_path / "images") == 0
    shown = capsys.readouterr()
    assert "left for the next call" not in shown.err
    settings = json.loads((tmp_path / "settings.json").read_text())["settings"]
    assert set(settings["sr"]) == {"stsl", "ldps", "psld", "p2l", "ldps-polyak"}
    assert all(settings["sr"][kind] in GRID[kind] for kind in settings["sr"])
    first = json.loads((tmp_path / "out" / "restore.json").read_text())
    rows = {row["row"]: row for row in first["rows"]}
    assert list(rows) == [
        "sr-stsl-1x",
        "sr-ldps-1x",
        "sr-psld-1x",
        "sr-p2l-1x",
        "sr-ldps-2x",
        "sr-ldps-polyak-1x",
        "sr-ldps-4x",
    ]
    assert [rows[name]["cost"]["forward"] for name in ("sr-stsl-1x", "sr-ldps-4x", "sr-p2l-1x")] == [3, 4, 2]
    assert rows["sr-ldps-4x"]["cost"]["decoder_forward"] == 5  # the last decoding too
    assert rows["sr-ldps-1x"]["differences"]["psnr"][0] == pytest.approx(
        rows["sr-ldps-1x"]["per_picture"]["psnr"][0] - rows["sr-stsl-1x"]["per_picture"]["psnr"][0]
    )
    assert [entry["method"] for entry in first["memory"]] == ["LDPS"]
    assert [bound["label"] for bound in first["bounds"]] == ["D(E(x)), the autoencoder's own", "first guess"]
    page = (tmp_path / "out" / "restore.md").read_text()
    assert page in shown.out and "| LDPS, 4x | `LDPS(steps=4" in page and "### Super-resolution" in page
    with Image.open(tmp_path / "images" / "restore_sr.png") as image:
        assert image.width > 8 * 96

    with monkeypatch.context() as patch:  # everything is in the cache
        patch.setattr(restore_measure, "measured", lambda *_: pytest.fail("it was there"))
        assert run(tmp_path, "--minutes", 5, "--tune") == 0
    assert json.loads((tmp_path / "settings.json").read_text())["settings"] == settings
    again = json.loads((tmp_path / "out" / "restore.json").read_text())
    assert again["rows"] == first["rows"] and again["tuning"] == first["tuning"]
    capsys.readouterr()
    for path in (tmp_path / "cache").glob("sr-ldps-2x-*/00.npz"):
        path.unlink()
    assert run(tmp_path, "--minutes", 0) == 0
    shown = capsys.readouterr()
    assert "left for the next call: sr-ldps-2x: 0 of 1 pictures" in shown.err
    assert "- sr-ldps-2x: 0 of 1 pictures" in shown.out and "| LDPS, 4x |" in shown.out


def test_a_run_that_diverges_is_a_result(tiny, backbone, tmp_path, monkeypatch):
    row = restore_rows.row("sr", "ldps", 1, {"zeta": 1e30})
    found = restore_measure.run_chunk(tmp_path, backbone, row, 0)
    assert "LDPS diverged at step 1" in found.failed[0] and np.isnan(found.psnr[0])
    kept = restore_measure.collected(tmp_path, row)
    assert kept.failed.tolist() == found.failed.tolist()
    settings = {"sr": {"ldps": {"zeta": 1e30}}}
    report = report_of(tmp_path, backbone, settings, ["sr-ldps-1x"], "command", ["gate"])
    assert "| LDPS, 1x | `LDPS(steps=1, zeta=1e+30)` |  | 1 | diverged: LDPS diverged at step 1" in markdown(report)
    monkeypatch.setitem(restore_rows.GRID, "ldps", ({"zeta": 1e30}, {"zeta": 0.1}))
    for tuning in restore_rows.tuning_rows("sr", "ldps"):
        restore_measure.run_chunk(tmp_path, backbone, tuning, 0)
    assert chosen(restore_choose.tried(tmp_path, "sr", "ldps")) == {"zeta": 0.1}


def test_processes_share_the_work(tiny, backbone, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        restore, "run_chunk", lambda folder, backbone, row, chunk: ran.append((row.name, chunk)) or _nothing()
    )
    monkeypatch.setitem(COUNTS, "test", 16)
    rows = every_row(SETTINGS, ["sr-ldps", "sr-psld-1x"])[0]
    rows = [row for row in rows if row.kind != "ldps-polyak"]
    halves = []
    for part in (0, 1):
        ran.clear()
        restore.Worker(tmp_path, backbone, 60.0, part, 2).run(rows)
        halves.append(list(ran))
    assert len(halves[0]) == len(halves[1]) == 4 and len({*halves[0], *halves[1]}) == 8
    with pytest.raises(ConfigError, match="--part must be K/N"):
        part_of("3/2")


def test_a_chunk_that_would_not_end_in_time_is_not_begun(tiny, backbone, tmp_path, monkeypatch):
    ran = []
    slow = _nothing()._replace(seconds=np.full(1, 1e6))
    monkeypatch.setattr(restore, "run_chunk", lambda folder, backbone, row, chunk: ran.append(row.name) or slow)
    worker = restore.Worker(tmp_path, backbone, 60.0, 0, 1)
    worker.run(every_row(SETTINGS, ["sr-psld", "sr-ldps-1x"])[0])
    assert ran == ["sr-ldps-1x", "sr-psld-1x"]  # the first of each method says how long the others take


def _nothing() -> restore_measure.Measured:
    empty = {name: np.zeros(1) for name in restore_measure.Measured._fields}
    return restore_measure.Measured(**{**empty, "failed": np.array([""])})
