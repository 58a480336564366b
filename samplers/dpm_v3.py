r"""DPM-Solver-v3: the linear part and the predicted quantity of each step come from statistics of the model.

With y = x / alpha, the statistics l, s, b (functions of lam, see dpm_v3_statistics) and

    f = (sigma eps - l x) / alpha = (1 - l) e^{-lam} eps - l x0

the probability-flow ODE is dy/dlam = -l y - f. From s to t, with A = exp(-int_{lam_s}^{lam_t} l) and, each integral
from lam_s to lam, S(lam) = int s, B(lam) = int e^{-S} b, E(lam) = exp int (l + s), its exact solution is

    y_t = A ( y_s - int E (g + B) dlam ),        g(lam) = e^{-S} f - B,        dg/dlam = e^{-S} (f^(1) - s f - b)

and order p replaces g by the polynomial through its values at p nodes, here in Newton's form with divided differences
D_k and Q_k = int E prod_{j < k} (lam - lam_j):    y_t = A ( y_s - Q_0 g_s - sum_k Q_k D_k - int E B ).

l = 1, s = b = 0 is data prediction (order 1: DDIM, 2: 2M "taylor", 3: 3M), l = 0, s = -1, b = 0 noise prediction. The
order holds for any smooth statistics; good ones make the error small. f, not g, is remembered: g is f relative to s.
Source: Zheng, Lu, Chen, Zhu 2023, arXiv:2310.13268, equations 4-16 and algorithm 2. Measured equal to the authors' code
when given its quadrature and its times, which it moves to knots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from .dpm_v3_integrals import integrals
from .dpm_v3_statistics import EmpiricalStatistics
from .engine import Network, Outputs, as_state
from .feeding import check_outputs
from .form import LinearForm
from .grids import Levels
from .guided import known, static
from .levels import Level, NoiseSchedule
from .policy import Policy, Run
from .prediction import Prediction
from .report import Report, Result, TickRecord
from .scalars import exp
from .solver import Carry, Plan, first_order, has_finite_h, one_tick_plan, remember

Number = float | Tensor  # a Tensor has the shape of one image


@dataclass(frozen=True)
class DPMv3:
    """Order 1 to 3, one evaluation a step, no corrector.

    Becomes a table if the statistics are one number a lam with b = 0; otherwise it runs through `solve_v3`, since a
    table has neither coefficients per element nor a constant column.
    A run begins with order 1. The order of the whole needs starting values as good (assumption B.6): it matters where
    the statistics, and so g, vary at the noisy end.
    pseudo: D_k is weighted with int E (lam - lam_s)^k instead (section 3.3; of order 2 at most from order 3).
    lower_order_final: the last steps ramp down to order 1.
    """

    statistics: EmpiricalStatistics
    order: int = 3
    pseudo: bool = False
    lower_order_final: bool = True
    keeps_edits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ConfigError(f"DPM-Solver-v3's order must be 1, 2 or 3, got {self.order!r}")

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        """Errors: those of the statistics for another schedule, or for levels outside their range."""
        self.statistics.check(schedule)
        for level in levels:
            if isinstance(level.lam, Tensor):
                raise IncompatibleError(
                    "DPM-Solver-v3 takes levels of plain numbers; learned levels need another solver"
                )
            if math.isfinite(level.lam):
                self.statistics.check_lam(level.lam)
        return one_tick_plan(levels, order=self.order, lower_order_final=self.lower_order_final)

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        """carry: f at earlier nodes, newest first."""
        _check_traceable(self.statistics, x)
        s, t = plan.nodes[i], plan.targets[i]
        if not has_finite_h(s, t):
            return first_order(t, p), ()
        f = nonlinear(self.statistics, s, p)
        order = min(plan.order[i], len(carry) + 1)
        older = plan.nodes[i - order + 1 : i][::-1]
        y = p.x0 + (s.sigma / s.alpha) * p.eps
        x_t = local_update(self.statistics, s, t, y, f, older, carry[: order - 1], self.pseudo)
        return x_t, remember(s, f, carry, self.order - 1)


@dataclass(frozen=True)
class DPMv3Corrected(DPMv3):
    """DPMv3 that corrects each state with the prediction made there; f is kept, so a step still costs one evaluation.

    corrector, where the prediction that led to a state was of order n:
    "pseudo": of order n + 1 in the pseudo form, the paper's choice (converges at order 2, whatever n is);
    "same": of order n, the new point in place of the oldest; a prediction of order 1 is not corrected;
    "raised": of order n + 1, and converges like it.
    correct_from: only states of at least this lam are corrected. The paper's half-corrector is the lam of t = 0.5 of 1
    ("in the time region t <= 0.5", section 3.3); released code corrects the other half, t > 0.5.
    The last state is not corrected.
    """

    corrector: Literal["pseudo", "same", "raised"] = "pseudo"
    correct_from: float = -math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corrector not in ("pseudo", "same", "raised"):
            raise ConfigError(f"corrector must be 'pseudo', 'same' or 'raised', got {self.corrector!r}")

    def step(self, plan: Plan, i: int, x: Any, p: Prediction, carry: Carry, noise: Any = None) -> tuple[Any, Carry]:
        """carry: (corrected y at the previous node, f there, older f, ...)."""
        _check_traceable(self.statistics, x)
        s, t = plan.nodes[i], plan.targets[i]
        if not (carry or has_finite_h(s, t)):
            return first_order(t, p), ()
        f, history = nonlinear(self.statistics, s, p), carry[1:]
        y = self.correct(plan, i, carry[0], f, history) if carry else None
        y = p.x0 + (s.sigma / s.alpha) * p.eps if y is None else y
        if not has_finite_h(s, t):
            l = _number(self.statistics.at(float(s.lam))[0], f)  # noqa: E741
            scaled_eps = f + l * y  # e^{-lam} eps of the corrected state, f kept
            return t.alpha * (y - scaled_eps) + (t.sigma * s.alpha / s.sigma) * scaled_eps, ()
        order = min(plan.order[i], len(history) + 1)
        older = plan.nodes[i - order + 1 : i][::-1]
        x_t = local_update(self.statistics, s, t, y, f, older, history[: order - 1], self.pseudo)
        return x_t, (y, f, *history)[: self.order + 1]

    def correct(self, plan: Plan, i: int, y: Any, f_t: Any, history: Carry) -> Any:
        """y at plan.nodes[i] again, from y at the previous node and the new f_t; None where it stays as it is."""
        s, t = plan.nodes[i - 1], plan.nodes[i]
        used = min(plan.order[i - 1], len(history))  # the order of the prediction that is corrected
        order = used if self.corrector == "same" else used + 1
        if order < 2 or float(t.lam) < self.correct_from:
            return None
        others = (t, *plan.nodes[i - order + 1 : i - 1][::-1])
        values = (f_t, *history[1 : order - 1])
        x_t = local_update(self.statistics, s, t, y, history[0], others, values, self.corrector == "pseudo")
        return x_t / t.alpha


def nonlinear(statistics: EmpiricalStatistics, s: Level, p: Prediction) -> Any:
    """f = (1 - l) e^{-lam} eps - l x0 at the level s, of x's shape."""
    l = _number(statistics.at(float(s.lam))[0], p.x0)  # noqa: E741
    return ((1.0 - l) * (s.sigma / s.alpha)) * p.eps - l * p.x0


