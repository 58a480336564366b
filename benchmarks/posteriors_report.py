"""The results of `posteriors` as numbers, and as the Markdown of benchmarks/results/posteriors.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .intervals import mean_interval
from .markdown import opening, table
from .posteriors_ablation import SHOWN
from .posteriors_methods import Row

METRICS = ("sw1", "sw2", "tv", "mean", "cov", "variance", "chi2", "cover", "w2")


class Estimate(NamedTuple):
    """A mean over seeds and the half width of its 95 % interval; None where there is one seed.       n: how many seeds
    have the number: not those where a method left every mode that it is about, or diverged."""

    mean: float
    half: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    mean, _, high = mean_interval(values)
    return Estimate(mean, high - mean if len(values) > 1 else None, len(values))


Found = Mapping[tuple[str, str, int], Mapping[str, Any]]


def summaries(problems: Sequence[str], rows: Sequence[Row], found: Found, seeds: int) -> list[dict[str, Any]]:
    """One line per problem and row that has been measured.       found: (problem, row, seed) -> metrics."""
    lines = []
    for problem in problems:
        for row in rows:
            of = [found[problem, row.name, s] for s in range(seeds) if (problem, row.name, s) in found]
            if not of:
                continue
            sound = [m for m in of if "diverged" not in m]
            line: dict[str, Any] = {"problem": problem, "row": row.name, "label": row.label, "steps": row.steps,
                                    "seeds": len(of), "diverged": len(of) - len(sound)}  # fmt: skip
            for key in (*METRICS, "forward", "backward", "seconds"):
                values = [m[key] for m in sound if m.get(key) is not None and not math.isnan(m[key])]
                if values:
                    line[key] = estimate(values)
            lines.append(line)
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = opening(report, "any number")
    if report["left"]:
        runs = ", ".join(f"{count} of {name}" for name, count in report["left"].items())
        lines += [f"Left out for lack of time: {sum(report['left'].values())} of the runs that were asked for "
                  f"({runs}; how many seeds there are is in every line).", ""]  # fmt: skip
    lines += ["## One Gaussian, without sampling error", "", f"{report['affine_note']}\n"]
    lines += _affine(report["affine"])
    for problem in dict.fromkeys(line["problem"] for line in report["rows"]):
        mine = [line for line in report["rows"] if line["problem"] == problem]
        lines += ["", f"## {problem}", "", *_rows(mine)]
    lines += ["", f"## STSL's parts, on {report['ablation_problem']}", "", f"{report['ablation_note']}\n"]
    for title in dict.fromkeys(line["table"] for line in report["ablation"]):
        lines += ["", f"### {title}", "", *_ablation([x for x in report["ablation"] if x["table"] == title])]
    return "\n".join(lines) + "\n"


def _affine(found: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("prior", "steps", "sampler", "W2 to the posterior", "W2 to DPS's own limit")
    return table(head, [
        (f["prior"], str(f["steps"]), f["sampler"], f"{f['exact']:.4f}", f"{f['dps']:.4f}") for f in found
    ])  # fmt: skip


def _rows(mine: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = [key for key in METRICS if any(key in line for line in mine)]
    head = ("method", "steps", "NFE", "backward", "seeds", *keys)
    body = []
    for line in mine:
        cost = [f"{line[key][0]:.0f}" if key in line else "-" for key in ("forward", "backward")]
        seeds = f"{line['seeds']}" + (f", {line['diverged']} diverged" if line["diverged"] else "")
        cells = [_of_seeds(line.get(key), line["seeds"]) for key in keys]
        body.append((line["label"], str(line["steps"] or "-"), *cost, seeds, *cells))
    return table(head, body)


def _of_seeds(value: Estimate | None, seeds: int) -> str:
    fewer = value is not None and value[2] < seeds
    return f"{shown(value)} (of {value[2]})" if fewer and value is not None else shown(value)


def _ablation(mine: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("change", "seeds", *(title for key in SHOWN for title in (key, "difference")))
    return table(head, [
        (line["change"], f"{line['seeds']}" + (f", {line['diverged']} diverged" if line["diverged"] else ""),
         *(cell for key in SHOWN for cell in (f"{line[key][0]:.3f}", shown(line[f"{key} difference"], sign=True))))
        for line in mine
    ])  # fmt: skip


def shown(value: Sequence[float | None] | None, sign: bool = False) -> str:
    if value is None or value[0] is None:
        return "-"
    mean, half = float(value[0]), value[1]
    text = (f"{mean:+.3f}" if sign else f"{mean:.2f}") if abs(mean) < 1000 else f"{mean:.1e}"
    return text if half is None else f"{text} ± " + (f"{half:.3f}" if sign else f"{half:.2f}")
