"""The picture of a calibration: gamma along full guidance, the median and a band over the prompts."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomic

if TYPE_CHECKING:
    from ..guidance.calibrate import Calibrated
    from ..guidance.calibrate_runs import Samples


def draw(found: Calibrated, samples: Samples, path: Path) -> None:
    """Write the picture. 1 - gamma is drawn, on a logarithmic axis: thresholds lie close to 1.

    matplotlib is of the extra "bench"; the caller has made sure that it is there.
    """
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    from ..guidance.calibrate import quantiles

    assert found.gamma is not None
    low, middle, high = (1.0 - quantiles(found.gamma)).clamp(min=1e-9).tolist()
    steps = list(range(1, found.gamma.shape[1] + 1))
    figure: Any = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(steps, high, low, alpha=0.25, label="8 of 10 prompts")
    axes.plot(steps, middle, marker=".", label="median")
    threshold = getattr(found.policy, "threshold", None)
    if threshold is not None and threshold < 1.0:
        axes.axhline(1.0 - threshold, linestyle="--", color="black", label=f"threshold {threshold:.6g}")
    axes.set(yscale="log", xlabel="step", ylabel=f"1 - gamma ({samples.space})")
    axes.set_title(f"{found.made_for.model}, guidance scale {samples.scale:g}, {len(samples.prompts)} prompts")
    axes.legend()
    data = BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_atomic(path, data.getvalue())
