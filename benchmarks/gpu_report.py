"""The results of gpu.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markdown import markdown, table


def page(report: Mapping[str, Any]) -> str:
    """The whole page: what ran, what failed, every check, what was left out, the benchmarks' tables."""
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items() if value is not None)
    lines = ["# On a device", "", f"`{report['command']}`", ""]
    lines += [f"Machine: {machine}. Versions: {', '.join(f'{k} {v}' for k, v in report['versions'].items())}.", ""]
    lines += table(("entry", "status", "seconds", "checks passed"), [_entry(entry) for entry in report["entries"]])
    lines += ["", *_problems(report), *_skipped(report), "## Checks", ""]
    checks = [_check(entry["name"], outcome) for entry in report["entries"] for outcome in entry["outcomes"]]
    lines += table(("entry", "check", "passed", "measured", "allowed", ""), checks)
    for entry in report["entries"]:
        if entry["report"]:
            tables = markdown(entry["report"]).splitlines()
            lines += ["", *(f"#{line}" if line.startswith("#") else line for line in tables)]
    return "\n".join(lines) + "\n"


def _entry(entry: Mapping[str, Any]) -> list[str]:
    passed = sum(outcome["passed"] for outcome in entry["outcomes"])
    checks = f"{passed} of {len(entry['outcomes'])}" if entry["outcomes"] else ""
    return [entry["name"], entry["status"], f"{entry['seconds']:.0f}", checks]


def _problems(report: Mapping[str, Any]) -> list[str]:
    found = [f"- {entry['name']}: {problem}" for entry in report["entries"] for problem in entry["errors"]]
    for entry in report["entries"]:
        found += [f"- {entry['name']}: {o['name']}: {o['note']}" for o in entry["outcomes"] if not o["passed"]]
    return ["Problems:", "", *found, ""] if found else []


def _skipped(report: Mapping[str, Any]) -> list[str]:
    found = [f"- {entry['name']}: {reason}" for entry in report["entries"] for reason in entry["skipped"]]
    return ["Skipped:", "", *found, ""] if found else []


def _check(name: str, outcome: Mapping[str, Any]) -> list[str]:
    numbers = ["" if outcome[key] is None else f"{outcome[key]:.2g}" for key in ("measured", "allowed")]
    return [name, outcome["name"], "yes" if outcome["passed"] else "NO", *numbers, outcome["note"]]
