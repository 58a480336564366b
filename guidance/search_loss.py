r"""The relaxed policy search: a softmax over the candidates of every step, and the loss that is descended.

    L(alpha) = D(x(W), x*) / D(x_1, x*) + cost_weight / ticks max(e, LEAK e),     e = NFE(alpha) - target
    p_t = softmax((alpha_t + G) / temperature),     W_t = sum_k p_tk w_tk,     NFE(alpha) = sum_tk softmax(.)_tk nfe_tk

x(W) is the relaxed run, x* the run under full guidance, x_1 the one without, all from the same noise and prompt; D is
the Euclidean distance, summed over the images: squared, a few pictures that guidance changes completely would decide
alone. G is zero, or Gumbel noise of each image; NFE is then of the softmax of alpha alone, which is how often a
candidate is the largest. Divided by D(x_1, x*) the loss is 1 without guidance and has no unit, so one cost_weight
serves all models. Below the target a small part of the cost remains, or steps that make no difference would keep what
they have.

Source of the search: Castillo, Kohler, Pérez, Pérez, Pumarola, Ghanem, Arbeláez, Thabet 2023, arXiv:2312.12487. Their
distance, cost term and temperature, and whether they add Gumbel noise, are not known to us: these are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..samplers.table import Table
from .scale import check_scale
from .search_runs import Pairs, branches_of, relaxed, ticks_of
from .searched import Choice, scale_of

LEAK = 0.01
Measure = Callable[[Tensor], Tensor]  # of a final x (B, ...), differentiable: what is compared


class NothingToGain(ConfigError):
    """No policy can save anything here."""


@dataclass(frozen=True)
class SearchSettings:
    """What to search, and how.

    scale: of the full guidance that is imitated, not 1.       target: NFE of a picture, at most.
    strengths: the guided candidates; () for `scale` alone. Of several, a mixture can be a strength that none of them
    has, at less than its cost: use them with gumbel and a low temperature, or leave them to the refinement.
    iterations: of Adam.       rate: its step size, in units of the logits; it falls to zero as a cosine.
    cost_weight: see above; 1 is the mean gain of an evaluation, so that 4 holds the target.
    temperature: of the softmax, at the first and the last iteration, geometric in between.
    gumbel: add Gumbel noise to the logits, drawn anew at every iteration for every image.
    refinements: discrete policies to try at most after that.       seed: of the order of the batches and that noise.
    """

    scale: float
    target: float
    strengths: tuple[float, ...] = ()
    iterations: int = 120
    rate: float = 0.1
    cost_weight: float = 4.0
    temperature: tuple[float, float] = (1.0, 1.0)
    gumbel: bool = False
    refinements: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strengths", tuple(check_scale(w) for w in self.strengths or (self.scale,)))
        if check_scale(self.scale) == 1.0:
            raise NothingToGain("nothing can be gained at guidance scale 1: it evaluates one branch a tick, and a "
                                "search would look for what saves the other")  # fmt: skip
        if {0.0, 1.0} & set(self.strengths) or len(set(self.strengths)) < len(self.strengths):
            raise ConfigError(f"strengths must be different scales, not 0 or 1, which are candidates anyway; got "
                              f"{self.strengths}")  # fmt: skip
        for name, low in (("iterations", 0), ("refinements", 0), ("seed", 0)):
            if not isinstance(value := getattr(self, name), int) or value < low:
                raise ConfigError(f"{name} must be a whole number from {low}, got {value!r}")
        positive = (self.target, self.rate, self.cost_weight, *self.temperature)
        if len(self.temperature) != 2 or not all(math.isfinite(v) and v > 0.0 for v in positive):
            raise ConfigError("target, rate, cost_weight and the two temperatures must be positive numbers, got "
                              f"{self.target}, {self.rate}, {self.cost_weight}, {self.temperature}")  # fmt: skip

    def rate_at(self, n: int) -> float:
        """Of iteration n."""
        return self.rate * 0.5 * (1.0 + math.cos(math.pi * n / self.iterations))

    @property
    def candidates(self) -> tuple[Choice, ...]:
        """Of every step."""
        return ("uncond", "cond", *self.strengths)


class Relaxation:
    """The loss of `settings` on `table`."""

    def __init__(self, table: Table, settings: SearchSettings) -> None:
        self.table, self.settings = table, settings
        self.ticks = ticks_of(table)
        self.steps = len(self.ticks)
        self.scales = torch.tensor([scale_of(c) for c in settings.candidates], dtype=torch.float64)
        branches = torch.tensor([branches_of(c) for c in settings.candidates], dtype=torch.float64)
        self.nfe = torch.tensor(self.ticks, dtype=torch.float64)[:, None] * branches
        least, most = sum(self.ticks), 2 * sum(self.ticks)
        if not least <= settings.target <= most:
            raise ConfigError(f"a target of {settings.target:g} NFE is not possible in this run: without any guidance "
                              f"it has {least}, with guidance at every tick {most}")  # fmt: skip

    def temperature(self, n: int) -> float:
        """Of iteration n."""
        first, last = self.settings.temperature
        return first * (last / first) ** (n / max(1, self.settings.iterations - 1))

    def probabilities(self, logits: Tensor, n: int, images: int = 0) -> Tensor:
        """[steps, candidates] of iteration n, or with Gumbel noise [images, steps, candidates]."""
        noise: Tensor | float = 0.0
        if images and self.settings.gumbel:
            generator = torch.Generator().manual_seed((self.settings.seed << 20) + n)
            uniform = torch.rand((images, *logits.shape), generator=generator, dtype=torch.float64)
            noise = -(-uniform.clamp_min(1e-300).log()).log()
        return ((logits + noise) / self.temperature(n)).softmax(dim=-1)

    def expected_nfe(self, logits: Tensor, n: int) -> Tensor:
        """Of a picture whose candidates are drawn."""
        p = logits.softmax(dim=-1) if self.settings.gumbel else self.probabilities(logits, n)
        return (p * self.nfe).sum()

    def loss(
        self, logits: Tensor, n: int, pairs: Pairs, wanted: Tensor, apart: float, measure: Measure, recompute: bool
    ) -> Tensor:
        """L of iteration n on a batch.

        logits: [steps, candidates] float64.       wanted: measure(x*).
        apart: D(x_1, x*), of all pairs, as much of it as belongs to so many images.
        """
        p = self.probabilities(logits, n, pairs.x.shape[0]).to(pairs.x.device)
        x = relaxed(self.table, pairs, p @ self.scales.to(p.device), recompute=recompute)
        distance = distance_of(measure(x), wanted) / apart
        excess = self.expected_nfe(logits, n) - self.settings.target
        cost = self.settings.cost_weight / sum(self.ticks) * torch.maximum(excess, LEAK * excess)
        return distance.to(logits.device) + cost


def distance_of(found: Tensor, wanted: Tensor) -> Tensor:
    """D: the Euclidean distance of every image, summed over the batch, 0-d float64.

    wanted: on any device; a checkpoint's is on the CPU.
    """
    return (found.double() - wanted.to(found.device)).flatten(1).norm(dim=1).sum()


def discrete(
    logits: Tensor, candidates: Sequence[Choice], ticks: Sequence[int], target: float
) -> tuple[tuple[Choice, ...], tuple[float, ...]]:
    """The policy that the logits speak for, within the target, and for every step the gain of guiding it.

    Steps are guided in the order of their gain, the logit of the best guided candidate above that of the best other,
    for as long as the target allows. Ties go to the earlier step.
    """
    best = [best_of(line, candidates) for line in logits.tolist()]
    gains = tuple(guided[0] - single[0] for single, guided in best)
    left = target - sum(ticks)
    choices: list[Choice] = [single[1] for single, _ in best]
    for step in sorted(range(len(gains)), key=lambda k: (-gains[k], k)):
        if ticks[step] <= left:
            choices[step] = best[step][1][1]
            left -= ticks[step]
    return tuple(choices), gains


def best_of(logits: Sequence[float], candidates: Sequence[Choice]) -> tuple[tuple[float, Choice], tuple[float, Choice]]:
    """(logit, candidate) of the best that evaluates one branch, "cond" in a tie, and of the best that evaluates two."""
    found = []
    for branches in (1, 2):
        of_these = [(v, c) for v, c in zip(logits, candidates, strict=True) if branches_of(c) == branches]
        found.append(max(of_these, key=lambda pair: (pair[0], pair[1] == "cond")))
    return found[0], found[1]
