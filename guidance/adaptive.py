r"""Adaptive Guidance: the unconditional prediction is evaluated until it agrees with the conditional one.

    gamma_t = <c_t, u_t> / (|c_t| |u_t|),      out = u + w (c - u)  until gamma_t >= gamma_bar,      out = c  after it,

gamma over all elements of one image, once crossed for good. A run of T steps that evaluates u at K of them costs T + K.
Source: Castillo, Kohler, Pérez, Pérez, Pumarola, Ghanem, Arbeláez, Thabet 2023, arXiv:2312.12487.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, NumericsError
from ..samplers.policy import Images, Line, Memory, Policy, Run, Statistics, Varies
from .scale import Scale, check_number, check_run, check_scales, scale_at, towards
from .space import Space, check_space, in_space
from .steps import step_of, steps_of

DEFAULT_THRESHOLD = 0.999


class Crossed(NamedTuple):
    """Per image: the step whose gamma crossed first, and the tick from which on it is not guided (or None)."""

    steps: tuple[int | None, ...]
    ticks: tuple[int | None, ...]


@dataclass(frozen=True)
class AdaptiveGuidance(Policy):
    """threshold: gamma_bar. Above 1 it is CFG; at -1 or below there is no guidance from the first step on.

    scale: w, or one per step, or None for the caller's.
    space: of the two predictions. In "eps" gamma is near 1 at the beginning of every run; see guidance.space.
    rule: "next": the step that crosses is still guided. "same": it is not, though its u was evaluated.
    lag: how many ticks older than the newest the gamma is that decides; each costs one evaluation more and frees the
    host from waiting for the device (with "same" it must be 0).
    min_steps: so many steps are guided whatever gamma is (image to image begins with gamma near 1).
    max_fraction: of the steps, after which guidance ends whatever gamma is.
    batch: "per_sample": every image for itself. "all": nobody switches before the slowest, and shapes stay the same.
    on_switch: "cond": c alone. "delta_reuse": the last c - u stays, so guidance goes on, at the same cost;
    only with "next".
    lower_order: the solver begins anew at the switch, so that no difference is taken between guided and unguided
    predictions; for solvers inside fewstep's loop and scheduler.
    """

    threshold: float = DEFAULT_THRESHOLD
    scale: Scale = None
    space: Space = "x0"
    rule: Literal["next", "same"] = "next"
    lag: int = 0
    min_steps: int = 0
    max_fraction: float = 1.0
    batch: Literal["per_sample", "all"] = "per_sample"
    on_switch: Literal["cond", "delta_reuse"] = "cond"
    lower_order: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_scales(self.scale))
        check_space(self.space)
        object.__setattr__(self, "threshold", check_number("the threshold", self.threshold))
        for name, among in (("rule", ("next", "same")), ("batch", ("per_sample", "all")),
                            ("on_switch", ("cond", "delta_reuse"))):  # fmt: skip
            if getattr(self, name) not in among:
                raise ConfigError(f"{name} must be {among[0]!r} or {among[1]!r}, got {getattr(self, name)!r}")
        for name in ("lag", "min_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name} must be a whole number >= 0, got {value!r}")
        object.__setattr__(self, "max_fraction", check_number("max_fraction", self.max_fraction, 0.0, 1.0))
        if self.rule == "same" and self.lag:
            raise ConfigError('rule="same" decides a step by its own gamma: lag must be 0')
        if self.rule == "same" and self.on_switch == "delta_reuse":
            raise ConfigError('on_switch="delta_reuse" needs rule="next": with "same" the step that crosses would have '
                              "no difference yet where it is the first one")  # fmt: skip
        if self.rule == "same" and self.lower_order:
            raise ConfigError('lower_order needs rule="next": with "same" the step that crosses is already under way')

    @property
    def at_once(self) -> bool:
        return self.rule == "same"

    @property
    def varies(self) -> Varies:
        return "by data"

    def begin(self, run: Run) -> Memory:
        check_run(self.scale, run, "AdaptiveGuidance")
        none = (None,) * run.batch
        ticks = (0,) * run.batch if self.threshold <= -1.0 and not self.min_steps else none
        return Memory(run, Crossed(none, ticks))

    def branches(self, i: int, memory: Memory) -> dict[str, Images]:
        guided, w = self._guided(i, memory), scale_at(self.scale, i, memory.run)
        if not guided or w == 1.0:
            return {"cond": None}
        rest = tuple(k for k in memory.run.everyone if k not in guided)
        return {"uncond": guided, "cond": rest if w == 0.0 else None}

    def statistics(self, i: int, memory: Memory) -> Statistics | None:
        if memory.run.stage[i] or scale_at(self.scale, i, memory.run) in (0.0, 1.0) or not self._guided(i, memory):
            return None
        return Statistics(tuple(in_space(self.space, branch, i, memory.run) for branch in ("cond", "uncond")))

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        everyone, w = memory.run.everyone, scale_at(self.scale, i, memory.run)
        guided = set(self._guided(i, memory, self.rule == "same")) if w != 1.0 else set()
        before, after = towards(w, {"uncond": 1.0}), self._after(w, i, memory)
        if len(guided) == len(everyone):
            return before
        names = dict.fromkeys((*before, *after)) if guided else after
        return {n: tuple(_number(before if k in guided else after, n) for k in everyone) for n in names}

    def _after(self, w: float | None, i: int, memory: Memory) -> Line:
        """The line of an image that is no longer guided."""
        if self.on_switch == "cond" or not self._has_delta(i, memory) or w == 1.0:
            return {"cond": 1.0}
        return towards(w, {"cond": 1.0, "delta": -1.0})

    def _has_delta(self, i: int, memory: Memory) -> bool:
        scales = (scale_at(self.scale, k, memory.run) for k in range(memory.run.first, i))
        return any(w not in (0.0, 1.0) and self._guided(k, memory) for k, w in enumerate(scales, memory.run.first))

    def remember(self, i: int, memory: Memory) -> dict[str, Line]:
        guided = self._guided(i, memory)
        w = scale_at(self.scale, i, memory.run)
        if self.on_switch == "cond" or not guided or w in (0.0, 1.0):
            return {}
        new = tuple(float(k in guided) for k in memory.run.everyone)
        line: dict[str, tuple[float, ...]] = {"cond": new, "uncond": tuple(-v for v in new)}
        if not all(new):
            line["delta"] = tuple(1.0 - v for v in new)
        return {"delta": line}

    def score(self, i: int, gram: Tensor | None, memory: Memory) -> Tensor | None:
        return None if gram is None else cosine(gram)

    def decide(self, i: int, scores: tuple[float, ...], memory: Memory) -> Memory:
        """Latches the images that crossed at tick i, which begins a step."""
        run, step = memory.run, memory.run.step[i]
        guided = set(self._guided(i, memory))
        for image in guided:
            if math.isnan(scores[image]):
                raise NumericsError(f"gamma of image {image} at tick {i} ({run.nodes[i]}) is not a number: the "
                                    "network's predictions there are not finite")  # fmt: skip
        early = step_of(i, run) + (self.rule == "next") < self.min_steps
        new = {k for k in guided if scores[k] >= self.threshold and not early}
        steps = tuple(step if k in new and s is None else s for k, s in enumerate(memory.state.steps))
        from_tick = self._switch_tick(i, run)
        if self.batch == "all":
            switching = set(run.everyone) if all(s is not None for s in steps) else set()
        else:
            switching = new
        ticks = tuple(from_tick if t is None and k in switching else t for k, t in enumerate(memory.state.ticks))
        return Memory(run, Crossed(steps, ticks))

    def _switch_tick(self, i: int, run: Run) -> int:
        """Where an image whose gamma crossed at tick i is first not guided: the beginning of a step, if "next"."""
        tick = i + 1 + self.lag
        while self.rule == "next" and tick < len(run.stage) and run.stage[tick]:
            tick += 1
        return tick

    def restarts(self, i: int, memory: Memory) -> tuple[int, ...]:
        if not self.lower_order or i == memory.run.first:
            return ()
        guided = set(self._guided(i, memory))
        return tuple(k for k in self._guided(i - 1, memory) if k not in guided)

    def _guided(self, i: int, memory: Memory, crossing: bool = False) -> tuple[int, ...]:
        """The images that evaluate u at tick i; without those whose gamma of this very tick crossed, if `crossing`."""
        run = memory.run
        if step_of(i, run) >= max(math.ceil(self.max_fraction * steps_of(run) - 1e-9), self.min_steps):
            return ()
        return tuple(k for k, t in enumerate(memory.state.ticks) if t is None or i + crossing < t)


def cosine(gram: Tensor) -> Tensor:
    """[B] in [-1, 1], of the first two vectors; -1 where one of them is zero, which is no agreement."""
    norms = (gram[:, 0, 0] * gram[:, 1, 1]).sqrt()
    return torch.where(norms == 0.0, -1.0, gram[:, 0, 1] / norms).clamp(-1.0, 1.0)


def _number(line: Line, name: str) -> float:
    weight = line.get(name, 0.0)
    assert isinstance(weight, float)
    return weight
