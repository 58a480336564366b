"""What every benchmark shares: a gate before any number, peers beside us in one process, interleaved repeats.

A benchmark is a list of `Gate`s and a list of `Case`s. If a gate fails, nothing is timed. Cases with the same `key` are
the same work done by different implementations; they are timed one after the other, in turns, so that whatever else the
machine does hits all of them, and the ratio of two implementations is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import ConfigError
from .markdown import markdown

SCHEMA = 1
OURS = "fewstep"
WARM_UPS = 2
MIN_REPEATS = 5


class Gate(NamedTuple):
    """check: returns None where the implementations agree, else a sentence that says how they do not."""

    name: str
    check: Callable[[], str | None]


@dataclass(frozen=True)
class Case:
    """One implementation doing one piece of work.

    table: heading of the table it belongs to.       key: what is done; the cases of a table have the same names in it.
    prepare: untimed set-up before each repeat; returns the call that is timed.
    units: how many ticks (runs, ...) that call does; unit: what a printed number is, in microseconds.
    clock: time.perf_counter, or host_clock for work of the calling thread alone.
    facts: measures further columns of this implementation, such as counted calls, after the timing.
    peer: the implementation to form ratios with, where it is not the benchmark's.
    """

    table: str
    key: dict[str, str]
    implementation: str
    prepare: Callable[[], Callable[[], object]]
    units: int = 1
    unit: str = "us per tick"
    clock: Callable[[], float] = time.perf_counter
    facts: Callable[[], dict[str, float]] = dict
    peer: str = ""

    @property
    def group(self) -> tuple[str, ...]:
        return (self.table, *self.key.values())


@dataclass(frozen=True)
class Benchmark:
    """name: of the module in fewstep.benchmarks.       cases: called once the gates have passed.
    peer: the implementation that ratios are formed with.       notes: sentences printed under the title.
    skipped: what was left out and why; `cases` may add to it.
    """

    name: str
    title: str
    gates: Sequence[Gate]
    cases: Callable[[], Iterable[Case]]
    peer: str
    notes: Sequence[str] = ()
    skipped: list[str] = field(default_factory=list)


def main(build: Callable[[], Benchmark], argv: Sequence[str] | None = None) -> int:
    """The command line of a benchmark: 0, or 1 where there is no number, usually because a gate failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    benchmark = build()
    report = run(benchmark, 60.0 * options.minutes, only=options.only, arguments=arguments)
    if report is None:
        return 1
    if options.output:
        write(report, Path(options.output))
    print(markdown(report))
    return 0


