"""What a search found, as text and as JSON-able values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..guidance.calibrate_runs import Samples
    from ..guidance.search import Found, SearchSettings
    from ..guidance.search_samples import Compared


def as_text(
    found: Found, how: SearchSettings, samples: Samples, compared: list[Compared], same_prompts: bool
) -> list[str]:
    """The lines of the tables."""
    full = 2 * samples.ticks
    lines = [
        f"{'policy':<10} {found.nfe} of {full} evaluations an image, {100 * (1 - found.nfe / full):.1f} % saved",
        f"{'distance':<10} {100 * found.distance:.1f} % of what it is without guidance, on the {len(samples.prompts)} "
        "images of the search",
        f"{'search':<10} {len(found.losses)} iterations, {found.tried} single changes, {found.seconds / 60:.1f} min",
        "",
        *_steps(found, how, samples),
    ]
    if compared:
        where = "the same prompts with other seeds" if same_prompts else "other prompts"
        lines += ["", f"error: relative RMS of the last latents to full guidance's, {len(compared[0].error)} images of "
                      f"{where}, mean and standard error"]  # fmt: skip
        lines += [_line(one) for one in compared]
    return lines


def _line(one: Compared) -> str:
    from ..guidance.search_samples import spread

    mean, error = spread(one.error)
    beside = "" if math.isnan(error) else f" +- {error:.4f}"
    return f"{one.name:<22} {one.nfe:>5g} evaluations   error {mean:.4f}{beside}"


def _steps(found: Found, how: SearchSettings, samples: Samples) -> list[str]:
    """One line per step: its choice, and what the relaxed search gave the candidates."""
    rows = [f"{'step':>4} {'time':>8} {'choice':>8}   " + " ".join(f"{_name(c):>7}" for c in how.candidates)]
    for row in _rows(found, samples):
        weights = " ".join(f"{p:>7.3f}" for p in row["weights"])
        rows.append(f"{row['step'] + 1:>4} {row['time']:>8.4g} {_name(row['choice']):>8}   {weights}")
    return rows


def _name(choice: str | float) -> str:
    return choice if isinstance(choice, str) else f"{choice:g}"


def _rows(found: Found, samples: Samples) -> list[dict[str, Any]]:
    plan = samples.table.plan
    times = [float(plan.nodes[plan.step.index(step)].time) for step in range(len(found.policy.choices))]
    choices, weights = found.policy.choices, found.probabilities.tolist()
    steps = zip(times, choices, weights, strict=True)
    return [{"step": k, "time": t, "choice": c, "weights": w} for k, (t, c, w) in enumerate(steps)]


def as_json(found: Found, how: SearchSettings, samples: Samples, compared: list[Compared]) -> dict[str, Any]:
    """The same, for scripts."""
    from ..guidance.search_samples import spread

    told: dict[str, Any] = {"choices": list(found.policy.choices), "candidates": list(how.candidates)}
    told |= {"nfe": found.nfe, "full_nfe": 2 * samples.ticks, "distance": found.distance, "complete": found.complete}
    told |= {"prompts": len(samples.prompts), "losses": list(found.losses), "changes": found.tried}
    told |= {"seconds": round(found.seconds, 1), "per_step": _rows(found, samples)}
    told["held_out"] = []
    for one in compared:
        mean, error = spread(one.error)
        beside = None if math.isnan(error) else error
        told["held_out"].append({"name": one.name, "nfe": one.nfe, "error": mean, "standard_error": beside})
    return told
