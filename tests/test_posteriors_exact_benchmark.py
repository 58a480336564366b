"""`benchmarks/posteriors.py`: that runs are kept, what is left is said, and tables say what was measured."""

import json

import pytest

from fewstep.benchmarks import posteriors
from fewstep.benchmarks.harness import machine
from fewstep.benchmarks.posteriors_ablation import BASE, compared, settings
from fewstep.benchmarks.posteriors_methods import ROWS, Row, applies, measured, restored
from fewstep.benchmarks.posteriors_problems import PROBLEMS
from fewstep.benchmarks.posteriors_report import estimate, markdown, summaries
from fewstep.inverse.psld import PSLD
from fewstep.inverse.stsl import STSL

QUICK = Row("quick", "STSL in 3 steps", restored(STSL(steps=3, K=1, zeta=0.1)), 3)
FLOOR = next(row for row in ROWS if row.name == "floor")


def test_runs_are_kept_and_what_is_left_is_counted(tmp_path):
    todo = [("P1 four modes", QUICK, 0), ("P1 four modes", FLOOR, 0)]
    assert posteriors.work(tmp_path, todo, 20, 0.0) == {"P1 four modes": 2} and not list(tmp_path.iterdir())
    assert posteriors.work(tmp_path, todo, 20, 600.0) == {}
    (quick,) = tmp_path.glob("*quick*")
    found = json.loads(quick.read_text(encoding="utf-8"))
    assert found["forward"] == 3 * 3 and found["backward"] == 3 * 3  # K (z and its probe) + 1, and 3 K with the trace
    assert len(list(tmp_path.iterdir())) == 2
    kept = quick.stat().st_mtime_ns
    assert posteriors.work(tmp_path, todo, 20, 600.0) == {} and quick.stat().st_mtime_ns == kept


def test_a_run_that_diverges_is_a_row():
    z, cost = measured(Row("far", "", restored(STSL(steps=4, K=2, zeta=1e9, weighting="squared")), 4),
                       PROBLEMS["P1 four modes"](0), 5)  # fmt: skip
    assert z is None and "diverged at step" in cost["diverged"]


def test_psld_takes_states_of_any_size_where_they_are_no_pixels():
    posed = PROBLEMS["P2 (8, 1)"](1)
    y = posed.measurement
    assert float(y.operator.A_dagger(y.y).abs().max()) > 10.0
    assert measured(Row("psld", "", restored(PSLD(steps=2, omega=0.1)), 2), posed, 2)[0] is not None


LINEAR = {"tmpd-1000", "tmpd-100", "pigdm-1000", "pigdm-100", "psld-0.1"}


def test_linear_methods_leave_out_what_is_not_linear():
    posed = PROBLEMS["P3 x^2"](0)
    assert {row.name for row in ROWS if not applies(row, posed)} == LINEAR


def test_every_setting_of_the_ablation_runs_once():
    names = [setting.name for setting in settings()]
    assert len(set(names)) == len(names) == 6 * 5 - 2  # at eta 0 a probe and the trace's weight change nothing
    assert BASE.posterior == STSL(K=5, eta=0.02, zeta=0.1, weighting="norm", trace_weight="constant")


def test_intervals_are_students():
    assert estimate([2.0]) == (2.0, None, 1)
    mean, half, n = estimate([1.0, 2.0, 3.0])
    assert (mean, n) == (2.0, 3) and half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_paired_differences_take_the_seeds_that_both_have():
    values = {(BASE.name, s): {"sw1": 1.0 + s, "tv": 0.1, "variance": 1.0, "chi2": 1.0} for s in range(3)}
    first_order = next(s for s in settings() if s.eta == 0.0 and s.K == 5 and s.init == "noise")
    values |= {(first_order.name, s): {"sw1": 0.5 + s, "tv": 0.1, "variance": 1.0, "chi2": 1.0} for s in range(2)}
    (line,) = compared(values, 3, estimate)
    assert line["change"] == "eta 0.02" and line["seeds"] == 2 and line["sw1 difference"] == (0.5, 0.0, 2)
    assert line["diverged"] == 0
    values[first_order.name, 2] = {"diverged": "at step 3"}
    (line,) = compared(values, 3, estimate)
    assert (line["seeds"], line["diverged"]) == (2, 1)


def test_the_page_says_what_was_measured():
    found = {("P1 four modes", "floor", s): {"sw1": 0.25, "tv": 0.05, "chi2": 1.0} for s in range(2)}
    found["P1 four modes", "stsl", 0] = {"diverged": "at step 3"}
    found["P1 four modes", "floor", 1]["tv"] = float("nan")  # such as the error in modes that were all left
    rows = summaries(["P1 four modes"], ROWS, found, 2)
    report = {
        "title": "T", "command": "c", "notes": [], "machine": machine(busy=False), "versions": {}, "gates": ["g"],
        "left": {"P0 unit": 3, "P1 four modes": 4}, "affine_note": "", "rows": rows, "ablation": [],
        "affine": [{"prior": "unit", "steps": 250, "sampler": "TMPD", "exact": 0.1, "dps": 0.2}],
        "ablation_note": "", "ablation_problem": "P",
    }  # fmt: skip
    page = markdown(report)
    assert "| floor: exact draws | - | - | - | 2 | 0.25 ± 0.00 | 0.05 (of 1) | 1.00 ± 0.00 |" in page
    assert "1, 1 diverged" in page and "7 of the runs that were asked for (3 of P0 unit, 4 of P1 four modes" in page
