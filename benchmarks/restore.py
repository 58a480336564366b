"""Posteriors on tiny-sd: what they restore and what they cost, STSL against LDPS, PSLD and P2L.

    python -m fewstep.benchmarks.restore [--minutes N] [--rows sr-stsl box ...] [--tune] [--part 1/2]
        [--cache FOLDER] [--out FOLDER] [--pictures FOLDER]

16 held-out scenes of 64 x 64 pixels, three tasks, noise of standard deviation 0.05, no prompt. STSL runs 50 steps; the
others at equal, 2x and 4x raw network forwards, P2L at 8x too. Settings are those of restore_settings.json, which
--tune writes: the best of eight for every method and task, on four other scenes.

Results are kept in the cache in chunks of 8 pictures: what does not fit into the minutes is left for the next call, and
said; --minutes 0 writes the tables from what is there. Several processes may work on one cache (--part). The cache
knows a row by its hyper-parameters, not by its code: rows measured with other code of the method, or of what all
methods share, are named in the report. Other operators, solvers or a retrained tiny-sd need a new cache.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..samplers.backbones import Backbone
from .harness import part_of, passed, write
from .restore_choose import COMMITTED, chosen, read_settings, tried, write_settings
from .restore_gates import gates
from .restore_markdown import markdown
from .restore_measure import extent, kept, model, run_chunk
from .restore_memory import peaks
from .restore_problems import TASKS
from .restore_report import report_of
from .restore_rows import MAIN, Row, every_row, plan, tuning_rows

NAME = "restore"


class Worker:
    """Runs what is missing in the cache while there is time; a chunk that would take longer is not begun."""

    def __init__(self, folder: Path, backbone: Backbone, seconds: float, part: int, parts: int) -> None:
        self.folder, self.backbone, self.part, self.parts = folder, backbone, part, parts
        self.end = time.monotonic() + seconds
        self._turn = 0
        self._pace: dict[str, float] = {}  # method -> seconds for a step of a picture, as last seen

    def run(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for chunk in row.chunks:
                mine = self._turn % self.parts == self.part
                self._turn += 1
                found = kept(self.folder, row, chunk)
                if found is None and mine:
                    if not self._fits(row, chunk):
                        break
                    found = run_chunk(self.folder, self.backbone, row, chunk)
                    self._say(row, chunk, found.failed[0], float(found.seconds.sum()), float(found.psnr.mean()))
                if found is not None:
                    self._pace[row.kind] = float(found.seconds[0]) / row.method.steps

    def memory(self, kinds: Sequence[str]) -> None:
        for kind in kinds:
            if time.monotonic() < self.end and self.part == 0:
                peaks(self.folder, kind, self.backbone)

    def _fits(self, row: Row, chunk: int) -> bool:
        expected = self._pace.get(row.kind, 0.0) * row.method.steps * extent(row, chunk)[1]
        return time.monotonic() + expected < self.end

    def _say(self, row: Row, chunk: int, failed: str, seconds: float, psnr: float) -> None:
        result = failed or f"{psnr:.2f} dB"
        line = f"{row.name} ({row.label}), chunk {chunk + 1} of {len(row.chunks)}: {result}, {seconds:.0f} s"
        print(line, file=sys.stderr, flush=True)


def work(worker: Worker, settings: dict[str, dict[str, dict]], names: list[str] | None, tune: bool) -> None:
    """Everything in the order of `plan`; with `tune`, a method's settings are chosen before its first row."""
    for group in plan():
        task, kind, budget = group.task, group.kind, group.budget
        if tune and budget == 1 and (names is None or f"{task}-{kind}-1x".startswith(tuple(names))):
            worker.run(tuning_rows(task, kind))
            setting = chosen(tried(worker.folder, task, kind))
            if setting is not None:
                settings.setdefault(task, {})[kind] = setting
        rows = [row for row in every_row(settings, names)[0] if row.group == group]
        worker.run(rows)
        if rows and task == next(iter(TASKS)) and budget == 1 and kind in MAIN:
            worker.memory([kind])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: 0, or 1 where a gate failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    part, parts = part_of(options.part)
    settings = read_settings(options.settings)
    if options.threads:
        torch.set_num_threads(options.threads)
    backbone = model()
    checks = gates(backbone)
    if not passed(NAME, checks):
        return 1
    worker = Worker(options.cache, backbone, 60.0 * options.minutes, part, parts)
    work(worker, settings, options.rows, options.tune)
    if options.tune:
        write_settings(options.settings, settings, f"python -m fewstep.benchmarks.{NAME} --tune")
    rows = ["--rows", *options.rows] if options.rows else []
    command = shlex.join(["python", "-m", f"fewstep.benchmarks.{NAME}", *rows])
    report = report_of(options.cache, backbone, settings, options.rows, command, [gate.name for gate in checks])
    if report["left_out"]:
        print("left for the next call: " + "; ".join(report["left_out"]), file=sys.stderr)
    if options.out is not None:
        write(report, options.out / NAME, markdown)
    if options.pictures is not None:
        from .restore_pictures import sheets

        sheets(options.cache, backbone, settings, options.pictures)
    print(markdown(report))
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--minutes", type=float, default=60.0, help="time to measure for (default: 60)")
    found.add_argument("--rows", nargs="+", default=None, metavar="NAME", help="rows whose names begin so, alone")
    found.add_argument("--tune", action="store_true", help="choose settings first, and write them")
    found.add_argument("--settings", type=Path, default=COMMITTED, help="file of settings (default: the committed one)")
    found.add_argument("--part", default="1/1", metavar="K/N", help="of N processes on one cache this is the K-th")
    found.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fewstep-restore", help="folder")
    found.add_argument("--out", type=Path, default=None, help="write restore.json and restore.md into this folder")
    found.add_argument("--pictures", type=Path, default=None, help="write restore_TASK.png into this folder")
    found.add_argument("--threads", type=int, default=None, help="torch's threads")
    return found


if __name__ == "__main__":
    sys.exit(main())
