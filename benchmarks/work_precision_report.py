"""Tables and rankings of `work_precision`: the best grid of every method, and one grid for all budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .overhead_peers import PEER
from .work_precision_adaptive import adaptive_lines
from .work_precision_rows import Row

DECIDING = (8, 10, 12)  # evaluations that a default is chosen for
YARDSTICK = (PEER, "DPM-Solver++ 2M")  # what ratios are formed with, at its best grid for every budget
SHOWN = 12  # lines of a ranking
LATENT = "latent error"


def best(rows: Iterable[Row]) -> dict[tuple[str, str, int], Row]:
    """(implementation, method, budget) -> its row on the grid with the smallest error there, or else the best score."""
    found: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        key = (row.implementation, row.method, row.budget)
        if key not in found or worth(row) < worth(found[key]):
            found[key] = row
    return found


def worth(row: Row) -> float:
    """Smaller is better. A run that blew up has no number and comes last."""
    if row.error is not None:
        return row.error if math.isfinite(row.error) else math.inf
    return math.inf if row.score is None else -row.score if row.metric == "accuracy" else row.score


def rankings(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Per problem: solver and grid pairs by the geometric mean of their errors at 8, 10 and 12 evaluations.

    ratio: to diffusers' 2M on the grid that is best for it at each budget; below 1 is better than that.
    interval: of the ratio, 95 % over images, where the errors of single images were kept.
    fixed: False for lines that took their best grid at each budget, which nobody can choose beforehand.
    """
    found = {}
    for problem in dict.fromkeys(row.problem for row in rows):
        mine = [r for r in rows if r.problem == problem and r.error is not None and r.budget in DECIDING]
        chosen = list(best(mine).values())
        pairs = dict.fromkeys((r.implementation, r.method, r.grid) for r in mine)
        groups = [(pair, True, [r for r in mine if (r.implementation, r.method, r.grid) == pair]) for pair in pairs]
        for who in dict.fromkeys((r.implementation, r.method) for r in chosen):
            same = [r for r in chosen if (r.implementation, r.method) == who]
            groups.append(((*who, "best of all"), False, same))
        peer = {r.budget: r for r in chosen if (r.implementation, r.method) == YARDSTICK}
        lines = [_line(*group, peer) for group in groups]
        found[problem] = sorted((line for line in lines if line is not None), key=lambda line: line["error"])
    return found


def _line(
    pair: tuple[str, str, str], fixed: bool, rows: Sequence[Row], peer: Mapping[int, Row]
) -> dict[str, Any] | None:
    """None where a budget is missing or a run blew up."""
    of = {r.budget: r for r in rows}
    errors = [float(of[b].error or math.inf) for b in DECIDING if b in of]
    if len(errors) < len(DECIDING) or not all(math.isfinite(e) for e in errors):
        return None
    ratio = [e / float(peer[b].error or math.nan) for b, e in zip(DECIDING, errors, strict=True) if b in peer]
    complete = len(ratio) == len(DECIDING)
    return {
        "implementation": pair[0],
        "method": pair[1],
        "grid": pair[2],
        "fixed": fixed,
        "error": geometric_mean(errors),
        "errors": errors,
        "ratio": geometric_mean(ratio) if complete else None,
        "interval": paired_interval(of, peer) if complete else None,
    }


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def paired_interval(of: Mapping[int, Row], peer: Mapping[int, Row], draws: int = 1000) -> tuple[float, float] | None:
    """95 % interval of the ratio of geometric means over budgets of mean errors: the same images are drawn for both,
    with replacement (Efron's percentile bootstrap, fixed seed)."""
    mine, theirs = (np.array([rows[b].errors for b in DECIDING]) for rows in (of, peer))
    if mine.shape != theirs.shape or mine.ndim != 2 or mine.shape[1] < 2:
        return None
    picks = np.random.default_rng(0).integers(0, mine.shape[1], (draws, mine.shape[1]))
    logs = np.log(mine[:, picks].mean(-1)) - np.log(theirs[:, picks].mean(-1))
    low, high = np.quantile(np.exp(logs.mean(0)), (0.025, 0.975))
    return float(low), float(high)


