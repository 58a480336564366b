"""A table as text that a person can read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .levels import Level
    from .table import Row, Table


def explain(table: Table) -> str:
    """Two or more lines a tick: where it evaluates and goes, then each output as a combination of registers."""
    plan = table.plan
    head = [
        f"{table.solver} on {table.schedule['kind']}: {plan.step[-1] + 1} steps, {len(table)} network evaluations "
        "(times 2 branches with guidance)",
        "x = alpha x0 + sigma eps; x0, eps: predictions at this tick; carry0, carry1, ...: remembered, newest first",
        "",
        f"{'tick':>4} {'step':>6}  {'time':>9} {'alpha':>9} {'sigma':>9} {'lam':>8}   what the tick computes",
    ]
    body = []
    for i, row in enumerate(table.rows):
        where = f"{plan.step[i]}" + (f".{plan.stage[i]}" if plan.stage[i] else "")
        lines = _outputs(row)
        body.append(f"{i:>4} {where:>6}  {_level(plan.nodes[i])}   {lines[0]}")
        body += [f"{'':>52}   {line}" for line in lines[1:]]
    return "\n".join([*head, *body, f"{'end':>4} {'':>6}  {_level(plan.targets[-1])}"])


def _level(level: Level) -> str:
    lam = float(level.lam)
    shown = f"{lam:8.4f}" if math.isfinite(lam) else f"{'inf' if lam > 0 else '-inf':>8}"
    return f"{float(level.time):9.3f} {float(level.alpha):9.6f} {float(level.sigma):9.6f} {shown}"


def _outputs(row: Row) -> list[str]:
    lines = []
    for k, line in enumerate(row.coefficients):
        name = "x" if k == 0 else f"carry{k - 1}"
        terms = [(value, register) for value, register in zip(line, row.inputs, strict=True) if value != 0.0]
        lines.append(f"{name:<6} <- " + (_sum(terms) if terms else "0"))
    return lines


def _sum(terms: list[tuple[float, str]]) -> str:
    parts = []
    for value, register in terms:
        sign = "-" if value < 0 else "+" if parts else ""
        size = "" if abs(value) == 1.0 else f"{abs(value):.6g} "
        parts.append(f"{sign} {size}{register}".strip() if parts else f"{sign}{size}{register}")
    return " ".join(parts)
