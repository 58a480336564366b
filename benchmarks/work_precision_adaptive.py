"""Adaptive solvers in `work_precision`: they take a tolerance, not a number of steps, and have their own table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import FewstepError
from ..samplers import ADAPTIVE, solve
from .work_precision_problems import Problem

TOLERANCES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
ATOL = 0.0078 / 0.05  # atol over rtol, as in the paper's defaults
IMAGES = 32  # every image has its own steps, and is evaluated alone


def adaptive_rows(
    problem: Problem, reference: Tensor, mean_error: Callable[[Tensor, Tensor], float]
) -> list[dict[str, Any]]:
    """Per solver and rtol: mean evaluations an image and branch, rejected steps among them, and the mean error."""
    network, x, _ = problem.batches()[0]
    x = x[:IMAGES]
    found = []
    for name, build in ADAPTIVE.items():
        for rtol in TOLERANCES:
            solver = replace(build(), rtol=rtol, atol=ATOL * rtol)
            try:
                result: Any = solve(solver, network, x, guidance=problem.guidance)
            except FewstepError as error:
                found.append({"method": name, "rtol": rtol, "failed": str(error)})
                continue
            ticks = result.report.ticks
            error = mean_error(result.x, reference[: len(x)])
            found.append({"method": name, "rtol": rtol, "evaluations": sum(ticks) / len(ticks), "error": error})
    return found


def adaptive_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The Markdown table: evaluations and error per tolerance."""
    if not rows:
        return []
    lines = [
        f"Adaptive solvers, first {IMAGES} images: mean evaluations, rejected steps included, and error, by rtol:",
        "",
    ]
    lines += ["| method | " + " | ".join(f"{t:g}" for t in TOLERANCES) + " |", "|---|" + "---|" * len(TOLERANCES)]
    for name in dict.fromkeys(row["method"] for row in rows):
        of = {row["rtol"]: row for row in rows if row["method"] == name}
        cells = [
            "failed" if "failed" in of[t] else f"{of[t]['evaluations']:.1f}: {of[t]['error']:.3g}" for t in TOLERANCES
        ]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return [*lines, ""]
