"""The rows of `restore`: methods, their eight settings, budgets and ablations.

Budgets are raw network forwards an image: STSL in 50 steps with K = 5 takes 550, and 1x is that for every method.
Every method has the same number of settings to choose from, on the same four scenes, by the same number; what is chosen
at 1x is used at 2x, 4x and 8x. A step along the data loss has its size whatever the number of steps, so that more of
them go further in all: PSLD is run at 4x with its sizes divided by 4 too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from ..inverse.ldps import LDPS
from ..inverse.p2l import P2L
from ..inverse.posterior import Posterior
from ..inverse.psld import PSLD
from ..inverse.stsl import STSL
from .restore_problems import COUNTS, SIGMA_Y, TASKS, Split

FORWARDS = 550
CHUNK = 8  # pictures in one batch

METHODS: dict[str, Posterior] = {
    "stsl": STSL(steps=50, K=5, eta=0.02, weighting="polyak"),
    "ldps": LDPS(steps=550, weighting="norm"),
    "psld": PSLD(steps=550, weighting="norm"),
    "p2l": P2L(steps=275, K=1, weighting="norm"),
    "ldps-polyak": LDPS(steps=550, weighting="polyak"),
    "stsl-norm": STSL(steps=50, K=5, eta=0.02, weighting="norm"),
}
"""Name -> the method at 1x, with what is not chosen at its default."""

MAIN = ("stsl", "ldps", "psld", "p2l")
SWAPPED = ("ldps-polyak", "stsl-norm")
"""STSL and LDPS with each other's rule for the step along the data loss: which of the two wins, rule or method?"""

TITLES = {
    "stsl": "STSL", "ldps": "LDPS", "psld": "PSLD", "p2l": "P2L",
    "ldps-polyak": "LDPS with STSL's step rule", "stsl-norm": "STSL with LDPS's step rule",
}  # fmt: skip
BUDGETS = {"stsl": (1,), "ldps": (1, 2, 4), "psld": (1, 2, 4), "p2l": (1, 2, 4, 8), "ldps-polyak": (1,),
           "stsl-norm": (1,)}  # fmt: skip

DIVIDED = {"psld": 4}
"""Method -> budget at which its steps are divided by it too: method against method, however far the steps go in all."""

Settings = Mapping[str, Mapping[str, Mapping[str, Any]]]  # task -> method -> field -> value


