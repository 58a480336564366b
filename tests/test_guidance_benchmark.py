"""The benchmark of guidance policies: its pairs, its cache, its intervals and its choices, on a few pairs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fewstep.benchmarks import (
    guidance,
    guidance_attached,
    guidance_choose,
    guidance_pairs,
    guidance_pictures,
    guidance_plot,
    guidance_report,
    intervals,
)
from fewstep.benchmarks import guidance_statistics as statistics
from fewstep.benchmarks.guidance_pairs import Measured, Row
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.cfg import CFG
from fewstep.guidance.interval import Interval
from fewstep.models import embedded
from fewstep.models.captions import prompts
from fewstep.samplers.backbones import load_backbone


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(str(embedded("tiny-sd")))


def of(accepted, nfe=20, latents=None) -> Measured:
    n = len(accepted)
    latents = np.ones((n, 2)) if latents is None else latents
    return Measured(np.array(accepted, bool), np.full(n, nfe), np.array(latents, np.float32))


def test_pairs_are_the_same_wherever_a_chunk_begins_and_no_prompt_was_trained_on():
    assert guidance_pairs.test_pairs(0, 9)[4:] == guidance_pairs.test_pairs(4, 5)
    pairs = guidance_pairs.test_pairs(0, 300)
    assert [p.seed for p in pairs] == list(range(300))
    assert [p.kind for p in pairs[:4]] == ["one", "two", "heldout", "one"]
    assert pairs[7].prompt == prompts("two", 3)[2]
    chosen_on = guidance_pairs.calibration_pairs(0, 300)
    assert guidance_pairs.calibration_pairs(100, 200) == chosen_on[100:]
    everything = {p.prompt for p in guidance_pairs.test_pairs(0, 2000)}
    assert not everything & {p.prompt for p in chosen_on}
    assert not {p.seed for p in chosen_on} & set(range(2000))


@pytest.mark.parametrize("lost, gained", [(0.03, 0.01), (0.005, 0.005), (0.001, 0.0)])
def test_the_interval_of_a_paired_difference_covers_it_in_95_percent_of_draws(lost, gained):
    n, draws = 2000, 1000
    counts = np.random.default_rng(0).multinomial(n, (lost, gained, 1 - lost - gained), draws)
    found = [intervals.Paired(n, int(a), int(b)).difference for a, b, _ in counts]
    covered = np.mean([v.low <= gained - lost <= v.high for v in found])
    # 1,000 draws know the share to 0.007 (one standard deviation); of two or three events it is a coarse function
    assert covered > 0.95 - 4 * 0.007
    assert covered < 0.95 + 4 * 0.007 or lost + gained < 0.005


def test_intervals_of_paired_differences_at_known_places():
    same = intervals.Paired(2000, 0, 0).difference
    z2 = intervals.Z**2
    assert same == pytest.approx((0.0, -z2 / (2000 + z2), z2 / (2000 + z2)), abs=1e-11)  # solved by hand
    assert intervals.Paired(100, 0, 0).difference.low < -0.02  # a hundred pairs cannot show 2 points
    many = intervals.Paired(100_000, 4000, 3000).difference  # here the normal interval holds
    half = intervals.Z * (0.07 - 0.01**2) ** 0.5 / 100_000**0.5
    assert many == pytest.approx((-0.01, -0.01 - half, -0.01 + half), abs=2e-5)
    mirrored = intervals.Paired(500, 3, 9).difference
    assert intervals.Paired(500, 9, 3).difference == pytest.approx([-mirrored[k] for k in (0, 2, 1)])


def test_differences_and_errors_are_of_pairs():
    reference = of([1, 1, 1, 0], latents=[[3, 4]] * 4)
    row = of([1, 0, 0, 1, 1], latents=[[3, 4], [3, 5], [6, 8], [3, 4], [0, 0]])
    assert statistics.paired(row, reference) == (4, 2, 1)
    assert statistics.relative_errors(row, reference).tolist() == pytest.approx([0.0, 0.2, 1.0, 0.0])


def test_a_baseline_between_two_rows_has_exactly_the_cost():
    costs = {"a": 25.0, "b": 28.0, "c": 29.0}
    between = statistics.neighbours(28.25, costs)
    assert between == ("b", "c", 0.25)
    assert between.at({"b": np.array([1.0, 2.0]), "c": np.array([3.0, 2.0])}, 2).tolist() == [1.5, 2.0]
    assert statistics.neighbours(28.0, costs) == ("b", "b", 0.0)
    assert statistics.neighbours(24.0, costs) is None and statistics.neighbours(30.0, costs) is None


def test_the_cost_read_from_gamma_curves_is_the_cost_of_the_policy(backbone):
    row = Row("gamma", "", "", AdaptiveGuidance(2.0), steps=8)
    pairs = guidance_pairs.calibration_pairs(0, 4)
    scores = guidance_pairs.solved(backbone, row, pairs).report.scores
    curves = np.array([scores[i] for i in range(8)]).T
    threshold = guidance_choose.threshold_for(curves, 13.0)
    report = guidance_pairs.solved(backbone, replace(row, policy=AdaptiveGuidance(threshold)), pairs).report
    assert report.nfe / 4 == guidance_choose.mean_nfe(curves, threshold) <= 13.0
    larger = [g for g in np.maximum.accumulate(curves, axis=1).ravel() if g > threshold]
    assert all(guidance_choose.mean_nfe(curves, g) > 13.0 for g in larger)
    with pytest.raises(ValueError, match=r"no threshold costs 8\.5 NFE"):
        guidance_choose.threshold_for(curves, 8.5)


def test_a_chunk_that_is_there_is_not_run_again(backbone, tmp_path, monkeypatch):
    row = Row("cfg", "CFG", "CFG", CFG(), steps=2, pairs=2)
    assert guidance_pairs.collected(tmp_path, row) is None
    assert guidance_pairs.run_chunk(tmp_path, backbone, row, 0)
    first = guidance_pairs.collected(tmp_path, row)
    assert first.nfe.tolist() == [4, 4] and first.latents.shape == (2, 512)
    with monkeypatch.context() as patch:
        patch.setattr(guidance_pairs, "measured", lambda *_: pytest.fail("it was there"))
        assert not guidance_pairs.run_chunk(tmp_path, backbone, row, 0)
    more = replace(row, pairs=3)
    assert guidance_pairs.collected(tmp_path, more) is None
    assert guidance_pairs.run_chunk(tmp_path, backbone, more, 0)
    assert len(guidance_pairs.collected(tmp_path, more).nfe) == 3
    assert len(guidance_pairs.collected(tmp_path, row).nfe) == 2


def test_another_policy_solver_or_scale_has_another_folder():
    row = Row("x", "", "", AdaptiveGuidance(0.999))
    others = [replace(row, policy=AdaptiveGuidance(0.99)), replace(row, policy=Interval()), replace(row, steps=19),
              replace(row, scale=3.0), replace(row, solver="dpm-2m"), replace(row, calibration=True)]  # fmt: skip
    assert len({r.folder for r in (row, *others)}) == 7
    assert replace(row, label="other words", pairs=7).folder == row.folder


def test_goals_need_both_the_saving_and_the_interval():
    def line(name, saved, low):
        return {"row": name, "label": name, "saved": saved, "difference": (0.0, low, 0.01)}

    lines = [line("a", 0.26, -0.01), line("l", 0.34, -0.01), line("s", 0.27, -0.021)]
    found = guidance_report.verdicts(lines, {"ag": "a", "linear-ag": "l", "searched": "s"})
    assert [(v["goal"], v["reached"]) for v in found] == [("ag", True), ("linear-ag", False), ("searched", False)]
    assert found[2]["least_saving"] == 0.26
    assert guidance_report.verdicts(lines[2:], {"searched": "s"}) == []


@pytest.mark.slow
def test_the_benchmark_resumes_and_writes_its_page_and_plots(backbone, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(guidance, "load_backbone", lambda _: backbone)
    names = ["cfg", "first-5", "first-7", "ag-0.99"]
    arguments = ["--pairs", "2", "--rows", *names, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]
    assert guidance.main([*arguments, "--minutes", "0"]) == 0
    assert "left for the next call: cfg, first-5" in capsys.readouterr().err
    monkeypatch.setattr(guidance, "gates", lambda backbone: [])  # they passed a moment ago
    assert guidance.main(arguments) == 0
    page = (tmp_path / "guidance.md").read_text(encoding="utf-8")
    report = json.loads((tmp_path / "guidance.json").read_text(encoding="utf-8"))
    (block,) = report["blocks"]
    by_name = {line["row"]: line for line in block["rows"]}
    assert by_name["cfg"]["nfe"][0] == 40 and by_name["first-5"]["nfe"][0] == 25
    assert by_name["first-5"]["saved"] == pytest.approx(0.375) and by_name["cfg"]["error"][0] == 0.0
    assert by_name["first-5"]["error"][0] > by_name["first-7"]["error"][0] > 0.0
    assert "first 25 %" in page and str(tmp_path) not in page
    monkeypatch.setattr(guidance_pairs, "measured", lambda *_: pytest.fail("everything is in the cache"))
    assert guidance.main(arguments) == 0
    guidance_plot.pareto(block["rows"], tmp_path / "pareto.png")
    curves = {"x0": np.linspace(0.5, 0.9999, 40).reshape(2, 20)}
    guidance_plot.gamma_curves(curves, tmp_path / "gamma.png")
    assert all(1000 < (tmp_path / name).stat().st_size < 150_000 for name in ("pareto.png", "gamma.png"))


def test_a_failed_gate_ends_it_without_numbers(backbone, capsys, monkeypatch):
    monkeypatch.setattr(guidance, "load_backbone", lambda _: backbone)
    gate = guidance.Gate("one is two", lambda: "it is not")
    monkeypatch.setattr(guidance, "gates", lambda backbone: [gate])
    assert guidance.main(["--rows", "cfg"]) == 1
    assert "one is two: it is not" in capsys.readouterr().err


def test_pipeline_and_native_loop_cost_the_same_and_end_at_the_same_latents(backbone):
    backbone.pipe.set_progress_bar_config(disable=True)
    rows = [Row("cfg", "CFG", "CFG", CFG(), steps=4), Row("half", "half", "", Interval(stop=0.5), steps=4)]
    full, half = guidance_attached.measure(backbone, rows, 2, 2)
    assert [full[loop]["nfe"] for loop in ("native", "attached")] == [8, 8]
    assert [half[loop]["nfe"] for loop in ("native", "attached")] == [6, 6]
    assert full["native"]["ratio"] == [1.0, 1.0, 1.0]
    # float32 sums in another order, of latents that are compared with their largest one
    assert max(full["largest_difference"], half["largest_difference"]) < 1e-5


def test_pictures_are_drawn_for_every_row(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(guidance_pictures, "COUNT", 2)
    rows = [Row(name, "", "", CFG(), steps=1) for name in ("cfg", "none")]
    guidance_pictures.pictures(backbone, rows, tmp_path / "pictures.png")
    assert 1000 < (tmp_path / "pictures.png").stat().st_size < 150_000


def test_every_row_stands_under_one_heading_and_goals_name_rows():
    names = [name for block in guidance.BLOCKS for name in block.names]
    assert len(set(names)) == len(names)
    known = {row.name for row in guidance.rows_of({})} | set(guidance_choose.LINEAR) | set(guidance.CHOSEN.values())
    assert set(names) == known
    guided = {row.name: row.policy.stop for row in guidance.rows_of({}) if row.family in ("first p %", "frozen delta")}
    assert all(int(stop * 20) == int(name.split("-")[-1]) for name, stop in guided.items())
