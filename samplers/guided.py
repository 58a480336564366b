"""A guidance policy in a run: what it asks for, what it measures, what it remembers, and when the host must wait.

`solve` and the hooks on diffusers' pipelines drive every policy through the same object, a `Guided`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..kernels import ops
from ..kernels.upload import to_device
from .policy import Images, Line, Memory, Policy, Run, Varies, Weight
from .policy_checks import check_branches, check_line, check_memory, check_remembered, check_score, check_vectors
from .readback import Readback
from .table import Weights

Registers = Mapping[str, Tensor]


class Asked(NamedTuple):
    """The branches of a tick, and which images each is for."""

    branches: tuple[str, ...] = ()
    images: tuple[Images, ...] = ()

    @property
    def uniform(self) -> bool:
        """Whether every branch is for every image."""
        return not any(self.images)

    def rows(self, batch: int) -> int:
        """Network rows."""
        return sum(batch if images is None else len(images) for images in self.images)

    def of_image(self, image: int) -> tuple[str, ...]:
        """The branches that one image evaluates."""
        return tuple(b for b, v in zip(self.branches, self.images, strict=True) if v is None or image in v)

    @classmethod
    def of(cls, found: Mapping[str, Images], batch: int, what: str = "a guidance policy") -> Asked:
        """Without branches for nobody; branches for everybody say None.

        Errors: ConfigError for images that are not ascending numbers of the batch, or for no branch at all.
        what: whose they are, for messages.
        """
        check_branches(found, batch, what)
        kept = {b: None if v is not None and len(v) == batch else v for b, v in found.items() if v != ()}
        if not kept:
            raise ConfigError(f"{what} asked for no branch at all")
        return cls(tuple(kept), tuple(kept.values()))


NOTHING = Asked()


class ConditionalOnly(Policy):
    """No guidance: the branch "cond" alone."""

    has_scales = True

    @property
    def varies(self) -> Varies:
        return "never"

    def branches(self, i: int, memory: Memory) -> Mapping[str, Images]:
        return {"cond": None}

    def weights(self, i: int, gram: Tensor | None, memory: Memory) -> Line:
        return {"cond": 1.0}


class Guided:
    """A policy and its memory in one run. Of each tick, in order: `asked`, then `observed`."""

    def __init__(self, policy: Policy, run: Run) -> None:
        self.policy = policy
        self.run = run
        self._name = type(policy).__name__
        self.memory = check_memory(policy.begin(run), f"{self._name}.begin")
        self.recalled: dict[str, Tensor] = {}
        self.scores: dict[int, tuple[float, ...]] = {}
        self.restarting = type(policy).restarts is not Policy.restarts
        self._asked = NOTHING
        self._fixed: Line | None = None  # the line of a policy that never varies, after its first tick
        self._registers: Registers = {}
        self._pending: deque[tuple[int, Asked, Readback]] = deque()

    def asked(self, i: int) -> Asked:
        """What tick i evaluates; waits for the scores that this decision needs, and for no newer ones."""
        if self._fixed is None:
            self.settle(i - 1 - self.policy.lag)
            self._asked = Asked.of(self.policy.branches(i, self.memory), self.run.batch, self._at(i))
        return self._asked

    def restarts(self, i: int) -> tuple[int, ...]:
        """The images whose solver begins anew at tick i, after `asked` for it."""
        return self.policy.restarts(i, self.memory)

    def settle(self, last: int) -> None:
        """Let the policy decide by the scores of all ticks up to `last`."""
        while self._pending and self._pending[0][0] <= last:
            i, asked, readback = self._pending.popleft()
            self.scores[i] = self._numbers(asked, readback)
            decided = self.policy.decide(i, self.scores[i], self.memory)
            self.memory = check_memory(decided, f"{self._at(i)}: decide")

    def measured(self) -> dict[int, tuple[float, ...]]:
        """Tick -> scores, those included that no decision has needed. Waits for the newest."""
        return self.scores | {i: self._numbers(asked, readback) for i, asked, readback in self._pending}

    def _numbers(self, asked: Asked, readback: Readback) -> tuple[float, ...]:
        """NaN for an image that did not evaluate all branches of the tick."""
        values = readback.numbers()
        if asked.uniform:
            return values
        complete = [len(asked.of_image(image)) == len(asked.branches) for image in self.run.everyone]
        return tuple(value if c else math.nan for value, c in zip(values, complete, strict=True))

    def observed(self, i: int, x: Tensor, tensors: Sequence[Tensor]) -> Line:
        """The guided prediction of tick i as a line over the registers, which `tensors_of` finds.

        tensors: one of x's shape per branch asked for; images that did not evaluate it may hold anything there.
        Errors: UnknownRegister (an IncompatibleError, and a KeyError of the name) for a register that is neither
        evaluated nor remembered; IncompatibleError for what else the policy may not return (see policy_checks).
        """
        if self._fixed is not None:
            self._registers = dict(zip(self._asked.branches, tensors, strict=True))
            return self._fixed
        self._registers = registers = {"x": x, **self.recalled, **dict(zip(self._asked.branches, tensors, strict=True))}
        gram = self._gram(i, registers)
        score = self.policy.score(i, gram, self.memory)
        if score is not None:
            check_score(score, self.run.batch, self._at(i))
            self._pending.append((i, self._asked, Readback(score)))
            if self.policy.at_once:
                self.settle(i)
        line = self.policy.weights(i, gram, self.memory)
        self._check(line, registers, f"{self._at(i)}: weights")
        new: dict[str, Tensor] = {}
        for name, recalled in self.policy.remember(i, self.memory).items():
            check_remembered(name, self._asked.branches, f"{self._at(i)}: remember")
            self._check(recalled, registers, f"{self._at(i)}: the line of {name!r}")
            new[name] = mixed(recalled, registers)
        gone = self.policy.forget(i, self.memory)
        if new or gone:
            self.recalled = {name: held for name, held in {**self.recalled, **new}.items() if name not in gone}
        if self.policy.varies == "never" and set(line) <= set(self._asked.branches):
            self._fixed = line
        return line

    def end(self) -> None:
        """The run is over: lets go of the tensors of its last tick and of what is remembered. Scores stay."""
        self._registers, self.recalled = {}, {}

    def _at(self, i: int) -> str:
        return f"{self._name} at tick {i}"

    def _check(self, line: Line, registers: Registers, what: str) -> None:
        images = {} if self._asked.uniform else dict(zip(self._asked.branches, self._asked.images, strict=True))
        check_line(line, registers, images, self.run.batch, what)

    def _gram(self, i: int, registers: Registers) -> Tensor | None:
        wanted = self.policy.statistics(i, self.memory)
        if wanted is None:
            return None
        check_vectors(wanted.vectors, registers, self._at(i))
        names = list(dict.fromkeys(name for vector in wanted.vectors for name in vector))
        basis = [[vector.get(name, 0.0) for name in names] for vector in wanted.vectors]
        return ops.gram([registers[name] for name in names], basis, wanted.ones)

    def tensors_of(self, line: Line) -> tuple[tuple[Tensor, ...], Weights]:
        """The registers of the newest tick that `line` reads, and its weights, in one order."""
        tensors = tuple([self._registers[name] for name in line])
        return tensors, tuple([w if isinstance(w, float) else on_device(w, tensors[0].device) for w in line.values()])

    def prediction(self, i: int, x: Tensor, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Weights]:
        """`observed`, as the registers that are read and their weights."""
        return self.tensors_of(self.observed(i, x, tensors))


def mixed(line: Line, registers: Registers) -> Tensor:
    """The linear combination, float32 at least, of the shape of its registers; always a new tensor."""
    tensors = [registers[name] for name in line]
    weights = [on_device(w, tensors[0].device) for w in line.values()]
    if not any(isinstance(w, Tensor) for w in weights):
        return ops.combine((tuple(weights),), tensors)[0]  # type: ignore[arg-type]
    size, device = tensors[0].shape[0], tensors[0].device
    columns = [w if isinstance(w, Tensor) else torch.full((1,), w, dtype=torch.float64, device=device) for w in weights]
    C = torch.stack([c.double().reshape(-1).expand(size) for c in columns], dim=-1)
    return ops.combine(C.unsqueeze(1), tensors)[0]


def on_device(weight: Weight, device: torch.device) -> float | Tensor:
    """A number, or [B] float64 where images differ."""
    if not isinstance(weight, tuple):
        return weight
    if all(w == weight[0] for w in weight):
        return weight[0]
    return to_device(weight, device, torch.float64)


def static(policy: Policy | None, run: Run) -> Guided:
    """`policy` for a run whose branches and weights must be known before it begins.

    Errors: IncompatibleError for a policy that follows the data, or, where the run has no ticks yet, the tick.
    """
    policy = ConditionalOnly() if policy is None else policy
    if policy.varies == "by data" or (policy.varies == "by tick" and not run.nodes):
        what = "graph=True and adaptive solvers need" if policy.varies == "by data" else "an adaptive solver needs"
        than = "before the run begins" if policy.varies == "by data" else "and the same at all noise levels"
        raise IncompatibleError(f"{what} guidance that is known {than}, and {type(policy).__name__} is not: use "
                                "CFG(scale), or a solver with a fixed number of steps, without graph=True")  # fmt: skip
    return Guided(policy, run)


def known(guided: Guided, i: int) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """(branches, weights) of tick i under a policy that does not follow the data."""
    asked = guided.asked(i)
    line = guided.policy.weights(i, None, guided.memory)
    if not asked.uniform or set(line) != set(asked.branches):
        raise IncompatibleError(f"{type(guided.policy).__name__} evaluates other images or registers at tick {i} than "
                                "a run without memory has")  # fmt: skip
    return asked.branches, tuple(line[b] for b in asked.branches)
