"""One entry of the list in gpu.py, in a process of its own: what it found is in a file after every outcome.

python -m fewstep.benchmarks.gpu_child .gpu_combine:CHECKS --device cuda --seconds 60 --result FILE
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from . import harness
from .gpu_outcome import Check, Outcome, Skipped
from .harness import Benchmark

MEASURING = 0.3  # of an entry's seconds; the rest is for compiling, warming up and counting


class Record:
    """The file. Replaced as a whole each time, so that it is never half written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = {"outcomes": [], "skipped": [], "errors": [], "report": None}
        self.save()

    def save(self) -> None:
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(self.found), encoding="utf-8")
        os.replace(beside, self._path)

    def add(self, kind: str, what: Any) -> None:
        self.found[kind].append(what)
        self.save()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args(argv)
    signal.alarm(int(options.seconds) + 10)  # the end, also when nobody is left to stop it
    record = Record(options.result)
    device = torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    try:
        target = resolve(options.target)
        if isinstance(target, tuple):
            for check in target:
                run_check(check, device, record)
        else:
            run_benchmark(target(device), options.seconds, options.only, record)
    except Exception as error:
        record.add("errors", described(error))
    return 0


def resolve(target: str) -> Any:
    """ ".module:NAME" of this package: a tuple of checks, or a function of a device that builds a benchmark."""
    module, _, name = target.partition(":")
    return getattr(import_module(module, __package__), name)


def run_check(check: Check, device: torch.device, record: Record) -> None:
    """An error ends this check, not the next."""
    try:
        for outcome in check(device):
            record.add("outcomes", finite(outcome))
    except Skipped as reason:
        record.add("skipped", f"{check.__name__}: {reason}")
    except Exception as error:
        record.add("errors", f"{check.__name__}: {described(error)}")


def run_benchmark(benchmark: Benchmark, seconds: float, only: str, record: Record) -> None:
    if any(not only or only in case.group for case in benchmark.cases()):
        record.found["report"] = harness.run(benchmark, MEASURING * seconds, only=only)
        if record.found["report"] is None:
            record.found["errors"].append("no numbers, because a gate failed")
    record.found["skipped"] = list(dict.fromkeys(benchmark.skipped))
    record.save()


def finite(outcome: Outcome) -> dict[str, Any]:
    return outcome._asdict() | {"passed": bool(outcome.passed)}


def described(error: BaseException) -> str:
    """The error and where it happened, without folders."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return without_folders(f"{type(error).__name__}: {str(error)[:400]} ({where})")


def without_folders(text: str) -> str:
    return re.sub(r"(?:/[\w.+@-]+)+/([\w.+@-]+)", r"\1", text)


if __name__ == "__main__":
    sys.exit(main())