def local_update(
    statistics: EmpiricalStatistics,
    s: Level,
    t: Level,
    y: Any,
    f: Any,
    others: Sequence[Level],
    values: Sequence[Any],
    pseudo: bool,
) -> Any:
    """x at t from y = x / alpha and f at s, and the values of f at other nodes (equations 12-16).

    others: earlier nodes, nearest first, for a prediction; for a correction t itself comes before them.
    """
    c = coefficients(statistics, float(s.lam), float(t.lam), tuple(float(o.lam) for o in others), pseudo).like(f)
    column = [f]
    for value, scale, bias in zip(values, c.scales, c.biases, strict=True):
        column.append(scale * value - bias if statistics.biased else scale * value)
    total = c.Q[0] * f
    for k in range(1, len(column)):  # column becomes the divided differences of order k
        column = [(a - b) / d for a, b, d in zip(column, column[1:], c.spans[k - 1], strict=False)]
        total = total + c.Q[k] * column[0]
    bracket = y - total - c.Z if statistics.biased else y - total
    return (t.alpha * c.A) * bracket


class Coefficients(NamedTuple):
    """What a step multiplies with: floats, or tensors of one image's shape.

    A, Q, Z (= int E B): see above.       scales, biases: g at the other nodes is scale f - bias.
    spans: [k - 1][j] = lam_j - lam_{j + k} for the divided differences of order k.
    """

    A: Number
    Q: tuple[Number, ...]
    Z: Number
    scales: tuple[Number, ...]
    biases: tuple[Number, ...]
    spans: tuple[tuple[float, ...], ...]

    def like(self, x: Any) -> Coefficients:
        """Tensors in x's dtype and on its device."""
        A, Z = _number(self.A, x), _number(self.Z, x)
        lists = (tuple(_number(v, x) for v in values) for values in (self.Q, self.scales, self.biases))
        Q, scales, biases = lists
        return Coefficients(A, Q, Z, scales, biases, self.spans)


