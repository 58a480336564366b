"""The picture of a search: the weights that the relaxed search gave every step's candidates, and the choices."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomic

if TYPE_CHECKING:
    from ..guidance.search import Found, SearchSettings
    from .settings import Settings


def draw(found: Found, how: SearchSettings, settings: Settings, path: Path) -> None:
    """Write the picture. matplotlib is of the extra "bench"; the caller has made sure that it is there."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure: Any = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    steps = range(1, len(found.policy.choices) + 1)
    names = [c if isinstance(c, str) else f"guided, {c:g}" for c in how.candidates]
    for name, weights in zip(names, found.probabilities.T.tolist(), strict=True):
        axes.plot(steps, weights, marker=".", label=name)
    guided = [k for k, c in zip(steps, found.policy.choices, strict=True) if not isinstance(c, str)]
    axes.plot(guided, [1.02] * len(guided), "s", color="black", clip_on=False, label="chosen to be guided")
    axes.set(xlabel="step", ylabel="weight in the relaxed search", ylim=(0.0, 1.05))
    axes.set_title(f"{settings.model.name}, guidance scale {how.scale:g}, {found.nfe} evaluations")
    axes.legend()
    data = BytesIO()
    figure.savefig(data, format="png", dpi=120)
    write_atomic(path, data.getvalue())