def overall(ranked: Mapping[str, Sequence[dict[str, Any]]], problems: Sequence[str]) -> list[dict[str, Any]]:
    """Our fixed pairs by the geometric mean of their ratios over several problems; only those ranked in all."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for problem in problems:
        for line in ranked.get(problem, ()):
            if line["fixed"] and line["ratio"] and line["implementation"] != PEER:
                ratios.setdefault((line["method"], line["grid"]), []).append(line["ratio"])
    whole = {pair: values for pair, values in ratios.items() if len(values) == len(problems)}
    lines = [{"method": m, "grid": g, "ratio": geometric_mean(v), "ratios": v} for (m, g), v in whole.items()]
    return sorted(lines, key=lambda line: line["ratio"])


# --- Markdown -------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Error over network evaluations

Error: mean over images of |x - x_ref| / |x_ref| in latent space, where x_ref is a converged run from the same noise.
Columns: evaluations of the network an image and branch that a method may use. It takes as many steps as fit; where it
uses fewer, the number it uses stands behind in brackets. A cell is the grid that is best for this method and this
number of evaluations, named behind the error; the best of a column is bold. diffusers' schedulers run in float32
through their own `set_timesteps` and `step`, and the network is told their own (rounded) timestep, as in a pipeline.
diffusers' DEIS ends at its smallest sigma, not at 0. `NAME 0.999` is a grid whose first time is 0.999 in place of 1, as
in diffusers' flow solvers other than Euler.
"""