def run(
    benchmark: Benchmark, seconds: float, *, only: str = "", arguments: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The report, or None after printing why there is none. Nothing is timed before every gate has passed."""
    if not passed(benchmark.name, benchmark.gates):
        return None
    cases = [case for case in benchmark.cases() if not only or only in case.group]
    if not cases:
        print(f"{benchmark.name}: no case has the value {only!r}", file=sys.stderr)
        return None
    return {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "notes": list(benchmark.notes),
        "skipped": list(benchmark.skipped),
        "command": _command(benchmark.name, arguments),
        "machine": machine(),
        "versions": versions(),
        "gates": [gate.name for gate in benchmark.gates],
        "peer": benchmark.peer,
        "rows": rows(cases, measure(cases, seconds), benchmark.peer),
    }


def passed(name: str, gates: Iterable[Gate]) -> bool:
    """Whether all gates of a benchmark are; says which is not."""
    for gate in gates:
        problem = gate.check()
        if problem is not None:
            print(f"{name}: no numbers, because the gate failed: {gate.name}: {problem}", file=sys.stderr)
            return False
    return True


def part_of(text: str) -> tuple[int, int]:
    """(k - 1, n) of the "k/n" of --part. ConfigError for anything else."""
    head, _, tail = text.partition("/")
    if not (head.isdigit() and tail.isdigit() and 1 <= int(head) <= int(tail)):
        raise ConfigError(f"--part must be K/N with K from 1 to N, such as 1/2, got {text!r}")
    return int(head) - 1, int(tail)


def measure(cases: Sequence[Case], seconds: float) -> list[list[float]]:
    """Microseconds per unit of every repeat of every case; repeat r of a group's cases are neighbours in time.

    Every group gets an equal share of the time, and MIN_REPEATS however slow it is.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for n, case in enumerate(cases):
        groups.setdefault(case.group, []).append(n)
        for _ in range(WARM_UPS):
            case.prepare()()
    times: list[list[float]] = [[] for _ in cases]
    spent = dict.fromkeys(groups, 0.0)
    order = random.Random(0)
    active = list(groups)
    while active:
        order.shuffle(active)
        for group in active:
            began = time.perf_counter()
            for n in order.sample(groups[group], len(groups[group])):
                call, clock = cases[n].prepare(), cases[n].clock
                start = clock()
                call()
                times[n].append(1e6 * (clock() - start) / cases[n].units)
            spent[group] += time.perf_counter() - began
        share = seconds / len(groups)
        active = [g for g in active if spent[g] < share or len(times[groups[g][0]]) < MIN_REPEATS]
    return times


def rows(cases: Sequence[Case], times: Sequence[Sequence[float]], peer: str) -> list[dict[str, Any]]:
    """One JSON row per case. `speedup`: the peer's time over this one's, repeat by repeat; None without a peer."""
    of = {(case.group, case.implementation): t for case, t in zip(cases, times, strict=True)}
    found = []
    for case, t in zip(cases, times, strict=True):
        other = of.get((case.group, case.peer or peer))
        compared = other is not None and case.implementation != (case.peer or peer)
        ratios = [a / b for a, b in zip(other or (), t, strict=True)] if compared else []
        found.append({
            "table": case.table, "case": case.key, "implementation": case.implementation, "unit": case.unit,
            "peer": case.peer or peer,
            **summary(t), "repeats": len(t), "speedup": summary(ratios) if ratios else None, "facts": case.facts(),
        })  # fmt: skip
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": quantile(values, 0.5), "p20": quantile(values, 0.2), "p80": quantile(values, 0.8)}


def host_clock() -> Callable[[], float]:
    """The CPU time of this thread, where the system counts it finely (not on Windows), else the wall clock.

    On a busy machine a run of 5 ms is interrupted more often than one of 1 ms: wall time would flatter the shorter one.
    """
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time if fine else time.perf_counter


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between the order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def machine(busy: bool = True) -> dict[str, Any]:
    """The hardware, without anything that names this machine. load: how busy it was, per core, before we began.

    busy: whether that is asked; numbers from a cache were measured at other times.
    """
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if busy and hasattr(os, "getloadavg") else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "load": None if load is None else round(load, 2),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("fewstep", "torch", "diffusers", "transformers", "triton", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write(report: dict[str, Any], path: Path, page: Callable[[dict[str, Any]], str] = markdown) -> None:
    """The report as JSON in `path` and as Markdown, which `page` makes of it, beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(report), indent=1, allow_nan=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(report), encoding="utf-8")


def _plain(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Times are medians of interleaved repeats, with percentiles.")
    parser.add_argument("--minutes", type=float, default=1.0, help="time to measure for, all cases together")
    parser.add_argument("--output", metavar="FILE", help="write FILE.json and FILE.md")
    parser.add_argument("--threads", type=int, help="torch's number of CPU threads (default: torch's own choice)")
    parser.add_argument("--only", default="", metavar="VALUE", help="cases with this solver, latent, ... alone")
    return parser


def _command(name: str, arguments: Sequence[str]) -> str:
    """What to type to repeat it: without the output file, which is nobody else's business."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--output"):
            kept.append(argument)
        skip = argument == "--output"
    return " ".join(["python -m fewstep.benchmarks." + name, *kept])


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
