"""STSL's parts against each other with the same random numbers: eta, K, probe, where it begins, the trace's weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..inverse.stsl import STSL

PROBLEM = "P2 (8, 1)"
ETAS = (0.0, 0.005, 0.02, 0.1, 0.5)
STEP = 0.5  # zeta K: K says how often the loss is looked at, not how far its gradient goes
SHOWN = ("sw1", "tv", "variance", "chi2")


@dataclass(frozen=True)
class Setting:
    """One STSL; the published eta and K, unit probe, noised start and constant weight of the trace unless told."""

    eta: float = 0.02
    K: int = 5
    probe: str = "unit"
    init: str = "noise"
    trace_weight: str = "constant"

    @property
    def name(self) -> str:
        """The same for settings that do the same."""
        of = self if self.eta else replace(self, probe="unit", trace_weight="constant")
        return f"stsl-eta{of.eta:g}-K{of.K}-{of.probe}-{of.init}-{of.trace_weight}"

    @property
    def posterior(self) -> STSL:
        fields: dict[str, Any] = vars(self)
        return STSL(zeta=STEP / self.K, weighting="norm", **fields)


BASE = Setting()
OTHERS: dict[str, Setting] = {
    "K 1": Setting(K=1),
    "K 2": Setting(K=2),
    "probe sigma": Setting(probe="sigma"),
    "init gaussian": Setting(init="gaussian"),
    "trace weight variance": Setting(trace_weight="variance"),
}


def settings() -> list[Setting]:
    """Every eta, published and with one other part changed."""
    found = [replace(of, eta=eta) for of in (BASE, *OTHERS.values()) for eta in ETAS]
    return list({setting.name: setting for setting in found}.values())


def contrasts() -> list[tuple[str, str, Setting, Setting]]:
    """(table, what changes, setting, the one it is compared with)."""
    found = []
    for change, of in {"as published": BASE, **OTHERS}.items():
        first_order = replace(of, eta=0.0)
        found += [(f"eta against 0: {change}", f"eta {eta:g}", replace(of, eta=eta), first_order) for eta in ETAS[1:]]
    for eta in (0.02, 0.0):
        title = f"The other parts at eta {eta:g}, against those as published"
        pairs = [(change, replace(of, eta=eta), replace(BASE, eta=eta)) for change, of in OTHERS.items()]
        found += [(title, change, of, base) for change, of, base in pairs if of.name != base.name]
    return found


def compared(
    found: Mapping[tuple[str, int], Mapping[str, Any]], seeds: int, interval: Callable[[list[float]], Any]
) -> list[dict[str, Any]]:
    """A line per contrast that has been measured: values, and paired differences over the seeds both have; the seeds
    where one of them diverged are counted.

    found: (name of the setting, seed) -> metrics.       interval: of a list of numbers.
    """
    lines = []
    for table, change, setting, of in contrasts():
        both = [(found.get((setting.name, s)), found.get((of.name, s))) for s in range(seeds)]
        pairs = [(a, b) for a, b in both if a and b and "sw1" in a and "sw1" in b]
        if not pairs:
            continue
        line: dict[str, Any] = {"table": table, "change": change, "seeds": len(pairs)}
        line["diverged"] = sum(bool(a and b) for a, b in both) - len(pairs)
        for key in SHOWN:
            line[key] = interval([a[key] for a, _ in pairs])
            line[f"{key} difference"] = interval([a[key] - b[key] for a, b in pairs])
        lines.append(line)
    return lines
