"""What a restoration did and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..samplers import Level, Prediction, State


@dataclass
class Ledger:
    """Rows of a batch that went through each part, forward and backward. Network rows count every branch."""

    forward: int = 0
    backward: int = 0
    decoder_forward: int = 0
    decoder_backward: int = 0
    encoder_forward: int = 0
    encoder_backward: int = 0

    def watch(self, part: str, output: Tensor) -> Tensor:
        """Count `output`'s rows forward, and backward once a gradient comes back through it."""
        rows = output.shape[0]
        self._add(f"{part}forward", rows)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._add(f"{part}backward", rows))
        return output

    def per_image(self, batch: int) -> dict[str, float]:
        """The same, divided by the number of images."""
        return {name: value / batch for name, value in vars(self).items()}

    def _add(self, name: str, rows: int) -> None:
        setattr(self, name, getattr(self, name) + rows)


class Tick(NamedTuple):
    """One tick of a run, as it is told to on_tick.

    residual: [B] float64 on the CPU, |y - A(x)| in units of y of the last picture that the tick decoded for its data
    loss (STSL: before its last inner step; P2L: before a projection).
    state: what the tick led to.       prediction: x0 and eps that its last step used.
    """

    tick: int
    ticks: int
    level: Level
    residual: Tensor
    state: State
    prediction: Prediction


class TickLine(NamedTuple):
    """What a report keeps of a tick. residual: per image; ms: host milliseconds."""

    tick: int
    level: Level
    residual: tuple[float, ...]
    ms: float


@dataclass
class RestorationReport:
    """method: the hyper-parameters.       chi2: per image, see Measurement.chi2; NaN where sigma_y is 0."""

    method: Any
    batch: int
    ledger: Ledger = field(default_factory=Ledger)
    ticks: list[TickLine] = field(default_factory=list)
    chi2: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def nfe(self) -> float:
        """Network rows forward for each image: branches, perturbed and extra evaluations included."""
        return self.ledger.forward / self.batch

    def __str__(self) -> str:
        cost = self.ledger.per_image(self.batch)
        lines = [f"{type(self.method).__name__}: {len(self.ticks)} ticks, {self.seconds:.1f} s; for each image"]
        for part, name in (("", "network"), ("decoder_", "decoder"), ("encoder_", "encoder")):
            lines.append(f"  {name}: {cost[f'{part}forward']:.4g} forward, {cost[f'{part}backward']:.4g} backward")
        if self.chi2:
            lines.append("  chi^2: " + ", ".join(f"{value:.3g}" for value in self.chi2))
        return "\n".join(lines)


class Restoration(NamedTuple):
    """x: (B, C, H, W) on the CPU, as the backbone decodes: float32 in [0, 1] for models of pictures."""

    x: Tensor
    report: RestorationReport
