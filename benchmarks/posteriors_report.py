"""The results of `posteriors` as numbers, and as the Markdown of benchmarks/results/posteriors.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .posteriors_ablation import SHOWN
from .posteriors_methods import Row

METRICS = ("sw1", "sw2", "tv", "mean", "cov", "variance", "chi2", "cover", "w2")
# Student's quantile of 97.5 % by degrees of freedom.
T975 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip


class Estimate(NamedTuple):
    """A mean over seeds and the half width of its 95 % interval; None where there is one seed."""

    mean: float
    half: float | None


def estimate(values: Sequence[float]) -> Estimate:
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Estimate(mean, None)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return Estimate(mean, T975[min(n, len(T975)) - 1] * spread / math.sqrt(n))


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
    machine, versions = report["machine"], report["versions"]
    lines = [f"# {report['title']}", "", f"`{report['command']}`", "", *(f"{note}\n" for note in report["notes"])]
    lines += [f"Machine: {machine['processor']}, {machine['cores']} cores, torch threads {machine['torch_threads']}. "
              f"Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.", ""]  # fmt: skip
    lines += ["Gates passed before any number: " + "; ".join(report["gates"]) + ".", ""]
    if report["left"]:
        lines += [f"Left out for lack of time: {report['left']} of the runs that were asked for.", ""]
    lines += ["## One Gaussian, without sampling error", "", f"{report['affine_note']}\n"]
    lines += _affine(report["affine"])
    for problem in dict.fromkeys(line["problem"] for line in report["rows"]):
        mine = [line for line in report["rows"] if line["problem"] == problem]
        lines += ["", f"## {problem}", "", *_rows(mine)]
    lines += ["", f"## STSL's parts, on {report['ablation_problem']}", "", f"{report['ablation_note']}\n"]
    for table in dict.fromkeys(line["table"] for line in report["ablation"]):
        lines += ["", f"### {table}", "", *_ablation([x for x in report["ablation"] if x["table"] == table])]
    return "\n".join(lines) + "\n"


def _affine(found: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("prior", "steps", "sampler", "W2 to the posterior", "W2 to DPS's own limit")
    return _table(head, [
        (f["prior"], str(f["steps"]), f["sampler"], f"{f['exact']:.4f}", f"{f['dps']:.4f}") for f in found
    ])  # fmt: skip


def _rows(mine: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = [key for key in METRICS if any(key in line for line in mine)]
    head = ("method", "steps", "NFE", "backward", "seeds", *keys)
    body = []
    for line in mine:
        cost = [f"{line[key][0]:.0f}" if key in line else "-" for key in ("forward", "backward")]
        seeds = f"{line['seeds']}" + (f", {line['diverged']} diverged" if line["diverged"] else "")
        body.append((line["label"], str(line["steps"] or "-"), *cost, seeds, *(shown(line.get(key)) for key in keys)))
    return _table(head, body)


def _ablation(mine: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("change", "seeds", *(title for key in SHOWN for title in (key, "difference")))
    return _table(head, [
        (line["change"], str(line["seeds"]),
         *(cell for key in SHOWN for cell in (f"{line[key][0]:.3f}", shown(line[f"{key} difference"], sign=True))))
        for line in mine
    ])  # fmt: skip


def shown(value: Sequence[float | None] | None, sign: bool = False) -> str:
    if value is None or value[0] is None:
        return "-"
    mean, half = float(value[0]), value[1]
    text = (f"{mean:+.3f}" if sign else f"{mean:.2f}") if abs(mean) < 1000 else f"{mean:.1e}"
    return text if half is None else f"{text} ± " + (f"{half:.3f}" if sign else f"{half:.2f}")


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *(_line(cells) for cells in body)]


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"