def coefficients(
    statistics: EmpiricalStatistics, lam_s: float, lam_t: float, others: tuple[float, ...], pseudo: bool
) -> Coefficients:
    """The coefficients of a step from lam_s to lam_t that also reads f at the lams `others`."""
    nodes = (lam_s, *others)
    roots = tuple((lam_s,) * k if pseudo else nodes[:k] for k in range(len(nodes)))
    whole = integrals(statistics, lam_s, lam_t, roots)
    parts = [integrals(statistics, lam_s, lam) for lam in others]
    spans = tuple(tuple(a - b for a, b in zip(nodes, nodes[k:], strict=False)) for k in range(1, len(nodes)))
    return Coefficients(
        A=exp(-whole.L),
        Q=whole.Q,
        Z=whole.Z,
        scales=tuple(exp(-part.S) for part in parts),
        biases=tuple(part.B for part in parts),
        spans=spans,
    )


def _number(value: Number, x: Any) -> Number:
    """A coefficient that x can be multiplied with: a float, or a tensor in x's dtype and on its device."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0:
        return float(value)
    return value.to(x) if isinstance(x, Tensor) else value


def _check_traceable(statistics: EmpiricalStatistics, x: Any) -> None:
    if isinstance(x, LinearForm) and (statistics.shape or statistics.biased):
        what = f"coefficients of shape {statistics.shape}" if statistics.shape else "a bias b, which is a constant,"
        raise IncompatibleError(
            f"DPM-Solver-v3 with {what} cannot become a table, which has one number for each vector; run it with "
            "solve_v3(solver, network, levels, x), or trace it with statistics.mean().without_bias()"
        )


@torch.no_grad()
def solve_v3(solver: DPMv3, network: Network, levels: Levels, x: Tensor, *, guidance: Policy | None = None) -> Result:
    """Run `solver` over `levels` from x (B, ...) without a table: for statistics per element or with a bias.

    Half precision becomes float32.       Errors: those of `DPMv3.plan`; IncompatibleError for an x whose images do not
    have the statistics' shape, or for outputs that are not one tensor of x's shape per branch.
    """
    shape = solver.statistics.shape
    if shape and tuple(x.shape[1:]) != shape:
        raise IncompatibleError(f"the statistics are for images of shape {shape}, x has {tuple(x.shape[1:])}; "
                                "estimate them at this size, or use statistics.mean()")  # fmt: skip
    x = as_state(x)
    plan, report = solver.plan(levels, network.schedule), Report(batch=x.shape[0])
    guided = static(guidance, Run(x.shape[0], plan.nodes, plan.step, plan.stage, network.parametrisation))
    carry: Carry = ()
    for i, level in enumerate(plan.nodes):
        clock = time.perf_counter()
        branches, weights = known(guided, i)
        tensors = network(x, level, branches)
        check_outputs(tensors, branches, x)
        outputs = Outputs(x, level, tensors, network.parametrisation, weights)
        x, carry = solver.step(plan, i, x, Prediction(outputs.x0, outputs.eps), carry)
        report.ticks.append(TickRecord(i, level, branches, 1e3 * (time.perf_counter() - clock)))
    return Result(x, report)
