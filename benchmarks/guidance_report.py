"""The results of `guidance` as numbers, and as the Markdown of benchmarks/results/guidance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .guidance_pairs import Measured, Row, described
from .guidance_statistics import neighbours, paired, relative_errors
from .intervals import Interval95, mean_interval
from .markdown import opening, table

BASELINES = ("first p %", "frozen delta")
MARGIN = -0.02  # the accuracy difference must be above it, with its whole interval


class Goal(NamedTuple):
    """saving: part of the reference's NFE, or the name of the row whose saving must be reached."""

    row: str
    saving: float | str


GOALS = (Goal("ag", 0.25), Goal("linear-ag", 0.35), Goal("searched", "ag"))

EQUAL = (
    "Between two rows of a baseline lies a sampler that gives a share of the pairs the one and the others the other: "
    "it has exactly the NFE of the row. Its mean latent error, and the row's less it (negative: the row is nearer to "
    "CFG) with the 95 % interval of paired differences, over the pairs that all have; the same for accuracy."
)

Found = Mapping[str, Measured]  # row name -> what was measured


def summaries(rows: Sequence[Row], found: Found) -> list[dict[str, Any]]:
    """One line per row that has been measured, and whose reference has."""
    errors = {row.name: relative_errors(found[row.name], found[row.reference]) for row in rows
              if row.name in found and row.reference in found}  # fmt: skip
    costs = {name: mean_interval(of.nfe) for name, of in found.items()}
    return [summary(row, rows, found, errors, costs) for row in rows if row.name in errors]


def summary(
    row: Row, rows: Sequence[Row], found: Found, errors: Mapping[str, NDArray[np.float64]],
    costs: Mapping[str, Interval95],
) -> dict[str, Any]:  # fmt: skip
    """The numbers of one row."""
    mine, reference = found[row.name], found[row.reference]
    n = min(len(mine.nfe), len(reference.nfe))
    difference = paired(mine, reference)
    line: dict[str, Any] = {
        "row": row.name, "label": row.label, "family": row.family, "policy": described(row.policy),
        "solver": row.solver, "steps": row.steps, "scale": row.scale, "reference": row.reference, "pairs": n,
        "nfe": costs[row.name], "saved": 1.0 - float(mine.nfe[:n].mean() / reference.nfe[:n].mean()),
        "accuracy": mean_interval(mine.accepted[:n]).mean, "lost": difference.lost, "gained": difference.gained,
        "difference": difference.difference, "error": mean_interval(errors[row.name]),
        "median_error": float(np.median(errors[row.name])),
    }  # fmt: skip
    for family in BASELINES:
        if row.family != family and row.family not in ("CFG", "no guidance"):
            line[family] = against(row, family, rows, found, errors, costs)
    return line


def against(
    row: Row, family: str, rows: Sequence[Row], found: Found, errors: Mapping[str, NDArray[np.float64]],
    costs: Mapping[str, Interval95],
) -> dict[str, Any] | None:  # fmt: skip
    """The row beside a baseline of its own NFE: paired differences of latent error and accuracy, the row's less its."""
    same = [r.name for r in rows if r.family == family and r.reference == row.reference and r.name in errors]
    between = neighbours(costs[row.name].mean, {name: costs[name].mean for name in same})
    if between is None:
        return None
    n = min(len(errors[row.name]), len(errors[between.lower]), len(errors[between.upper]))
    accepted = {name: found[name].accepted.astype(np.float64) for name in (row.name, between.lower, between.upper)}
    other = between.at(dict(errors), n)
    return {
        "lower": between.lower, "upper": between.upper, "share": between.share, "pairs": n,
        "error": float(other.mean()), "error_difference": mean_interval(errors[row.name][:n] - other),
        "accuracy_difference": mean_interval(accepted[row.name][:n] - between.at(accepted, n)),
    }  # fmt: skip


def verdicts(lines: Sequence[Mapping[str, Any]], chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each goal, with the row that was chosen for it on calibration captions, and whether it is reached."""
    by_name = {line["row"]: line for line in lines}
    found = []
    for goal in GOALS:
        line = by_name.get(chosen.get(goal.row, ""))
        wanted = by_name.get(chosen.get("ag", "")) if isinstance(goal.saving, str) else None
        if line is None or (isinstance(goal.saving, str) and wanted is None):
            continue
        least = wanted["saved"] if wanted is not None else float(goal.saving)
        reached = line["saved"] >= least - 1e-9 and line["difference"][1] > MARGIN
        found.append({"goal": goal.row, "row": line["row"], "label": line["label"], "least_saving": least,
                      "saved": line["saved"], "difference": line["difference"], "reached": reached})  # fmt: skip
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = [*opening(report, "any number"), "## Goals", ""]
    lines += table(("goal", "row", "NFE saved", "wanted", "accuracy difference", ""), [
        (v["goal"], v["label"], percent(v["saved"]), f"{100 * v['least_saving']:.1f} %", points(v["difference"]),
         "reached" if v["reached"] else "missed") for v in report["goals"]
    ])  # fmt: skip
    for block in report["blocks"]:
        lines += ["", f"## {block['title']}", "", *(f"{note}\n" for note in block["notes"])]
        lines += rows_table(block["rows"])
        compared = [line for line in block["rows"] if any(line.get(family) for family in BASELINES)]
        if compared:
            title = block["title"][0].lower() + block["title"][1:]
            lines += ["", f"### At equal NFE: {title}", "", f"{EQUAL}\n", *equal_table(compared)]
    for name, note, head, body in report.get("tables", ()):
        lines += ["", f"## {name}", "", f"{note}\n", *table(head, body)]
    return "\n".join(lines) + "\n"


def rows_table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("row", "policy", "pairs", "NFE", "saved", "accuracy", "difference, points", "lost, gained", "latent error")
    return table(head, [
        (line["label"], f"`{policy_text(line)}`", str(line["pairs"]), f"{line['nfe'][0]:.2f}", percent(line["saved"]),
         f"{100 * line['accuracy']:.1f} %", points(line["difference"]), f"{line['lost']}, {line['gained']}",
         number(line["error"])) for line in lines
    ])  # fmt: skip


def equal_table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["row", "NFE"]
    for family in BASELINES:
        head += [f"{family}: error (pairs)", "row less it", "accuracy, points"]
    body = []
    for line in lines:
        cells = [line["label"], f"{line['nfe'][0]:.2f}"]
        for family in BASELINES:
            other = line.get(family)
            cells += compared_cells(other) if other else ["", "", ""]
        body.append(cells)
    return table(head, body)


def compared_cells(other: Mapping[str, Any]) -> list[str]:
    error = f"{other['error']:.4f} ({other['pairs']})"
    return [error, number(other["error_difference"], True), points(other["accuracy_difference"])]


def policy_text(line: Mapping[str, Any]) -> str:
    return line["policy"] if len(line["policy"]) <= 60 else line["policy"].split("(")[0] + "(...)"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def points(interval: Sequence[float]) -> str:
    """A difference of accuracies, in points of a hundred."""
    mean, low, high = (100 * v for v in interval)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def number(interval: Sequence[float], signed: bool = False) -> str:
    mean, low, high = interval
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]" if signed else f"{mean:.4f} [{low:.4f}, {high:.4f}]"
