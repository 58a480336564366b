"""The script that runs everything that needs a GPU, here in Triton's interpreter; and that nothing stops it."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.benchmarks import gpu, harness
from fewstep.benchmarks.gpu_child import without_folders
from fewstep.benchmarks.gpu_outcome import at_most

SCRIPT = Path(gpu.__file__).with_name("gpu.sh")
KEYS = {"name", "status", "seconds", "outcomes", "skipped", "errors", "report"}

BROKEN = """
import os, time
from types import SimpleNamespace

def outcome(passed):
    found = {"name": "n", "passed": passed, "measured": None, "allowed": None, "note": ""}
    return SimpleNamespace(passed=passed, _asdict=lambda: found)

def fine(device):
    yield outcome(True)

def wrong(device):
    yield outcome(False)

def raises(device):
    yield outcome(True)
    raise ValueError(__file__)

def aborts(device):
    yield outcome(True)
    os.abort()

def sleeps(device):
    time.sleep(600)
    yield outcome(True)

FINE, WRONG, RAISES, ABORTS, SLEEPS = (fine,), (wrong,), (raises, fine), (aborts,), (sleeps,)
"""


@pytest.fixture
def bash():
    found = shutil.which("bash")
    if found is None:
        pytest.skip("no bash")
    return found


def test_the_script_is_valid(bash):
    assert subprocess.run([bash, "-n", str(SCRIPT)]).returncode == 0


@pytest.mark.parametrize("only", [("philox_normal",), pytest.param((), marks=pytest.mark.slow)], ids=["one", "all"])
def test_the_checks_in_the_interpreter(bash, tmp_path, only):
    """All of them where the suite may take minutes; tests/interpreted has most of what they check."""
    pytest.importorskip("triton")
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    words = [bash, str(SCRIPT), "--device", "cpu", *(word for name in only for word in ("--only", name))]
    run = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report) == {"schema", "command", "machine", "versions", "entries"}
    assert all(set(entry) == KEYS for entry in report["entries"])
    entries = [entry for entry in gpu.ENTRIES if not only or entry.name in only]
    assert [entry["name"] for entry in report["entries"]] == [entry.name for entry in entries]
    for entry, found in zip(entries, report["entries"], strict=True):
        assert found["status"] == ("passed" if entry.on_cpu else "skipped") and not found["errors"]
        assert bool(found["outcomes"]) == entry.on_cpu
        if entry.name == "graphs":
            assert "readers_are_refused: needs CUDA" in found["skipped"]
    text = (tmp_path / "gpu.md").read_text() + (tmp_path / "gpu.json").read_text()
    assert platform.node() not in text and str(tmp_path) not in text and str(SCRIPT.parent) not in text


def test_nothing_stops_the_rest(tmp_path, monkeypatch):
    (tmp_path / "broken_entries.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    entries = [
        gpu.Entry("aborts", "broken_entries:ABORTS", 60),
        gpu.Entry("sleeps", "broken_entries:SLEEPS", 0.5),
        gpu.Entry("raises", "broken_entries:RAISES", 60),
        gpu.Entry("cuda", "broken_entries:FINE", 60, on_cpu=False),
        gpu.Entry("fine", "broken_entries:FINE", 60),
    ]
    report = gpu.run(entries, "cpu", tmp_path / "gpu", 300.0, jobs=2)
    aborts, sleeps, raises, cuda, fine = report["entries"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    assert [e["status"] for e in report["entries"]] == ["failed", "failed", "failed", "skipped", "passed"]
    assert len(aborts["outcomes"]) == 1 and aborts["errors"][0] == "ended by SIGABRT"
    assert sleeps["errors"][0].startswith("stopped after") and sleeps["seconds"] < 60
    assert len(raises["outcomes"]) == 2  # the check behind the one that raised was done
    assert "broken_entries.py" in raises["errors"][0] and str(tmp_path) not in raises["errors"][0]
    assert cuda["skipped"] == ["needs CUDA"] and len(fine["outcomes"]) == 1
    assert "| aborts | failed |" in (tmp_path / "gpu.md").read_text()


def test_without_time_nothing_is_begun_but_said(tmp_path):
    report = gpu.run([gpu.Entry("late", "broken_entries:FINE", 60)], "cpu", tmp_path / "gpu", 0.0)
    assert report["entries"][0]["skipped"] == ["no time was left"]


def test_a_failed_check_is_the_exit_status(tmp_path, monkeypatch):
    (tmp_path / "broken_entries.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "ENTRIES", (gpu.Entry("wrong", "broken_entries:WRONG", 60),))
    assert gpu.main(["--device", "cpu", "--output", str(tmp_path / "gpu")]) == 1
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--only", "rigth"])


def test_a_benchmarks_tables_are_on_the_page(tmp_path):
    case = harness.Case("Table", {"what": "a"}, "fewstep", lambda: lambda: None)
    found = harness.run(harness.Benchmark("name", "Title", (), lambda: [case], "peer", skipped=["the rest"]), 0.0)
    report = {"command": "c", "machine": {"gpu": None}, "versions": {}, "entries": [
        gpu.blank(gpu.Entry("one", "", 1.0), "passed", report=found)
    ]}  # fmt: skip
    gpu.write(report, tmp_path / "gpu")
    page = (tmp_path / "gpu.md").read_text()
    assert "## Title" in page and "### Table" in page and "- the rest" in page


def test_nan_is_no_small_error_and_folders_are_nobodys_business():
    assert not at_most("n", float("nan"), 1.0).passed
    assert without_folders("in /a/b-c/d.py:3 (a/b)") == "in d.py:3 (a/b)"
