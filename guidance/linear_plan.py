r"""Where LinearAG should evaluate u: chosen from one pass of fully guided runs, and fitted from the same pass.

The gains of a frozen difference (DeltaReuse) come from the same pass.

At every tick t the pass keeps the inner products of all predictions up to there (linear_fit). They give the residual
|u_t - u^_t|^2 of any line, so any choice of the ticks that evaluate u has the cost

    sum over estimated t of  v_t d_t^2 |u_t - u^_t|^2 / n,        eps = c_t x + d_t out,        v_t = 1 - t / T:

the error in the noise prediction, whatever the network predicts, times the part of the run that it acts on. The weight
v is our choice, others can be given. Ticks are taken away one by one, each time the one whose loss costs least, until
as many are left as may be evaluated. The order in which that is done makes it a good choice, not the best one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import ConfigError
from ..samplers.policy import Policy
from .delta_reuse import DeltaReuse
from .linear import Kind, LinearAG
from .linear_fit import Batch, Inner, LinearFit, Recorder, record, regressors, residual, solved
from .scale import Scale, check_scales
from .steps import whole_steps


class Recorded(NamedTuple):
    """inner: of every tick but the first, over all predictions up to it.       scale: w of the runs.

    noise: d^2 of every tick; 0 of the first, which is never estimated.       step: of every tick.
    """

    inner: dict[int, Inner]
    noise: tuple[float, ...]
    step: tuple[int, ...]
    scale: Scale


def record_linear(
    run: Callable[[Policy, Batch], object],
    batches: Sequence[Batch],
    ticks: int,
    *,
    scale: Scale = None,
    progress: Callable[[int, int], object] | None = None,
) -> Recorded:
    """One pass of runs with u evaluated at all of `ticks` ticks.

    run, batches, scale, progress and errors: see linear_fit.fit_linear. Memory on the device: two outputs per tick.
    """
    kinds: tuple[Kind, ...] = ("cfg",) * ticks
    measured = {t: regressors(t, kinds) for t in range(1, ticks)}
    if not batches or not measured:
        raise ConfigError(f"to record takes one batch and two ticks at least, got {len(batches)} and {ticks}")
    recorder = Recorder(kinds, {}, measured, check_scales(scale))
    record(recorder, run, batches, progress)
    inner = {t: recorder.inner(t) for t in measured}
    seen = recorder.seen
    assert seen is not None
    noise = tuple(float(seen.parametrisation.eps_row(seen.nodes[t])[1]) ** 2 for t in measured)
    return Recorded(inner, (0.0, *noise), tuple(seen.step), recorder.scale)


def choose_kinds(
    recorded: Recorded, evaluated: int, *, ridge: float = 1e-6, weights: Sequence[float] | None = None
) -> tuple[Kind, ...]:
    """The plan that evaluates u at `evaluated` ticks, the first among them, and estimates it at all others.

    weights: v per tick.       ridge: lambda of the fits.
    """
    T = len(recorded.noise)
    if not 1 <= evaluated <= T:
        raise ConfigError(f"of {T} ticks from 1 to all can evaluate u, got {evaluated!r}")
    v = [1.0 - t / T for t in range(T)] if weights is None else list(weights)
    if len(v) != T:
        raise ConfigError(f"choose_kinds got {len(v)} weights, one per tick, for {T} ticks")
    known: dict[tuple[int, tuple[int, ...]], float] = {}

    def cost(ticks: tuple[int, ...]) -> float:
        total = 0.0
        for t in sorted(set(range(T)) - set(ticks)):
            key = (t, tuple(k for k in ticks if k < t))
            if key not in known:
                known[key] = squared_error(recorded.inner[t], _names(*key), ridge)
            total += v[t] * recorded.noise[t] * known[key]
        return total

    left = tuple(range(T))
    while len(left) > evaluated:
        left = min((tuple(k for k in left if k != gone) for gone in left[1:]), key=cost)
    return tuple("cfg" if t in left else "linear" for t in range(T))


def fit_recorded(
    recorded: Recorded, kinds: Sequence[Kind], *, window: int | None = None, ridge: float = 1e-6
) -> LinearFit:
    """LinearAG of this plan, fitted off policy from what was recorded: no more runs. See linear_fit.fit_linear."""
    if len(kinds) != len(recorded.noise):
        raise ConfigError(f"{len(kinds)} kinds, one per tick, for {len(recorded.noise)} recorded ticks")
    inner = {t: recorded.inner[t] for t, kind in enumerate(kinds) if kind == "linear" and t}
    lines = {t: solved(found, ridge, regressors(t, kinds, window)) for t, found in inner.items()}
    policy = LinearAG(lines, tuple(kinds), recorded.scale)
    return LinearFit(policy, {t: residual(found, lines[t]) for t, found in inner.items()}, inner)


def squared_error(inner: Inner, names: Sequence[str], ridge: float) -> float:
    """|u - u^|^2 per element of the line that is fitted over `names`."""
    return residual(inner, solved(inner, ridge, names)).of_uncond ** 2 * float(inner.matrix[-1, -1])


def _names(t: int, evaluated: tuple[int, ...]) -> tuple[str, ...]:
    return regressors(t, tuple("cfg" if k in evaluated else "linear" for k in range(t)))


def fit_gains(recorded: Recorded, stop: float) -> DeltaReuse:
    """DeltaReuse of this `stop` whose gains are least squares along the recorded runs, one per step.

    g = sum_t <c_t - u_t, delta> / sum_t |delta|^2 over the ticks t of a step; 1 for the guided steps, which use none.
    """
    steps = recorded.step[-1] + 1
    kept = max(i for i, step in enumerate(recorded.step) if step < max(1, whole_steps(stop, steps)))
    products, sizes = [0.0] * steps, [0.0] * steps
    for t in range(kept + 1, len(recorded.step)):
        names, G, _ = recorded.inner[t]
        c, u, c_k, u_k = (names.index(name) for name in ("cond", "uncond", f"cond@{kept}", f"uncond@{kept}"))
        products[recorded.step[t]] += float(G[c, c_k] - G[c, u_k] - G[u, c_k] + G[u, u_k])
        sizes[recorded.step[t]] += float(G[c_k, c_k] - 2.0 * G[c_k, u_k] + G[u_k, u_k])
    gains = tuple(p / s if s > 0.0 else 1.0 for p, s in zip(products, sizes, strict=True))
    return DeltaReuse(recorded.scale, stop, gains)
