r"""A policy that says of every step what it evaluates: the result of a search, or written by hand.

    "cond": out = c,        "uncond": out = u,        a number w: out = u + w (c - u).

These are the candidates of the policy search of Castillo, Kohler, Pérez, Pérez, Pumarola, Ghanem, Arbeláez, Thabet
2023, arXiv:2312.12487. The first two cost one evaluation a tick, a number two (w = 1 and w = 0 are the first two).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..samplers.policy import Memory, Run, Varies
from .planned import PlannedPolicy, planned
from .scale import check_scale, towards

Choice = str | float


@dataclass(frozen=True)
class SearchedPolicy(PlannedPolicy):
    """choices: one per step of the run, "cond", "uncond" or a guidance scale. It has no other scale."""

    choices: tuple[Choice, ...]

    has_scales = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", check_choices(self.choices))

    @property
    def varies(self) -> Varies:
        return "by tick"

    def begin(self, run: Run) -> Memory:
        """ConfigError for a run of another number of steps."""
        if len(self.choices) != run.steps:
            raise ConfigError(f"SearchedPolicy has {len(self.choices)} choices, one per step, and the run has "
                              f"{run.steps}: search again for that number, or run {len(self.choices)}")  # fmt: skip
        scales = [scale_of(self.choices[step]) for step in run.step]
        return Memory(run, planned([towards(w, {"uncond": 1.0}) for w in scales], {}))


def check_choices(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """`choices` as a policy keeps them, else ConfigError."""
    if isinstance(choices, str) or not choices:
        raise ConfigError(f'SearchedPolicy needs one choice per step, such as (7.5, 7.5, "cond"), got {choices!r}')
    for choice in choices:
        if isinstance(choice, str) and choice not in ("cond", "uncond"):
            raise ConfigError(f'a choice is "cond", "uncond" or a guidance scale, got {choice!r}')
    return tuple(choice if isinstance(choice, str) else check_scale(choice) for choice in choices)


def scale_of(choice: Choice) -> float:
    """w of a choice: 1 for "cond", 0 for "uncond"."""
    if isinstance(choice, str):
        return 1.0 if choice == "cond" else 0.0
    return choice