def markdown(report: Mapping[str, Any], rows: Sequence[Row], ranked: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """The page: per problem the table of errors, that of the methods that draw noise, and the ranking."""
    machine, versions = report["machine"], report["versions"]
    lines = [INTRODUCTION]
    lines += [f"Machine: {machine['processor']}, {machine['cores']} cores. "
              f"Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.", ""]  # fmt: skip
    lines += ["Gates passed before any number, per problem: " + "; ".join(report["gates"]) + ".", ""]
    lines += _overall_lines(report, ranked)
    for fact in report["problems"]:
        mine = [row for row in rows if row.problem == fact["name"]]
        lines += _section(fact, mine, ranked.get(fact["name"], ()))
    return "\n".join(lines)


def _section(fact: Mapping[str, Any], rows: Sequence[Row], ranked: Sequence[dict[str, Any]]) -> list[str]:
    reference = fact["reference"]
    metric = "accuracy" if "accuracy" in reference else "distance"
    about = f"Distance of the reference's images from the distribution: {reference.get('distance', 0.0):.3f}."
    if metric == "accuracy":
        about = f"Pictures of the reference that the judge accepts: {100 * reference['accuracy']:.0f} %."
    lines = [f"## {fact['name']}", "", f"{fact['title']}. `{fact['command']}`", ""]
    lines += [f"Reference: {reference['steps']} steps; with half as many its error is "
              f"{reference['half_steps_error']:.1e}. {about}", ""]  # fmt: skip
    if fact.get("race"):
        lines += [f"Grids whose error with 10 evaluations is above {fact['race']:g} times that of the method's best "
                  "were not run with other numbers of evaluations.", ""]  # fmt: skip
    lines += [f"Failed: {text}\n" for text in fact["failed"]]
    if fact["left_out"]:
        lines += [f"{fact['left_out']} rows did not fit into the time and were left out.", ""]
    ode, sde = [r for r in rows if r.error is not None], [r for r in rows if r.error is None]
    lines += [*_table(ode, LATENT), *_ranking_lines(ranked)]
    if metric == "accuracy":
        lines += ["Share of pictures that show what the prompt says, on the grids above:", "", *_table(ode, "accuracy")]
    if sde:
        what = "accepted pictures" if metric == "accuracy" else "distance of each coordinate's marginal (Wasserstein-1)"
        lines += [f"Methods that draw noise follow no trajectory; their {what}:", "", *_table(sde, metric)]
    return [*lines, *adaptive_lines(fact.get("adaptive", ()))]


def _table(rows: Sequence[Row], what: str) -> list[str]:
    """One line a method, one column a budget, each on its best grid; the best of a column is bold."""
    if not rows:
        return []
    chosen, budgets = best(rows), sorted({row.budget for row in rows})
    lines = ["| method | " + " | ".join(map(str, budgets)) + " |", "|---|" + "---|" * len(budgets)]
    tops = {b: min((_value(r, what) for r in chosen.values() if r.budget == b), default=0.0) for b in budgets}
    for who in dict.fromkeys((row.implementation, row.method) for row in rows):
        cells = []
        for b in budgets:
            row = chosen.get((*who, b))
            cells.append("" if row is None else _cell(row, what, _value(row, what) <= tops[b]))
        name = f"{who[0]} {who[1]}" if who[0] == PEER else f"`{who[1]}`"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _value(row: Row, what: str) -> float:
    """The number of a cell, smaller is better."""
    if what == LATENT:
        value = float(row.error) if row.error is not None else math.inf
        return value if math.isfinite(value) else math.inf
    return math.inf if row.score is None else -row.score if what == "accuracy" else row.score


def _cell(row: Row, what: str, is_best: bool) -> str:
    value = abs(_value(row, what))
    finite = "diverged" if what == LATENT else ""
    if math.isfinite(value):
        finite = f"{100 * value:.0f} %" if what == "accuracy" else f"{value:.3g}"
    used = f" ({row.ticks})" if row.ticks != row.budget else ""
    return f"{f'**{finite}**' if is_best else finite} {row.grid}{used}"


def _ranking_lines(ranked: Sequence[dict[str, Any]]) -> list[str]:
    if not ranked:
        return []
    wanted = [line for line in ranked if line["fixed"] and line["implementation"] != PEER][:SHOWN]
    wanted += [line for line in ranked if line["implementation"] == PEER and not line["fixed"]]
    wanted += [w for w in ranked if (w["implementation"], w["method"], w["fixed"]) == (*YARDSTICK, True)][:2]
    budgets = ", ".join(map(str, DECIDING))
    lines = [
        f"One grid for all of {budgets} evaluations: the three errors, their geometric mean, and its ratio to "
        "diffusers' 2M on its best grid at each number (below 1 is better; [95 % interval over images]):",
        "",
        "| solver | grid | " + " | ".join(map(str, DECIDING)) + " | mean | ratio |",
        "|---|---|" + "---|" * (len(DECIDING) + 2),
    ]
    for line in sorted(wanted, key=lambda line: line["error"]):
        name = f"{PEER} {line['method']}" if line["implementation"] == PEER else f"`{line['method']}`"
        ratio = f"{line['ratio']:.2f}" if line["ratio"] else ""
        ratio += f" [{line['interval'][0]:.2f}, {line['interval'][1]:.2f}]" if line["interval"] else ""
        errors = " | ".join(f"{e:.3g}" for e in line["errors"])
        lines.append(f"| {name} | {line['grid']} | {errors} | {line['error']:.3g} | {ratio} |")
    return [*lines, ""]


def _overall_lines(report: Mapping[str, Any], ranked: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    names = [fact["name"] for fact in report["problems"]]
    groups = {"Noise prediction": [n for n in names if "flow" not in n], "Flow": [n for n in names if "flow" in n]}
    lines: list[str] = []
    for title, problems in groups.items():
        found = overall(ranked, problems) if problems else []
        if found:
            lines += [f"## {title}: one solver and grid for {', '.join(map(str, DECIDING))} evaluations", ""]
            lines += ["Ratio of its error to that of diffusers' 2M on its best grid; mean: geometric.", ""]
            lines += ["| solver | grid | " + " | ".join(problems) + " | mean |"]
            lines += ["|---|---|" + "---|" * (len(problems) + 1)]
        for line in found[:SHOWN]:
            cells = " | ".join(f"{r:.2f}" for r in line["ratios"])
            lines.append(f"| `{line['method']}` | {line['grid']} | {cells} | {line['ratio']:.2f} |")
        lines += [""] if found else []
    return lines
