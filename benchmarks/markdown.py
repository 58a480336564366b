"""A benchmark's report as Markdown: one line per piece of work, implementations side by side or, if many, below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

SIDE_BY_SIDE = 2  # implementations; more are a line each


def opening(report: Mapping[str, Any], before: str) -> list[str]:
    """How every page begins: title, command, notes, what was left out, machine, versions, gates."""
    machine, versions = report["machine"], report["versions"]
    hardware = [machine["processor"], f"{machine['cores']} cores", f"torch threads {machine['torch_threads']}"]
    hardware += [machine["gpu"]] if machine["gpu"] else []
    hardware += [f"load per core before the run {machine['load']}"] if machine["load"] is not None else []
    lines = [f"# {report['title']}", "", f"`{report['command']}`", ""]
    lines += [*(f"{note}\n" for note in report["notes"])]
    if report.get("skipped"):
        lines += ["Skipped:", "", *(f"- {reason}" for reason in report["skipped"]), ""]
    lines += [f"Machine: {', '.join(hardware)}. Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.", ""]
    return [*lines, f"Gates passed before {before}: " + "; ".join(report["gates"]) + ".", ""]


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in (head, ["---"] * len(head), *body))
    return ["| " + " | ".join(cells) + " |" for cells in escaped]


def markdown(report: Mapping[str, Any]) -> str:
    """The whole page of a benchmark that times, ending in a newline."""
    lines = opening(report, "anything was timed")
    lines += ["Times are medians of interleaved repeats with their [20 %, 80 %] range; a ratio is the median over "
              f"neighbouring repeats of {report['peer']}'s time divided by ours.", ""]  # fmt: skip
    for title in dict.fromkeys(row["table"] for row in report["rows"]):
        found = [row for row in report["rows"] if row["table"] == title]
        many = len({row["implementation"] for row in found}) > SIDE_BY_SIDE
        others = {row["peer"] for row in found if "peer" in row} - {report["peer"]}
        lines += [f"## {title}", "", *(f"Ratios here are to {other}.\n" for other in others)]
        lines += [*(_listed(found) if many else _beside(found)), ""]
    return "\n".join(lines)


def _listed(rows: Sequence[Row]) -> list[str]:
    """One line per piece of work and implementation."""
    facts = list(dict.fromkeys(name for row in rows for name in row["facts"]))
    titles = [*rows[0]["case"], "implementation", rows[0]["unit"], "ratio", *facts]
    body = []
    for key in dict.fromkeys(tuple(row["case"].items()) for row in rows):
        for row in (row for row in rows if tuple(row["case"].items()) == key):
            cells = [*row["case"].values(), row["implementation"], _range(row), _range(row["speedup"])]
            body.append([*cells, *(_number(row["facts"].get(fact)) for fact in facts)])
    return table(titles, body)


def _beside(rows: Sequence[Row]) -> list[str]:
    """One line per piece of work, its implementations in columns."""
    implementations = list(dict.fromkeys(row["implementation"] for row in rows))
    facts = list(dict.fromkeys(name for row in rows for name in row["facts"]))
    compared = [n for n in implementations if any(r["speedup"] and r["implementation"] == n for r in rows)]
    unit = rows[0]["unit"]
    titles = [*rows[0]["case"], *(f"{name}, {unit}" for name in implementations)]
    titles += [f"ratio {name}" if len(compared) > 1 else "ratio" for name in compared]
    titles += [f"{fact}, {name}" for fact in facts for name in implementations]
    body = []
    for key in dict.fromkeys(tuple(row["case"].items()) for row in rows):
        of = {row["implementation"]: row for row in rows if tuple(row["case"].items()) == key}
        cells = [value for _, value in key]
        cells += [_range(of.get(name)) for name in implementations]
        cells += [_range(of[name]["speedup"] if name in of else None) for name in compared]
        cells += [_number(of[n]["facts"].get(fact)) if n in of else "" for fact in facts for n in implementations]
        body.append(cells)
    return table(titles, body)


def _range(stats: Row | None) -> str:
    return f"{_number(stats['median'])} [{_number(stats['p20'])}, {_number(stats['p80'])}]" if stats else ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
