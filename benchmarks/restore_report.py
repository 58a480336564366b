"""The results of `restore` as numbers, and as the Markdown of benchmarks/results/restore.md."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inverse.operators.named import described as told
from ..inverse.posterior import Posterior
from ..samplers.backbones import Backbone
from .harness import machine, versions
from .intervals import Paired, mean_interval
from .restore_choose import at_edge, tried
from .restore_measure import PARTS, Measured, code_of, collected, judged
from .restore_memory import peaks
from .restore_problems import COUNTS, TASKS, measurement, truth
from .restore_rows import CHUNK, FORWARDS, GRID, MAIN, SWAPPED, TITLES, Row, Settings, every_row, papers_count

METRICS = ("psnr", "ssim", "chi2")
NOTES = (
    "tiny-sd, 64 x 64 pixels. 16 scenes with an object in a combination that training never showed, no prompt. "
    "y = A(x) + sigma_y n with sigma_y = 0.05 of the range [0, 1]; every row has the same measurements and seeds. "
    "PSNR in dB; SSIM with the window of 11 pixels; right: pictures of which the judge says that the scene's full "
    "caption is true; chi^2: |y - A(x)|^2 / (m sigma_y^2), about 1 for the true picture.",
    f"1x is {FORWARDS} raw network forwards an image, what STSL takes in 50 steps with K = 5. Settings are the best of "
    "eight by mean PSNR at 1x on four other scenes, for every method and task; the same setting is used at 2x, 4x, 8x: "
    "more steps of the same size then follow the data further. Rows called divided have 4x the steps of a quarter. All "
    "methods begin from the first guess with noise, which is STSL's way; PSLD's released code begins from noise alone. "
    "Differences are the row's number less STSL's on the same picture, mean with 95 % interval: Student's, and for the "
    "judge the score interval of matched proportions, in points of a hundred. 16 pictures are few: an interval that "
    "holds 0 shows nothing.",
)


def report_of(
    folder: Path, backbone: Backbone, settings: Settings, names: Sequence[str] | None, command: str,
    gates: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Everything that is printed, from the cache."""
    rows, untuned = every_row(settings, names)
    found = {row.name: m for row in rows if (m := collected(folder, row)) is not None}
    left = [f"{row.name}: {len(found[row.name].psnr) if row.name in found else 0} of {row.pictures} pictures"
            for row in rows if row.name not in found or len(found[row.name].psnr) < row.pictures]  # fmt: skip
    other = [row.name for row in rows if row.name in found and set(found[row.name].code) != {code_of(row.method)}]
    lines = [_line(row, found[row.name], found.get(f"{row.task}-stsl-1x")) for row in rows if row.name in found]
    shown = [task for task in TASKS if any(line["task"] == task for line in lines)]
    return {
        "schema": 1, "benchmark": "restore", "title": "Posteriors on tiny-sd: what they restore, and what it costs",
        "notes": list(NOTES), "command": command, "machine": machine(busy=False), "versions": versions(),
        "gates": list(gates), "left_out": left + [f"{name}: not tuned" for name in untuned], "other_code": other,
        "operators": {task: told(TASKS[task].operator) for task in shown},
        "goals": _goals(lines), "bounds": [line for task in shown for line in _bounds(backbone, task)], "rows": lines,
        "memory": [{"method": TITLES[kind], "peaks": p} for kind in MAIN if (p := peaks(folder, kind)) is not None],
        "tuning": [_tuned(folder, settings, task, kind) for kind in (*MAIN, *SWAPPED) for task in TASKS
                   if any(t.psnr is not None for t in tried(folder, task, kind))],
    }  # fmt: skip


def _line(row: Row, m: Measured, reference: Measured | None) -> dict[str, Any]:
    """The numbers of one row."""
    line: dict[str, Any] = {
        "row": row.name, "label": row.label, "task": row.task, "kind": row.kind, "budget": row.budget,
        "method": described(row.method, GRID[row.kind][0]), "steps": row.method.steps, "pictures": len(m.psnr),
        "papers_count": papers_count(row.method), "cost": dict(zip(PARTS, m.cost.mean(0).tolist(), strict=True)),
        "seconds_a_step": float(m.cpu.mean()) * CHUNK / row.method.steps,
        "failed": sorted({text for text in m.failed.tolist() if text}),
        **_metrics(m._asdict()), "per_picture": {name: getattr(m, name).tolist() for name in (*METRICS, "accepted")},
    }  # fmt: skip
    if reference is not None and row.name != f"{row.task}-stsl-1x":
        n = min(len(m.psnr), len(reference.psnr))
        less = {name: getattr(m, name)[:n] - getattr(reference, name)[:n] for name in METRICS}
        line["differences"] = {name: mean_interval(values) for name, values in less.items()}
        line["differences"]["accepted"] = Paired.of(m.accepted[:n], reference.accepted[:n]).difference
        line["compared"] = n
    return line


def _metrics(of: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: mean_interval(of[name]) for name in METRICS}, "right": int(of["accepted"].sum())}


def _bounds(backbone: Backbone, task: str) -> list[dict[str, Any]]:
    """What the autoencoder makes of the true pictures, and what there is before any method."""
    n = COUNTS["test"]
    y = measurement(TASKS[task], "test", 0, n)

    def line(label: str, x: Tensor) -> dict[str, Any]:
        return {"label": label, "task": task, "pictures": n, **_metrics(judged(x, "test", 0, y))}

    with torch.no_grad():
        own = backbone.decode(backbone.encode_image(truth("test", 0, n)))
    return [line("D(E(x)), the autoencoder's own", own), line("first guess", y.guess().clamp(0.0, 1.0))]


def _goals(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """STSL against PSLD at four times its forwards: better where the whole interval of PSLD's difference is below 0.
    A row that diverged decides nothing."""
    found = []
    for line in lines:
        if line["kind"] == "psld" and line["budget"] == 4 and "differences" in line and not line["failed"]:
            mean, low, high = line["differences"]["psnr"]
            verdict = "STSL is better" if high < 0 else "PSLD is better" if low > 0 else "no difference shown"
            found.append({"task": line["task"], "label": line["label"], "difference": (mean, low, high),
                          "pictures": line["compared"], "right": line["differences"]["accepted"],
                          "verdict": verdict})  # fmt: skip
    return found


def _tuned(folder: Path, settings: Settings, task: str, kind: str) -> dict[str, Any]:
    setting = settings.get(task, {}).get(kind)
    runs = [t._asdict() for t in tried(folder, task, kind)]
    for run in runs:
        run["psnr"] = run["psnr"] if run["psnr"] is not None and math.isfinite(run["psnr"]) else None
    edge = [] if setting is None else at_edge(kind, setting)
    return {"task": task, "method": TITLES[kind], "chosen": setting, "at_edge": edge, "runs": runs}


def described(method: Posterior, chosen: Collection[str]) -> str:
    """What a reader would type: the steps, the fields that were chosen, and those that are not at their defaults."""
    shown = {"steps", *chosen}
    given = [f for f in fields(method) if f.name in shown or getattr(method, f.name) != f.default]
    return f"{type(method).__name__}({', '.join(f'{f.name}={getattr(method, f.name)!r}' for f in given)})"
