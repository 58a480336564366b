"""``fewstep inspect FILE.safetensors``: which guidance policy a file holds, its numbers, and what it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .guidance_ref import described, find_file
from .plan import counted

if TYPE_CHECKING:
    from ..guidance.made_for import MadeFor
    from ..samplers import Policy

_SHOWN = 6  # numbers of a line, the largest


def read(location: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(all of it, JSON-able; the same in words, one line a fact). ConfigError for a file that is no policy."""
    ref = find_file(location, "the file")
    from ..guidance.made_for import checked
    from ..guidance.policy_file import load

    policy, made_for = load(location)
    told = {
        "policy": {"class": type(policy).__name__, **_numbers(policy)},
        "made_for": _made_for(made_for),
        "checked": list(checked(policy)),
        "digest": ref.digest,
    }
    scale = told["policy"].get("scale")
    lines = {
        "policy": described(policy),
        **_coefficients(getattr(policy, "coefficients", {})),
        "scale": "that of the run" if scale is None else _short(scale),
        **_in_words(made_for),
        "checked": ", ".join(checked(policy)) or "nothing: it holds for any model",
        "digest": str(ref.digest),
    }
    if hasattr(policy, "choices"):
        del lines["scale"]  # the choices are scales
    return told, lines


def _numbers(policy: Policy) -> dict[str, Any]:
    """The fields of a policy."""
    found = {f.name: getattr(policy, f.name) for f in fields(policy)}  # type: ignore[arg-type]
    if "coefficients" in found:
        found["coefficients"] = {str(tick): dict(line) for tick, line in found["coefficients"].items()}
    return found


def _made_for(made_for: MadeFor) -> dict[str, Any]:
    """Levels as [time, alpha, sigma]."""
    found = {f.name: getattr(made_for, f.name) for f in fields(made_for)}
    found["weights"] = made_for.weights and made_for.weights.digest
    found["schedule"] = made_for.schedule and dict(made_for.schedule)
    found["levels"] = made_for.levels and [list(map(float, level)) for level in made_for.levels]
    return found


def _coefficients(lines: Mapping[int, Mapping[str, float]]) -> dict[str, str]:
    """Of LinearAG, u^ tick by tick: its largest numbers."""
    found = {}
    for tick, line in sorted(lines.items()):
        largest = sorted(line, key=lambda name: -abs(line[name]))[:_SHOWN]
        terms = " ".join(f"{line[name]:+.4g} {name}" for name in largest)
        more = f" and {len(line) - _SHOWN} more (--format json has all)" if len(line) > _SHOWN else ""
        found[f"tick {tick}"] = f"u^ = {terms}{more}"
    return found


def _in_words(made: MadeFor) -> dict[str, str]:
    """What is known of the run that it was made for."""
    from ..guidance.made_for import EMPTY, solver_name

    negative = {None: None, EMPTY: "no negative prompt"}.get(made.negative, "a negative prompt, and needs one")
    times = [f"{float(level.time):.4g}" for level in made.levels or ()]
    known = {
        "model": (made.model, made.weights and f"network {made.weights.digest}",
                  made.prediction and f"predicts {made.prediction}"),
        "run": (made.solver and solver_name(made.solver), made.steps and counted(made.steps, "step"),
                times and f"{counted(len(times), 'tick')} from time {times[0]} to {times[-1]}"),
        "made with": (None if made.scale is None else f"guidance scale {made.scale:g}", negative),
        "made on": (made.calibrated_on,),
    }  # fmt: skip
    return {name: ", ".join(filter(None, parts)) for name, parts in known.items() if any(parts)}


def _short(scale: float | tuple[float, ...]) -> str:
    return " ".join(f"{w:g}" for w in (scale if isinstance(scale, tuple) else (scale,)))
