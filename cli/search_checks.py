"""What ``fewstep search`` refuses before a model is loaded, each in the words of its option."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from . import checks

if TYPE_CHECKING:
    from .settings import Settings

MAX_ITERATIONS = 100_000  # of the descent; likewise of the single changes


def check_numbers(
    strengths: Sequence[float] | None, iterations: int, rate: float, cost_weight: float,
    temperature: Sequence[float] | None, changes: int, minutes: float,
) -> None:  # fmt: skip
    """ConfigError unless all of them can be."""
    positive("--minutes", minutes)
    checks.whole("--iterations", iterations, 0, MAX_ITERATIONS)
    checks.whole("--changes", changes, 0, MAX_ITERATIONS)
    positive("--rate", rate)
    positive("--cost-weight", cost_weight)
    if temperature is not None and len(temperature) != 2:
        raise ConfigError(f"--temperature must be two numbers, as in 2,0.5: of the first and of the last iteration, "
                          f"got {_listed(temperature)}")  # fmt: skip
    for value in temperature or ():
        positive("--temperature", value)
    for w in strengths or ():
        checks.scale(w, "--strengths")
    if strengths is not None and (1.0 in strengths or len(set(strengths)) < len(strengths)):
        raise ConfigError(f"--strengths must be different numbers, not 1, which every step may have anyway, got "
                          f"{_listed(strengths)}")  # fmt: skip


def check_target(target: float | None, settings: Settings) -> None:
    """ConfigError for a --target-nfe that no policy of this run meets. At scale 1 there is nothing to meet."""
    from .plan import evaluations_of, plan

    if target is None:
        return
    positive("--target-nfe", target)
    least = evaluations_of(plan(settings).how)
    if settings.branches > 1 and least is not None and not least <= target <= 2 * least:
        raise ConfigError(f"--target-nfe {target:g} is not possible in this run: without any guidance it has {least}, "
                          f"with guidance at every tick {2 * least}")  # fmt: skip


def positive(option: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{option} must be a number above 0, got {value:g}")
    return value


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
