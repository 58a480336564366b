"""STSL's parts against each other with the same random numbers: eta, K, probe, where it begins, the trace's weight."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from ..inverse.stsl import STSL

PROBLEM = "P2 (8, 1)"
ETAS = (0.0, 0.005, 0.02, 0.1, 0.5)
KS = (1, 2, 5)
PROBES = ("unit", "sigma")
INITS = ("noise", "gaussian")
ZETA = 0.1  # times 5 / K, so that K alone does not make the data term stronger
SHOWN = ("sw1", "tv", "variance", "chi2")


@dataclass(frozen=True)
class Setting:
    """One STSL. Those that share K and init have the same noise, so that their differences are paired."""

    eta: float
    K: int
    probe: str
    init: str
    trace_weight: str = "constant"

    @property
    def name(self) -> str:
        return f"stsl-eta{self.eta:g}-K{self.K}-{self.probe}-{self.init}-{self.trace_weight}"

    @property
    def posterior(self) -> STSL:
        return STSL(zeta=ZETA * 5 / self.K, **vars(self))


def settings() -> list[Setting]:
    """All with the published constant weight, and the default's weight at the published K and start."""
    found = [Setting(0.0, K, "unit", init) for K, init in product(KS, INITS)]
    found += [Setting(eta, K, probe, init) for K, init, eta, probe in product(KS, INITS, ETAS[1:], PROBES)]
    return found + [Setting(eta, 5, probe, "noise", "variance") for eta, probe in product(ETAS[1:], PROBES)]


def contrasts() -> list[tuple[str, str, Setting, Setting]]:
    """(table, what changes, setting, the one it is compared with)."""
    found = []
    for weight, init, K in [("constant", init, K) for init in INITS for K in KS] + [("variance", "noise", 5)]:
        of = Setting(0.0, K, "unit", init)
        title = f"eta against 0: K {K}, init {init}, trace weight {weight}"
        for probe, eta in product(PROBES, ETAS[1:]):
            found.append((title, f"eta {eta:g}, probe {probe}", Setting(eta, K, probe, init, weight), of))
    base = Setting(0.02, 5, "unit", "noise")
    title = "The other parts: each against eta 0.02, K 5, unit probe, init noise"
    for other in (Setting(0.02, 1, "unit", "noise"), Setting(0.02, 2, "unit", "noise"),
                  Setting(0.02, 5, "sigma", "noise"), Setting(0.02, 5, "unit", "gaussian"),
                  Setting(0.02, 5, "unit", "noise", "variance")):  # fmt: skip
        change = next(f"{key} {value}" for key, value in vars(other).items() if value != vars(base)[key])
        found.append((title, change, other, base))
    return found


def compared(found: dict[tuple[str, int], dict[str, Any]], seeds: int, interval: Any) -> list[dict[str, Any]]:
    """A line per contrast that has been measured: values, and paired differences over the seeds both have.

    found: (name of the setting, seed) -> metrics.       interval: of a list of numbers.
    """
    lines = []
    for table, change, setting, of in contrasts():
        pairs = [(found[setting.name, s], found[of.name, s]) for s in range(seeds)
                 if (setting.name, s) in found and (of.name, s) in found]  # fmt: skip
        pairs = [(a, b) for a, b in pairs if "sw1" in a and "sw1" in b]
        if not pairs:
            continue
        line: dict[str, Any] = {"table": table, "change": change, "seeds": len(pairs)}
        for key in SHOWN:
            line[key] = interval([a[key] for a, _ in pairs])
            line[f"{key} difference"] = interval([a[key] - b[key] for a, b in pairs])
        lines.append(line)
    return lines