def _grid(**values: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


GRID: dict[str, tuple[dict[str, Any], ...]] = {
    "stsl": _grid(zeta=(0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45, 0.7)),
    "ldps": _grid(zeta=(0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)),
    "psld": _grid(omega=(0.03, 0.1, 0.3, 1.0), gamma=(0.01, 0.1)),
    "p2l": _grid(zeta=(0.03, 0.1, 0.3, 1.0), project_every=(2, 8)),
    "ldps-polyak": _grid(zeta=(0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0)),
    "stsl-norm": _grid(zeta=(0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)),
}
"""Method -> the eight settings. P2L projects at every 8th of 1,000 steps; in 275, every 2nd is as often in all."""


def papers_count(method: Posterior) -> int:
    """Evaluations as the articles count them: STSL one an inner iteration, P2L two a step, the others one."""
    each = {"STSL": getattr(method, "K", 1), "P2L": 2}.get(type(method).__name__, 1)
    return each * method.steps


@dataclass(frozen=True)
class Row:
    """One method on one task. name: of its folder, too.       kind: a name of METHODS.

    budget: multiple of FORWARDS; 0 for an ablation.       divided: see `divided`.       label: what the tables say.
    """

    name: str
    label: str
    task: str
    kind: str
    method: Posterior
    budget: int = 1
    divided: bool = False
    split: Split = "test"

    @property
    def folder(self) -> str:
        """The row's name and a digest of all that its numbers depend on, but the code."""
        what = repr((self.method, TASKS[self.task].operator, SIGMA_Y, self.split, CHUNK))
        return f"{self.name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    @property
    def group(self) -> Group:
        return Group(self.task, self.kind, self.budget, self.divided)

    @property
    def pictures(self) -> int:
        return COUNTS[self.split]

    @property
    def chunks(self) -> range:
        return range(-(-self.pictures // CHUNK))


def tuning_rows(task: str, kind: str) -> list[Row]:
    """The eight settings at 1x, on the scenes for choosing."""
    return [
        Row(f"tune-{task}-{kind}-{k}", written(setting), task, kind, replace(METHODS[kind], **setting), split="tuning")
        for k, setting in enumerate(GRID[kind])
    ]


def written(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def row(task: str, kind: str, budget: int, setting: Mapping[str, Any]) -> Row:
    """The method with its chosen setting, in `budget` times the steps."""
    base = METHODS[kind]
    method = replace(base, steps=base.steps * budget, **setting)
    label = f"{TITLES[kind]}, {budget}x" if kind in MAIN else TITLES[kind]
    return Row(f"{task}-{kind}-{budget}x", label, task, kind, method, budget)


def divided(task: str, kind: str, budget: int, setting: Mapping[str, Any]) -> Row:
    """As `row`, with what was chosen divided by the budget: the steps go as far in all as at 1x."""
    base = row(task, kind, budget, setting)
    method = replace(base.method, **{name: value / budget for name, value in setting.items()})
    label = f"{base.label}, {' and '.join(setting)} divided by {budget}"
    return replace(base, name=f"{base.name}-divided", label=label, method=method, divided=True)


def ablations(task: str, setting: Mapping[str, Any]) -> list[Row]:
    """STSL with one thing changed, of equal forwards where the name says so; and one that costs a quarter."""
    base = replace(METHODS["stsl"], **setting)
    changed = (
        ("eta0", "eta = 0", {"eta": 0.0}),
        ("eta0-equal", "eta = 0, K = 10: equal forwards", {"eta": 0.0, "K": 10}),
        ("k1-equal", "K = 1, 183 steps: equal forwards", {"K": 1, "steps": 183}),
        ("gaussian", "begun from noise alone", {"init": "gaussian"}),
        ("default", "zeta = 0.2, the default", {"zeta": 0.2}),
        ("few", "K = 2, zeta = 0.3, eta = 0: 150 forwards", {"K": 2, "zeta": 0.3, "eta": 0.0}),
    )
    return [Row(f"{task}-stsl-{name}", label, task, "stsl", replace(base, **what), 0) for name, label, what in changed]


class Group(NamedTuple):
    """What is run together, as in Row."""

    task: str
    kind: str
    budget: int
    divided: bool = False


def plan() -> Iterator[Group]:
    """Everything in the order in which it is run."""
    yield from (Group(task, kind, 1) for task in TASKS for kind in MAIN)
    yield from (Group(task, "stsl", 0) for task in TASKS)
    yield from (Group(task, kind, 2) for task in TASKS for kind in MAIN if 2 in BUDGETS[kind])
    yield from (Group(task, kind, 1) for task in TASKS for kind in SWAPPED)
    yield from (Group(task, kind, budget) for budget in (4, 8) for task in TASKS for kind in MAIN
                if budget in BUDGETS[kind])  # fmt: skip
    yield from (Group(task, kind, budget, True) for kind, budget in DIVIDED.items() for task in TASKS)


def rows_of(group: Group, setting: Mapping[str, Any]) -> list[Row]:
    if group.budget == 0:
        return ablations(group.task, setting)
    return [(divided if group.divided else row)(group.task, group.kind, group.budget, setting)]


def every_row(settings: Settings, names: Sequence[str] | None = None) -> tuple[list[Row], list[str]]:
    """(rows in the order of `plan`, "task-method" of those without a setting).

    names: beginnings of the names of the rows that are wanted.
    """
    rows: list[Row] = []
    untuned: dict[str, None] = {}
    for group in plan():
        setting = settings.get(group.task, {}).get(group.kind)
        if setting is None:
            untuned[f"{group.task}-{group.kind}"] = None
        else:
            rows += rows_of(group, setting)
    if names is None:
        return rows, list(untuned)
    begins = tuple(names)
    return [r for r in rows if r.name.startswith(begins)], [
        n for n in untuned if any(n.startswith(name) or name.startswith(f"{n}-") for name in begins)
    ]
