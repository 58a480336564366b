"""The page of benchmarks/results/restore.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .guidance_report import points
from .markdown import opening, table
from .restore_memory import MIB
from .restore_problems import SIGMA_Y, TASKS
from .restore_rows import CHUNK, MAIN, written

Line = Mapping[str, Any]

COST_NOTE = (
    "For each picture, the first encoding and the last decoding included. Papers' count: STSL one an inner iteration, "
    f"P2L two a step, the others one. Seconds a step: processor time for {CHUNK} pictures at once."
)
MEMORY_NOTE = (
    "Bytes of all tensors that live at once at the peak of a run with one picture, without the model's weights: it "
    "must not grow with the steps."
)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = opening(report, "any number")
    if report["left_out"]:
        lines += ["Left out, for want of time:", "", *(f"- {name}" for name in report["left_out"]), ""]
    if report["other_code"]:
        lines += [
            "Measured with other code than this report was written with: " + ", ".join(report["other_code"]) + ".",
            "",
        ]
    lines += _goals(report["goals"])
    for task in TASKS:
        lines += _task(report, task)
    lines += [*_cost(report["rows"]), *_memory(report["memory"]), *_tuning(report["tuning"])]
    return "\n".join(lines).rstrip("\n") + "\n"


def _goals(goals: Sequence[Line]) -> list[str]:
    if not goals:
        return []
    head = ("task", "row", "its PSNR less STSL's, dB", "right less STSL's, points", "pictures", "")
    body = [(TASKS[g["task"]].title, g["label"], signed(g["difference"], 2), points(g["right"]), str(g["pictures"]),
             g["verdict"]) for g in goals]  # fmt: skip
    return ["## STSL at a quarter of PSLD's forwards", "", *table(head, body), ""]


def _task(report: Mapping[str, Any], task: str) -> list[str]:
    rows = [line for line in report["rows"] if line["task"] == task]
    if not rows:
        return []
    bounds = [line for line in report["bounds"] if line["task"] == task]
    main = [line for line in rows if line["budget"] and line["kind"] in MAIN]
    stsl = [line for line in main if line["kind"] == "stsl"]
    others = [line for line in rows if line not in main]
    title = TASKS[task].title
    command = f"`--operator {report['operators'][task]} --noise-std {SIGMA_Y:g}`"
    lines = [f"## {title[0].upper()}{title[1:]}", "", command, "", *_quality([*bounds, *main]), ""]
    if others:
        lines += [f"### {title[0].upper()}{title[1:]}: STSL taken apart", "", *_quality([*stsl, *others]), ""]
    return lines


def _quality(lines: Sequence[Line]) -> list[str]:
    head = ("row", "method", "forwards", "pictures", "PSNR", "SSIM", "right", "chi^2", "PSNR less STSL's",
            "SSIM less STSL's", "right less STSL's, points", "chi^2 less STSL's")  # fmt: skip
    body = []
    for line in lines:
        method = f"`{line['method']}`" if "method" in line else ""
        forwards = _count(line["cost"]["forward"]) if "cost" in line and not line["failed"] else ""
        cells = [line["label"], method, forwards, str(line["pictures"])]
        if line.get("failed"):
            cells += ["diverged: " + "; ".join(line["failed"]), *[""] * 7]
        else:
            cells += [f"{line['psnr'][0]:.2f}", f"{line['ssim'][0]:.3f}", f"{line['right']}", f"{line['chi2'][0]:.2f}"]
            cells += _differences(line.get("differences"))
        body.append(cells)
    return table(head, body)


def _differences(d: Mapping[str, Any] | None) -> list[str]:
    if d is None:
        return ["", "", "", ""]
    return [signed(d["psnr"], 2), signed(d["ssim"], 3), points(d["accepted"]), signed(d["chi2"], 2)]


def _cost(rows: Sequence[Line]) -> list[str]:
    """One line per label: the parts cost the same on every task."""
    first: dict[str, Line] = {}
    for line in rows:
        if not line["failed"]:
            first.setdefault(line["label"], line)
    head = ("row", "steps", "forward", "backward", "decoder forward", "decoder backward", "encoder forward",
            "encoder backward", "papers' count", "seconds a step")  # fmt: skip
    parts = ("forward", "backward", "decoder_forward", "decoder_backward", "encoder_forward", "encoder_backward")
    body = [(label, str(line["steps"]), *(_count(line["cost"][part]) for part in parts), str(line["papers_count"]),
             f"{line['seconds_a_step']:.2f}") for label, line in first.items()]  # fmt: skip
    return ["## Cost", "", f"{COST_NOTE}\n", *table(head, body), ""] if body else []


def _memory(rows: Sequence[Line]) -> list[str]:
    if not rows:
        return []
    steps = list(rows[0]["peaks"])
    body = [(line["method"], *(f"{line['peaks'][n] / MIB:.1f}" for n in steps)) for line in rows]
    head = ("method", *(f"{n} steps, MiB" for n in steps))
    return ["## Peak memory", "", f"{MEMORY_NOTE}\n", *table(head, body), ""]


def _tuning(found: Sequence[Line]) -> list[str]:
    if not found:
        return []
    lines = ["## Settings", "", "Mean PSNR, pictures that the judge calls right, and mean chi^2, of four scenes at 1x; "
             "the chosen setting is bold. At the edge: a better value may lie beyond what was tried.", ""]  # fmt: skip
    for entry in found:
        cells = []
        for run in entry["runs"]:
            result = "diverged" if run["failed"] else "not run" if run["psnr"] is None else _result(run)
            text = f"{written(run['setting'])}: {result}"
            cells.append(f"**{text}**" if run["setting"] == entry["chosen"] else text)
        edge = f" At the edge: {', '.join(entry['at_edge'])}." if entry["at_edge"] else ""
        lines.append(f"- {TASKS[entry['task']].title}, {entry['method']}: {'; '.join(cells)}.{edge}")
    return [*lines, ""]


def _result(run: Line) -> str:
    return f"{run['psnr']:.2f} dB, {run['right']} right, chi^2 {run['chi2']:.2f}"


def signed(interval: Sequence[float], digits: int) -> str:
    mean, low, high = interval
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _count(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
