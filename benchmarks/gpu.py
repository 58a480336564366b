"""Every check and benchmark that needs a GPU, in one command; benchmarks/gpu.sh runs it from a bare checkout.

    python -m fewstep.benchmarks.gpu --output gpu

Each entry of the list below runs in a process of its own that is stopped when its seconds are over, so that neither a
crash nor a fault of the GPU reaches another one. Checks run several at a time, since they mostly compile; what is timed
runs alone. gpu.json and gpu.md are written after every entry.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .gpu_child import without_folders
from .gpu_report import page
from .harness import machine, versions

SCHEMA = 1
MINUTES = 8.5
LEAST = 5.0  # seconds; with less left an entry is not begun


class Entry(NamedTuple):
    """target: ".module:NAME", a tuple of checks (see gpu_outcome) or a function of a device that builds a Benchmark.

    seconds: when it is stopped.       only: of a benchmark, the cases with this value (see harness, --only).
    timed: whether it must run alone.       on_cpu: whether `--device cpu` runs it, in Triton's interpreter.
    """

    name: str
    target: str
    seconds: float
    only: str = ""
    timed: bool = False
    on_cpu: bool = True


def _benchmark(name: str, seconds: float, table: str) -> Entry:
    return Entry(name, ".kernels:build", seconds, table, timed=True, on_cpu=False)


ENTRIES = (
    Entry("combine", ".gpu_combine:CHECKS", 150),
    Entry("gram", ".gpu_gram:CHECKS", 120),
    Entry("philox_normal", ".gpu_philox:CHECKS", 60),
    Entry("runs", ".gpu_runs:CHECKS", 150),
    Entry("graphs", ".gpu_graphs:CHECKS", 120),
    Entry("combine, large", ".gpu_combine:LARGE_CHECKS", 60, on_cpu=False),
    _benchmark("ticks, bfloat16", 120, "A tick around a network that returns at once, network dtype bfloat16"),
    _benchmark("noise", 60, "The noise of a tick"),
    _benchmark("statistics", 60, "Inner products of the conditional output and the guidance direction"),
    _benchmark("whole networks", 90, "A tick with a whole network of random weights"),
    _benchmark("ticks, float32", 120, "A tick around a network that returns at once, network dtype float32"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """1 if a check failed, crashed or was stopped, else 0."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description="Runs every check and benchmark that needs a GPU.")
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="writes OUTPUT.json and OUTPUT.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: interpreted, no benchmark")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything together")
    parser.add_argument("--jobs", type=int, default=jobs(), help="checks at a time")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this entry; may be repeated")
    options = parser.parse_args(arguments)
    entries = [entry for entry in ENTRIES if entry.name in options.only or not options.only]
    unknown = set(options.only) - {entry.name for entry in ENTRIES}
    if unknown:
        parser.error(f"there is no entry {', '.join(sorted(unknown))}; there are {', '.join(e.name for e in ENTRIES)}")
    if options.device == "cuda" and machine()["gpu"] is None:
        parser.error("there is no CUDA device; --device cpu runs the checks in Triton's interpreter")
    report = run(entries, options.device, options.output, 60.0 * options.minutes, options.jobs)
    failed = [entry["name"] for entry in report["entries"] if entry["status"] not in ("passed", "skipped")]
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed", flush=True)
    return 1 if failed else 0


def jobs() -> int:
    return max(1, min(6, (os.cpu_count() or 1) // 2))


def run(entries: Sequence[Entry], device: str, output: Path, seconds: float, jobs: int = 1) -> dict[str, Any]:
    """The report, as it also stands in the files."""
    report: dict[str, Any] = {
        "schema": SCHEMA, "command": f"python -m fewstep.benchmarks.gpu --device {device}",
        "machine": machine() | {"driver": driver()}, "versions": versions(), "entries": [],
    }  # fmt: skip
    places = {entry.name: place for place, entry in enumerate(entries)}
    for found in finished(entries, device, time.monotonic() + seconds, jobs):
        report["entries"] = sorted([*report["entries"], found], key=lambda row: places[row["name"]])
        write(report, output)
        print(f"{found['name']}: {found['status']} after {found['seconds']:.0f} s", flush=True)
    return report


def finished(entries: Sequence[Entry], device: str, deadline: float, jobs: int) -> Iterator[dict[str, Any]]:
    """What each entry found, as they finish."""
    one = partial(run_before, device=device, deadline=deadline)
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(one, entry) for entry in entries if not entry.timed]):
            yield done.result()
    yield from map(one, [entry for entry in entries if entry.timed])


def run_before(entry: Entry, device: str, deadline: float) -> dict[str, Any]:
    left = deadline - time.monotonic()
    if device == "cpu" and not entry.on_cpu:
        return blank(entry, "skipped", skipped=["needs CUDA"])
    if left < LEAST:
        return blank(entry, "skipped", skipped=["no time was left"])
    return run_entry(entry, device, min(entry.seconds, left))


def blank(entry: Entry, status: str, **found: Any) -> dict[str, Any]:
    nothing = {"outcomes": [], "skipped": [], "errors": [], "report": None}
    return {"name": entry.name, "status": status, "seconds": 0.0, **nothing, **found}


def run_entry(entry: Entry, device: str, seconds: float) -> dict[str, Any]:
    """What the entry's process wrote, however it ended."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, "-m", f"{__package__}.gpu_child", entry.target, "--device", device]
        command += ["--seconds", str(seconds), "--only", entry.only, "--result", str(result)]
        with log.open("wb") as written:
            process = subprocess.Popen(
                command, stdout=written, stderr=written, env=environment(device), start_new_session=True
            )
            problem = outcome_of(process, seconds)
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    row: dict[str, Any] = blank(entry, "", **found) | {"seconds": round(time.monotonic() - began, 1)}
    if problem:
        row["errors"] = [*row["errors"], problem]
    if row["errors"] and lines:
        row["errors"] = [*row["errors"], "last words: " + without_folders(lines[-1])[:400]]
    return row | {"status": status_of(row)}


def outcome_of(process: subprocess.Popen[bytes], seconds: float) -> str | None:
    """Waits for the process, stops it and everything it started when its time is over, and says what went wrong."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if code == 0:
        return None
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def status_of(row: dict[str, Any]) -> str:
    if row["errors"] or not all(outcome["passed"] for outcome in row["outcomes"]):
        return "failed"
    return "passed" if row["outcomes"] or row["report"] else "skipped"


def environment(device: str) -> dict[str, str]:
    interpreted = {"TRITON_INTERPRET": "1", "FEWSTEP_KERNELS": "triton"} if device == "cpu" else {}
    return os.environ | interpreted


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def write(report: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
