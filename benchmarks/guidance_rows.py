"""The rows of `guidance`: which policies are compared, and under which headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import ConfigError
from ..guidance.adaptive import AdaptiveGuidance
from ..guidance.cfg import CFG
from ..guidance.delta_reuse import DeltaReuse
from ..guidance.interval import Interval
from .guidance_pairs import STEPS, Row

HIGH = 5.0  # the scale of the second block
HIGH_PAIRS = 500


class Block(NamedTuple):
    """A heading and its rows, in order."""

    title: str
    notes: tuple[str, ...]
    names: tuple[str, ...]


CHOSEN = {"ag": "ag-calibrated", "linear-ag": "linear-spread", "searched": "searched"}
"""Goal -> the row whose threshold, plan or coefficients were chosen for it on training captions."""


def plain() -> list[Row]:
    """Full guidance, none, and full guidance with fewer steps."""
    rows = [Row("cfg", "CFG", "CFG", CFG()), Row("none", "no guidance", "no guidance", CFG(1.0), scale=None)]
    for steps in (16, 15, 14, 13, 10, 8, 7):
        rows.append(Row(f"cfg-{steps}-steps", f"CFG, {steps} steps", "CFG, fewer steps", CFG(), steps=steps))
    return rows


def adaptive() -> list[Row]:
    """Adaptive guidance with thresholds that anybody might type."""
    rows = [Row(f"ag-{t}", f"AG, gamma {t}", "AG", AdaptiveGuidance(t)) for t in (0.99, 0.999)]
    delta = AdaptiveGuidance(0.999, on_switch="delta_reuse")
    rows.append(Row("ag-delta-0.999", "AG, gamma 0.999, then frozen delta", "AG, then frozen delta", delta))
    few = Row("ag-10-steps", "AG, gamma 0.999, 10 steps", "AG, 10 steps", AdaptiveGuidance(), steps=10)
    return [*rows, few]


def first_steps(counts: Sequence[int] = (3, 4, 5, 6, 7, 8, 9, 10, 11)) -> list[Row]:
    """Guidance in the first p %."""
    return [
        Row(f"first-{k}", f"first {100 * k // STEPS} %", "first p %", Interval(stop=(k + 0.5) / STEPS)) for k in counts
    ]


def frozen(counts: Sequence[int] = (4, 5, 6, 7, 8, 9, 10, 11)) -> list[Row]:
    """The last difference of the first p % stays."""
    return [
        Row(
            f"delta-{k}", f"frozen delta after {100 * k // STEPS} %", "frozen delta", DeltaReuse(stop=(k + 0.5) / STEPS)
        )
        for k in counts
    ]


def high() -> list[Row]:
    """A scale far above the model's own."""

    def row(name: str, label: str, family: str, policy: object) -> Row:
        return Row(name, label, family, policy, scale=HIGH, pairs=HIGH_PAIRS, reference="high-cfg")  # type: ignore[arg-type]

    rows = [row("high-cfg", "CFG", "CFG", CFG())]
    rows += [row(f"high-ag-{t}", f"AG, gamma {t}", "AG", AdaptiveGuidance(t)) for t in (0.99, 0.999)]
    rows += [row(f"high-first-{k}", f"first {100 * k // STEPS} %", "first p %", Interval(stop=(k + 0.5) / STEPS))
             for k in (3, 5, 7, 10)]  # fmt: skip
    late = Interval(start=2.5 / STEPS, stop=10.5 / STEPS)
    return [*rows, row("high-3-to-10", "steps 3 to 10", "interval", late)]


MAIN = [*plain(), *adaptive(), *first_steps(), *frozen()]


def rows_of(chosen: Mapping[str, Row], names: Sequence[str] | None = None) -> list[Row]:
    """All rows, or those with these names, in their order.

    chosen: the rows that came from training captions, by name.       Errors: ConfigError for an unknown name.
    """
    every = {row.name: row for row in (*MAIN, *high())} | dict(chosen)
    if names is None:
        return list(every.values())
    unknown = [name for name in names if name not in every]
    if unknown:
        raise ConfigError(f"there is no row {unknown[0]!r}: expected one of {', '.join(every)}")
    return [every[name] for name in names]


_FEWER = tuple(row.name for row in plain()[2:])
_SWEEPS = tuple(row.name for row in (*first_steps(), *frozen()))
BLOCKS = (
    Block("Guidance scale 2, the model's own",
          ("20 steps of DPM-Solver++ 2M on its default grid. `first p %`: guidance in the first part of the steps, "
           "none afterwards. `frozen delta`: the last difference of the two predictions stays from there on.",),
          ("cfg", "none", "ag-calibrated", "ag-0.999", "ag-0.99", "ag-delta-0.999", "linear-spread", "linear-spread-4",
           "linear-12", "linear-10",
           "searched", *_SWEEPS, *_FEWER, "ag-10-steps")),
    Block("Guidance scale 5, far above the model's own",
          ("The first 500 pairs. At this scale solvers of higher order leave the solution.",),
          tuple(row.name for row in high())),
)  # fmt: skip
