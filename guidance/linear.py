r"""LinearAG: at some ticks the unconditional prediction is a line over predictions that were already evaluated.

    u^_t = sum_{i <= t} b^c_i c_i + sum_{j < t} b^u_j u_j        (raw outputs, one number each for all images)

so a guided tick costs one evaluation. In the first half every second tick evaluates u, the rest of the run is
conditional: 25 evaluations in 20 steps.
Source: Castillo, Kohler, Pérez, Pérez, Pumarola, Ghanem, Arbeláez, Thabet 2023, arXiv:2312.12487, whose abstract has
the idea. The form of the line is ours: u_j stands only for ticks j that evaluated it. An estimate u^_j among the terms
would be a line over the others, and widen nothing where all of them are there.

The numbers belong to one network, one table and one scale (they are fitted along its runs, guidance.linear_fit), and
to one negative prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from ..errors import ConfigError
from ..samplers.policy import Line, Memory, Run, Varies
from .planned import PlannedPolicy, Recipes, guided_lines, planned
from .scale import Scale, check_run, check_scales

Kind = Literal["cfg", "linear", "cond"]
KINDS: tuple[str, ...] = get_args(Kind)
Coefficients = Mapping[int, Mapping[str, float]]
"""Tick -> register -> number. "cond": this tick's; "cond@3", "uncond@2": the raw outputs of those ticks."""


@dataclass(frozen=True)
class LinearAG(PlannedPolicy):
    """coefficients: b of every "linear" tick.

    kinds: per tick of the run, "cfg" (u is evaluated), "linear" (u^ in its place) or "cond" (not guided). The first
    is "cfg". A register may be of a tick that evaluates it: "uncond@2" needs the kind "cfg" at 2.
    scale: w, or one per step, or None for the caller's.
    """

    coefficients: Coefficients
    kinds: tuple[Kind, ...]
    scale: Scale = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_scales(self.scale))
        object.__setattr__(self, "kinds", check_kinds(self.kinds))
        object.__setattr__(self, "coefficients", check_coefficients(self.coefficients, self.kinds))

    @property
    def varies(self) -> Varies:
        return "by data"

    def begin(self, run: Run) -> Memory:
        """ConfigError for a run of another number of ticks."""
        check_run(self.scale, run, "LinearAG")
        check_ticks(self.kinds, run)
        uncond = lines_of_uncond(self.kinds, self.coefficients)
        read = {name for line in self.coefficients.values() for name in line}
        return Memory(run, planned(guided_lines(uncond, self.scale, run), recipes_of(read)))


def lines_of_uncond(kinds: Sequence[Kind], coefficients: Coefficients) -> list[Line | None]:
    """u^ of every tick; None where there is no guidance, u itself where there are no coefficients."""
    return [None if kind == "cond" else coefficients.get(i, {"uncond": 1.0}) for i, kind in enumerate(kinds)]


def recipes_of(names: set[str]) -> Recipes:
    """How the remembered ones among the names are made: "cond@3" is "cond" of tick 3."""
    parts = {name: name.partition("@") for name in sorted(names) if "@" in name}
    return {name: (int(tick), {branch: 1.0}) for name, (branch, _, tick) in parts.items()}


def kinds_alternating(ticks: int, guided: int | None = None) -> tuple[Kind, ...]:
    """The paper's plan: u evaluated at every second one of the first `guided` ticks (default: half of them, rounded
    up), from the first on, estimated between; conditional from there on."""
    guided = math.ceil(ticks / 2) if guided is None else guided
    if not 1 <= guided <= ticks:
        raise ConfigError(f"of {ticks} ticks from 1 to all can be guided, got {guided!r}")
    return tuple("cond" if i >= guided else "linear" if i % 2 else "cfg" for i in range(ticks))


def kinds_leading(ticks: int, evaluated: int, guided: int | None = None) -> tuple[Kind, ...]:
    """u evaluated at the first `evaluated` ticks and estimated from there to the end of the `guided` ones (default:
    all of them), as frozen differences are."""
    guided = ticks if guided is None else guided
    if not 1 <= evaluated <= guided <= ticks:
        raise ConfigError(f"1 <= evaluated <= guided <= ticks is needed, got {evaluated!r}, {guided!r} and {ticks!r}")
    return tuple("cfg" if i < evaluated else "linear" if i < guided else "cond" for i in range(ticks))


def check_kinds(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """`kinds` as a policy keeps them, else ConfigError."""
    if isinstance(kinds, str) or not kinds or any(kind not in KINDS for kind in kinds):
        raise ConfigError(f"kinds has one of {', '.join(KINDS)} per tick, got {kinds!r}")
    if kinds[0] != "cfg":
        raise ConfigError(f'the first tick has nothing to estimate u from: its kind must be "cfg", got {kinds[0]!r}')
    return tuple(kinds)


def check_ticks(kinds: Sequence[Kind], run: Run) -> None:
    """ConfigError where the run has another number of ticks, or begins after the first."""
    if run.first:
        raise ConfigError(f"LinearAG's coefficients read predictions of all ticks before, and this run begins at tick "
                          f"{run.first}: fit them for a table that begins there")  # fmt: skip
    if len(kinds) != len(run.step):
        raise ConfigError(f"LinearAG has {len(kinds)} kinds, one per tick, and the run has {len(run.step)} ticks: its "
                          f"coefficients belong to one table, fit them again for this one")  # fmt: skip


def check_coefficients(coefficients: Coefficients, kinds: Sequence[Kind]) -> Coefficients:
    """`coefficients` as a policy keeps them, read only, float, else ConfigError."""
    linear = {i for i, kind in enumerate(kinds) if kind == "linear"}
    if set(coefficients) != linear:
        raise ConfigError(f'coefficients are needed for the "linear" ticks {sorted(linear)}, got them for '
                          f"{sorted(coefficients)}")  # fmt: skip
    kept: dict[int, Mapping[str, float]] = {}
    for t, line in coefficients.items():
        for name, number in line.items():
            _check_register(name, t, kinds)
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ConfigError(f"coefficient {name!r} of tick {t} must be a finite number, got {number!r}")
        if not line:
            raise ConfigError(f"tick {t} has no coefficient")
        kept[t] = MappingProxyType({name: float(number) for name, number in line.items()})
    return MappingProxyType(kept)


def _check_register(name: str, t: int, kinds: Sequence[Kind]) -> None:
    """ConfigError unless tick t can know this register before u_t is evaluated."""
    branch, _, tick = name.partition("@")
    known = name == "cond" or (
        branch in ("cond", "uncond")
        and tick.isascii()
        and tick.isdigit()
        and tick == str(int(tick))
        and int(tick) < t
        and (branch == "cond" or kinds[int(tick)] == "cfg")
    )
    if not known:
        raise ConfigError(f'tick {t} cannot read {name!r}: its coefficients may be of "cond", of "cond@k" with k < {t} '
                          f'and of "uncond@k" where k < {t} evaluates u')  # fmt: skip
