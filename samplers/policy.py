r"""What a guidance policy is: which network evaluations a tick makes, and how their outputs are weighed.

A policy is a frozen dataclass of hyper-parameters with pure methods; what a run has to remember on the host goes from
one call to the next as `Memory`. It speaks of *registers* by name: "x", the state; "cond", "uncond" and other branches,
this tick's raw network outputs; and whatever names it gave to what it `remember`s. Its guided prediction is one line
of weights over registers, so that it folds into the solver's own matrix.

What it knows of the data are the entries of one Gram matrix a tick. Weights may be computed from it on the device;
decisions (what the next tick evaluates) need numbers on the host, which `score` says and `decide` gets.
A policy is a class like `guidance.cfg.CFG`; the loop that runs it is `samplers.guided`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from .levels import Level
from .prediction import Parametrisation

Images = tuple[int, ...] | None  # numbers in the batch, ascending; None: every image
Weight = float | tuple[float, ...] | Tensor  # for all images, one per image, or [B] on the device
Line = Mapping[str, Weight]  # register -> weight
Varies = Literal["never", "by tick", "by data"]


class Run(NamedTuple):
    """What is known before a run begins.

    batch: images.       nodes, step, stage: per tick, as in Plan; empty where the solver chooses its steps.
    caller_scales: the caller has the guidance scale w, which the policy cannot see (a pipeline of diffusers), and forms
    u^ + w (c - u^) itself: a policy whose `scale` is None must then give the unconditional prediction u^ alone.
    first: the tick that the run begins at (image to image); those before it are never asked for.
    """

    batch: int
    nodes: tuple[Level, ...]
    step: tuple[int, ...]
    stage: tuple[int, ...]
    parametrisation: Parametrisation
    caller_scales: bool = False
    first: int = 0

    @property
    def steps(self) -> int:
        return self.step[-1] + 1 if self.step else 0

    @property
    def everyone(self) -> tuple[int, ...]:
        return tuple(range(self.batch))


class Memory(NamedTuple):
    """What a policy carries through a run on the host.       state: its own business."""

    run: Run
    state: Any = None


class Statistics(NamedTuple):
    """The Gram matrix that a policy wants: of vectors that are lines of numbers over registers.

    ones: one more row of ones, for sums; see kernels.ops.gram.
    """

    vectors: tuple[Mapping[str, float], ...]
    ones: bool = False


class Policy:
    """A guidance policy. `branches` and `weights` must be given, the rest only where a policy uses it.

    i is always a tick of the run.       gram: [B, K, K] float64 on the device, if `statistics` asked for one.
    Every policy says whose guidance scale it takes: by a field `scale`, or by `has_scales`.
    """

    scale: Any
    """w, a float, or a tuple of one per step: `weights` are the guided prediction. None for the caller's, which
    `dataclasses.replace(policy, scale=w)` fills in; where that is not to be had (Run.caller_scales) `weights` are those
    of u^ alone, and the caller forms u^ + w (c - u^). guidance.scale.towards does both.

    Only declared here: a default would be that of the fields of subclasses, which may want none."""

    has_scales: bool = False
    """True for a policy without `scale` whose `weights` are the guided prediction whoever calls it."""

    lag: int = 0
    """A decision for tick i sees scores of ticks up to i - 1 - lag. With 1 the host never waits for the newest tick."""

    @property
    def at_once(self) -> bool:
        """Whether `decide` for a tick comes before its own `weights`; then lag is 0 and the host waits there."""
        return False

    @property
    def varies(self) -> Varies:
        """Whether branches and weights are the same at all ticks, known before the run, or follow the data.

        A policy that never varies is asked once: it measures, remembers and decides nothing.
        """
        return "by data"

    def begin(self, run: Run) -> Memory:
        """ConfigError where the policy cannot serve such a run."""
        return Memory(run)

    def branches(self, i: int, memory: Memory) -> Mapping[str, Images]:
        """What tick i evaluates, in the order of the network's batch. An empty tuple of images drops the branch."""
        raise NotImplementedError

    def statistics(self, i: int, memory: Memory) -> Statistics | None:
        """What tick i measures once its branches are evaluated. Entries of images that lack one are not defined."""
        return None

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        """The guided prediction, a raw output of the network, over this tick's branches and what is remembered.

        "x" is a register like any other: to give c x + d, where that is what the network would have to return.
        A register that an image has not evaluated must have weight 0 there, or not be in the line.
        """
        raise NotImplementedError

    def remember(self, i: int, memory: Memory) -> Mapping[str, Line]:
        """Name -> line: what tick i leaves for later ones. Names that are not given again keep what they hold."""
        return {}

    def forget(self, i: int, memory: Memory) -> tuple[str, ...]:
        """Names that no tick after i reads."""
        return ()

    def score(self, i: int, gram: Tensor | None, memory: Memory) -> Tensor | None:
        """[B] numbers of tick i that decisions need."""
        return None

    def decide(self, i: int, scores: tuple[float, ...], memory: Memory) -> Memory:
        """The memory after the scores of tick i have arrived on the host; called in the order of the ticks."""
        return memory

    def restarts(self, i: int, memory: Memory) -> tuple[int, ...]:
        """The images whose solver forgets its history before tick i."""
        return ()
