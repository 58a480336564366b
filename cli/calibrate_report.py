"""What a calibration found, as text and as JSON-able values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .guidance_ref import described

if TYPE_CHECKING:
    from ..guidance.calibrate import Calibrated
    from ..guidance.calibrate_runs import Samples

PARTS = (0.1, 0.5, 0.9)


def as_text(found: Calibrated, samples: Samples) -> list[str]:
    """The lines of the table."""
    lines = [f"{'prompts':<10} {found.made_for.calibrated_on}"]
    measured = found.measured
    if found.policy is not None and measured is not None:
        nfe, error = measured.nfe, measured.error
        spread = f"; images from {nfe.min():g} to {nfe.max():g}" if bool(nfe.min() < nfe.max()) else ""
        lines += [
            f"{'policy':<10} {described(found.policy)}, guidance scale {samples.scale:g}",
            f"{'NFE':<10} {nfe.mean():.2f} of {found.full} an image, {100 * found.saved:.1f} % saved{spread}",
            f"{'error':<10} {error.mean():.4f} mean, {error.quantile(0.9):.4f} for 9 of 10 images, {error.max():.4f} "
            "for the worst: relative RMS of the last latents to full guidance's",
        ]
        if found.held:
            rest = error[-found.held :]
            lines.append(f"{'held out':<10} {rest.mean():.4f} mean, {rest.max():.4f} for the worst of the {found.held} "
                         "images that nothing was fitted on")  # fmt: skip
        lines += [f"{'tried':<10} NFE {n:.2f}: error {e:.4f}" for n, e in found.tried if len(found.tried) > 1]
    if found.gamma is not None:
        lines += ["", *_steps(found, samples)]
    return lines


def _steps(found: Calibrated, samples: Samples) -> list[str]:
    """Gamma and the guided share, step by step."""
    rows = [f"{'step':>4} {'time':>8} {'gamma 10 %':>11} {'median':>9} {'90 %':>9} {'guided':>7}"]
    for step, row in enumerate(_rows(found, samples)):
        low, middle, high = row["gamma"]
        guided = "" if row["guided"] is None else f"{100 * row['guided']:.0f} %"
        rows.append(f"{step + 1:>4} {row['time']:>8.4g} {low:>11.6f} {middle:>9.6f} {high:>9.6f} {guided:>7}")
    return rows


def _rows(found: Calibrated, samples: Samples) -> list[dict[str, Any]]:
    """Per step: the time it begins at, quantiles of gamma, and the part of the images that evaluated u there."""
    from ..guidance.calibrate import quantiles

    plan = samples.table.plan
    assert found.gamma is not None
    gamma = quantiles(found.gamma, PARTS)
    rows = []
    for step in range(gamma.shape[1]):
        first = plan.step.index(step)
        guided = None if found.measured is None else float(found.measured.guided[first]) / len(samples.prompts)
        rows.append({"time": float(plan.nodes[first].time), "gamma": gamma[:, step].tolist(), "guided": guided})
    return rows


def as_json(found: Calibrated, samples: Samples) -> dict[str, Any]:
    """The same, for scripts."""
    told: dict[str, Any] = {"policy": None, "prompts": len(samples.prompts), "full_nfe": found.full, "why": found.why}
    measured = found.measured
    if found.policy is not None and measured is not None:
        nfe, error = measured.nfe, measured.error
        told["policy"] = {"class": type(found.policy).__name__, "described": described(found.policy)}
        told["nfe"] = {"mean": float(nfe.mean()), "min": float(nfe.min()), "max": float(nfe.max())}
        told["saved"] = found.saved
        told["error"] = {"mean": float(error.mean()), "p90": float(error.quantile(0.9)), "max": float(error.max())}
        if found.held:
            rest = error[-found.held :]
            told["held_out"] = {"images": found.held, "mean": float(rest.mean()), "max": float(rest.max())}
        told["tried"] = [{"nfe": n, "error": e} for n, e in found.tried]
    if found.gamma is not None:
        told["per_step"] = _rows(found, samples)
    return told
