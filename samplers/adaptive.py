r"""DPM-Solver-12 and DPM-Solver-23: steps whose length follows the error, image by image.

A step from s to t = lam_s + h is made twice from the same evaluations, x_low of order k - 1 and x_high of order k
(k = 2: orders 1 and 2, r1 = 1/2; k = 3: orders 2 and 3, r1 = 1/3, r2 = 2/3). With

    delta = max(atol, rtol max(|x_low|, |x_prev|)),        E = RMS((x_high - x_low) / delta)

it is accepted where E <= 1, and the next h is theta h E^{-1/k}, or with a PID controller theta h times
E_n^{-(p + i + d)/k} E_{n-1}^{(p + 2 d)/k} E_{n-2}^{-d/k} over accepted steps; after a rejected one its own E alone
counts, so that the next is shorter. Every image has its own E and h, so its picture does not
depend on its batch. x_prev is x_low of the last accepted step. A rejected step keeps m0 and pays for the others.
Source: Lu et al. 2022, arXiv:2206.00927, appendix (adaptive step size); the PID controller follows k-diffusion by
Katherine Crowson, https://github.com/crowsonkb/k-diffusion, with this rule of acceptance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError, NumericsError
from ..kernels import ops
from .engine import Network, as_state
from .exponential import DATA, NOISE, Space, first_order_from
from .form import LinearForm
from .guided import known, static
from .levels import Level, NoiseSchedule, level_at
from .per_image import PerImage
from .phi import g
from .policy import Policy, Run
from .report import Result
from .singlestep import THIRDS, place, second_order, third_order_inner

_GROWTH = 5.0  # a step is at most this much longer, or shorter, than the last one


@dataclass(frozen=True)
class AdaptiveDPM:
    """Adaptive steps in noise prediction, as in the paper. Run it with `solve(AdaptiveDPM(), network, x)`.

    order: 2 (the pair 1, 2) or 3 (2, 3).
    atol, rtol: tolerances of a step, in units of x.       h_init: the first step in lam.
    theta: safety factor.       pid: (p, i, d) of the controller; (0, 1, 0) is the plain one.
    h_min: a step this short in lam is accepted whatever its error; the report counts them as forced.
    max_evaluations: of one image and branch; beyond it the run stops with a NumericsError.
    to_zero: end with the first-order step to sigma = 0 from the cleanest level, one evaluation more.
    """

    order: int = 3
    atol: float = 0.0078
    rtol: float = 0.05
    h_init: float = 0.05
    theta: float = 0.9
    pid: tuple[float, float, float] = (0.0, 1.0, 0.0)
    h_min: float = 1e-4
    max_evaluations: int = 1000
    to_zero: bool = True
    space: ClassVar[Space] = NOISE

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ConfigError(f"the order of an adaptive solver must be 2 or 3, got {self.order!r}")
        for name in ("atol", "rtol", "h_init", "h_min"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        if not 0.0 < self.theta < 1.0:
            raise ConfigError(f"theta must lie between 0 and 1, got {self.theta!r}")
        if len(self.pid) != 3 or not all(math.isfinite(c) for c in self.pid) or sum(self.pid) <= 0.0:
            raise ConfigError(f"pid must be three numbers with a positive sum, got {self.pid!r}")
        if self.max_evaluations < self.order + 1:
            raise ConfigError(f"max_evaluations must be at least {self.order + 1}, got {self.max_evaluations!r}")

    def run(self, network: Network, x: Tensor, *, guidance: Policy | None = None, begin: Level | None = None) -> Result:
        """From x (B, ...) at `begin` (default: the schedule's noisiest level) to sigma = 0, or the cleanest level.

        guidance: a policy whose branches do not depend on the tick; it is asked once.
        Errors: ConfigError where begin is below the end; NumericsError for a prediction that is no number, and beyond
        max_evaluations, naming image and level.
        """
        return _Run(self, network, x, guidance, begin).to_the_end()

    def nodes(self, schedule: NoiseSchedule, s: Level, t: Level) -> tuple[Level, ...]:
        """The inner nodes of a step."""
        places = (0.5,) if self.order == 2 else THIRDS
        return tuple(level_at(schedule, float(s.lam + r * (t.lam - s.lam))) for r in places)

    def pair(self, s: Level, inner: tuple[Level, ...], t: Level, x: Any, m: tuple[Any, ...]) -> tuple[Any, Any]:
        """(x_low, x_high) at t."""
        if self.order == 2:
            return (
                first_order_from(self.space, s, t, x, m[0]),
                second_order(self.space, s, inner[0], t, x, m[0], m[1], "midpoint"),
            )
        weight = self.space.A(t) * g(1, self.space.z(t.lam - s.lam)) / place(s, inner[1], t)
        high = first_order_from(self.space, s, t, x, m[0]) - weight * (m[2] - m[0])
        return second_order(self.space, s, inner[0], t, x, m[0], m[1], "midpoint"), high

    def stage(self, s: Level, inner: tuple[Level, ...], k: int, x: Any, m: tuple[Any, ...]) -> Any:
        """The state at inner node k."""
        if k == 0:
            return first_order_from(self.space, s, inner[0], x, m[0])
        return third_order_inner(self.space, s, inner[0], inner[1], x, m[0], m[1])

    def factor(self, errors: tuple[float, float, float]) -> float:
        """How much longer the next step is, from the last errors, newest first."""
        p, i, d = self.pid
        exponents = (-(p + i + d), p + 2.0 * d, -d)
        log = sum(c * math.log(max(e, 1e-8)) for c, e in zip(exponents, errors, strict=True)) / self.order
        return min(max(self.theta * math.exp(min(log, 50.0)), 1.0 / _GROWTH), _GROWTH)


@dataclass(frozen=True)
class AdaptiveDPMpp(AdaptiveDPM):
    """AdaptiveDPM in data prediction."""

    space: ClassVar[Space] = DATA


@dataclass
class AdaptiveReport:
    """What an adaptive run did. Lists have one entry per image.

    accepted, rejected, forced: steps; forced ones are accepted at h_min with E > 1.
    ticks: evaluations of one branch.       lams: where the accepted steps ended.
    """

    branches: tuple[str, ...]
    accepted: list[int]
    rejected: list[int]
    forced: list[int]
    ticks: list[int]
    lams: list[list[float]] = field(repr=False)
    evaluations: int = 0

    @property
    def batch(self) -> int:
        return len(self.ticks)

    @property
    def nfe_per_image(self) -> list[int]:
        return [len(self.branches) * n for n in self.ticks]

    @property
    def nfe_per_branch(self) -> dict[str, tuple[int, ...]]:
        """Per image: how often each branch was evaluated."""
        return {branch: tuple(self.ticks) for branch in self.branches}

    @property
    def nfe(self) -> int:
        """Image rows x branches over the whole batch, rejected steps included."""
        return sum(self.nfe_per_image)

    def __str__(self) -> str:
        steps = zip(self.accepted, self.rejected, strict=True)
        each = ", ".join(f"{done} accepted and {again} rejected" for done, again in steps)
        return f"{self.evaluations} evaluations, {self.nfe / max(self.batch, 1):.4g} NFE an image\n  steps: {each}"


class _Run:
    """The state of an adaptive run: lists by image, and x, x_prev, m0 of the whole batch."""

    def __init__(
        self, solver: AdaptiveDPM, network: Network, x: Tensor, guidance: Policy | None, begin: Level | None
    ) -> None:
        self.solver, self.schedule = solver, network.schedule
        size = x.shape[0]
        self.branches, weights = known(static(guidance, Run(size, (), (), (), network.parametrisation)), 0)
        self.evaluate = PerImage(network, self.branches, weights, solver.space, size)
        self.x = as_state(x).clone()
        self.prev, self.m0 = self.x.clone(), torch.zeros_like(self.x)
        self.stale = [True] * size
        self.end = self.schedule.cleanest
        s = self.schedule.noisiest if begin is None else begin
        if float(s.lam) >= float(self.end.lam):
            raise ConfigError(f"the run begins at {s}, which is not above its end, {self.end}")
        self.levels = [s] * size
        self.h = [solver.h_init] * size
        self.errors = [(1.0, 1.0, 1.0)] * size
        self.report = AdaptiveReport(
            self.branches, [0] * size, [0] * size, [0] * size, [0] * size, [[] for _ in range(size)]
        )

    @torch.no_grad()
    def to_the_end(self) -> Result:
        if float(self.levels[0].alpha) == 0.0:  # lam is infinite: the first finite level is one first-order step away
            self.first_order_all(level_at(self.schedule, -float(self.end.lam)))
        while active := [k for k, s in enumerate(self.levels) if s is not self.end]:
            self.attempt(active)
        if self.solver.to_zero:
            self.first_order_all(self.schedule.clean)
        return Result(self.x, self.report)  # type: ignore[arg-type]

    def first_order_all(self, t: Level) -> None:
        """One first-order step of every image to t, by x0 and eps themselves: alpha = 0 and sigma = 0 are allowed."""
        everyone = list(range(len(self.levels)))
        x0, eps = self.evaluate.x0_eps(self.x, self.levels, everyone)
        self.count(everyone)
        self.x = ops.combine(((float(t.alpha), float(t.sigma)),), (x0, eps))[0] if float(t.sigma) else x0
        self.prev = self.x.clone()
        self.levels, self.stale = [t] * len(everyone), [True] * len(everyone)

    def attempt(self, active: list[int]) -> None:
        """One step of every active image, accepted or rejected."""
        fresh = [k for k in active if self.stale[k]]
        if fresh:
            rows = self.rows(fresh)
            self.m0[rows] = self.evaluate.m(self.x[rows], [self.levels[k] for k in fresh], fresh)
            self.count(fresh)
        rows = self.rows(active)
        x, levels = self.x[rows], [self.levels[k] for k in active]
        targets = [self.target(k) for k in active]
        inner = [self.solver.nodes(self.schedule, s, t) for s, t in zip(levels, targets, strict=True)]
        m = [self.m0[rows]]
        for stage in range(self.solver.order - 1):
            forms = [(self.solver.stage(*step, stage, *names(stage + 1)),) for step in zip(levels, inner, strict=True)]
            (u,) = apply(forms, x, m)
            m.append(self.evaluate.m(u, [nodes[stage] for nodes in inner], active))
            self.count(active)
        pairs = [self.solver.pair(*step, *names(len(m))) for step in zip(levels, inner, targets, strict=True)]
        low, high = apply(pairs, x, m)
        self.decide(active, targets, low, high, self.prev[rows])

    def target(self, k: int) -> Level:
        """Where the next step of image k ends; the last one ends on the end itself."""
        lam, end = float(self.levels[k].lam), float(self.end.lam)
        return self.end if lam + self.h[k] >= end - self.solver.h_min else level_at(self.schedule, lam + self.h[k])

    def decide(self, active: list[int], targets: list[Level], low: Tensor, high: Tensor, prev: Tensor) -> None:
        """Accept or reject, image by image, and choose the next h."""
        delta = torch.maximum(low.abs(), prev.abs()).mul(self.solver.rtol).clamp(min=self.solver.atol)
        E = ((high - low) / delta).double().square().reshape(len(active), -1).mean(1).sqrt().tolist()
        accepted = []
        for j, (k, error, t) in enumerate(zip(active, E, targets, strict=True)):
            s = self.levels[k]
            if not math.isfinite(error):
                raise NumericsError(f"the network's prediction for image {k} is no finite number near time "
                                    f"{float(s.time):.4g}")  # fmt: skip
            h = float(t.lam) - float(s.lam)
            forced = error > 1.0 and self.h[k] <= self.solver.h_min
            if error <= 1.0 or forced:
                accepted.append(j)
                self.levels[k], self.stale[k] = t, True
                self.report.accepted[k] += 1
                self.report.forced[k] += forced
                self.report.lams[k].append(float(t.lam))
            else:
                self.stale[k] = False
                self.report.rejected[k] += 1
            newest, kept = (error, *self.errors[k][:2]), error <= 1.0 or forced
            factor = self.solver.factor(newest if kept else (error, error, error))
            self.h[k] = max(h * factor, self.solver.h_min)
            self.errors[k] = newest if kept else self.errors[k]
            if self.levels[k] is not self.end:
                self.check_budget(k)
        if accepted:
            where, rows = self.rows(accepted), self.rows([active[j] for j in accepted])
            self.x[rows], self.prev[rows] = high[where], low[where]

    def check_budget(self, k: int) -> None:
        """NumericsError where another step and the last one would cost image k more than it may."""
        used, budget = self.report.ticks[k], self.solver.max_evaluations
        if used + self.solver.order + self.solver.to_zero > budget:
            raise NumericsError(f"image {k} used {used} of max_evaluations={budget} and stands at time "
                                f"{float(self.levels[k].time):.4g}: give a larger rtol and atol, or max_evaluations "
                                "(as in the solver's name adaptive-23:rtol=0.1)")  # fmt: skip

    def count(self, images: list[int]) -> None:
        for k in images:
            self.report.ticks[k] += 1
        self.report.evaluations = self.evaluate.calls

    def rows(self, images: list[int]) -> Tensor:
        return torch.tensor(images, device=self.x.device)


def names(count: int) -> tuple[LinearForm, tuple[LinearForm, ...]]:
    """The registers x and m0, m1, ... to trace a formula with."""
    return LinearForm.register("x"), tuple(LinearForm.register(f"m{k}") for k in range(count))


def apply(forms: list[tuple[LinearForm, ...]], x: Tensor, m: list[Tensor]) -> tuple[Tensor, ...]:
    """forms: per image the same number of forms over x, m0, m1, ...; each output has the shape of x."""
    registers = ("x", *(f"m{k}" for k in range(len(m))))
    C = [[[float(form.terms.get(name, 0.0)) for name in registers] for form in row] for row in forms]
    return ops.combine(torch.tensor(C, dtype=torch.float64, device=x.device), (x, *m))
