"""The Brownian tape: its law, exactly, and what it is for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.samplers import (
    EDM,
    FLOW,
    X0,
    BrownianTape,
    DPMpp2SAncestral,
    DPMppSDE,
    NoiseTape,
    RectifiedFlow,
    SDEDPMpp2M,
    edm,
    karras,
    level_at,
    solve,
    trace,
    uniform_lambda,
    uniform_time,
)
from fewstep.samplers.brownian import DEPTH, clock, increment, path

from .problems import Mixture
from .solver_rows import DOUBLE, VP, relative, states

GRIDS = [uniform_lambda(VP, 50), karras(EDM(), 200), uniform_time(RectifiedFlow(), 10)]


@pytest.mark.parametrize("levels", GRIDS, ids=["vp", "edm", "flow"])
def test_its_covariance_is_brownian(levels):
    """Cov(W(a), W(b)) = min(a, b) for all pairs, and increments are independent standard normals, without sampling."""
    times = [clock(level) for level in levels]
    for a, b in itertools.combinations_with_replacement(times, 2):
        assert abs(product(path(a), path(b)) - min(a, b)) < 1e-13
    steps = [dict(increment(a, b)) for a, b in itertools.pairwise(times)]
    for i, j in itertools.combinations_with_replacement(range(len(steps)), 2):
        assert abs(product(steps[i], steps[j]) - (i == j)) < 1e-10  # rounding, over the root of the shortest step
    assert max(len(step) for step in steps) <= 2 * DEPTH + 3


def product(a, b):
    return math.fsum(weight * b[node] for node, weight in a.items() if node in b)


def test_increments_add_up():
    """W(a, c) = W(a, b) + W(b, c): the tape draws what the weights say, in float64 up to the normals' own rounding."""
    tape, x = BrownianTape((3, 4)), torch.zeros(2, 5, 7, dtype=DOUBLE)
    a, b, c = uniform_lambda(VP, 7)[2:5]
    u = [clock(level) for level in (a, b, c)]
    parts = math.sqrt(u[0] - u[1]) * tape.normal(0, a, b, x) + math.sqrt(u[1] - u[2]) * tape.normal(1, b, c, x)
    assert relative(parts, math.sqrt(u[0] - u[2]) * tape.normal(0, a, c, x)) < 1e-14


def test_an_image_is_the_same_in_any_batch():
    s, t = uniform_lambda(VP, 7)[2:4]
    x = torch.zeros(3, 4, 8, 8)
    batch = BrownianTape((7, 8, 1 << 62)).normal(5, s, t, x)
    assert batch.dtype == torch.float32 and batch.shape == x.shape
    for k, seed in enumerate((7, 8, 1 << 62)):
        assert torch.equal(BrownianTape((seed,)).normal(0, s, t, x[:1])[0], batch[k])


def test_samples_are_standard_normal():
    count = 40_000
    levels = uniform_lambda(VP, 5)
    tape, x = BrownianTape((11,)), torch.zeros(1, count)
    z = torch.cat([tape.normal(0, s, t, x).double() for s, t in itertools.pairwise(levels)])
    assert torch.all(z.mean(1).abs() < 4 / math.sqrt(count))
    error = (torch.cov(z) - torch.eye(5, dtype=DOUBLE)).abs()
    assert torch.all(error < 4 * math.sqrt(2 / count))


@pytest.mark.parametrize(("solver", "order"), [(SDEDPMpp2M(), 0.9), (DPMppSDE(), 0.6)], ids=["sde-2m", "dpmpp-sde"])
def test_the_same_seed_settles_on_the_same_picture(solver, order):
    """As n doubles a seed's samples move less and less (at order 1 in the end: 1.0 and 0.9 measured at n = 64); with
    noise keyed by the tick they stay as far apart as those of other seeds."""
    x, gap = states(1, 512), {}
    for kind in (BrownianTape, NoiseTape):
        ends = []
        for n in (4, 8, 16, 32):
            table = trace(solver, tuple(level_at(VP, -2.0 + 3.5 * k / n) for k in range(n + 1)), VP)
            ends.append(solve(table, Mixture(VP, X0), x, tape=kind((5,))).x)
        gap[kind] = [float((a - b).square().mean().sqrt()) for a, b in itertools.pairwise(ends)]
    assert math.log2(gap[BrownianTape][0] / gap[BrownianTape][-1]) / 2 > order
    assert gap[NoiseTape][-1] > 0.5


@pytest.mark.parametrize("problem", [(RectifiedFlow(), FLOW), (EDM(), edm())], ids=["flow", "edm"])
def test_both_ends(problem):
    """alpha = 0 at the start, sigma = 0 at the end."""
    schedule, parametrisation = problem
    table = trace(DPMppSDE(), uniform_time(schedule, 6), schedule)
    x = float(schedule.noisiest.sigma) * states(2, 16)
    assert bool(solve(table, Mixture(schedule, parametrisation), x, tape=BrownianTape((1, 2))).x.isfinite().all())


def test_what_it_has_no_noise_for():
    levels = uniform_lambda(VP, 4)
    tape, x = BrownianTape((1,)), torch.zeros(1, 3)
    with pytest.raises(ConfigError, match="must fall"):
        tape.normal(0, levels[1], levels[0], x)
    with pytest.raises(ConfigError, match="NoiseTape"):  # an ancestral step of eta = 1 ends where its inner node is
        solve(trace(DPMpp2SAncestral(), levels, VP), Mixture(VP), states(1, 3), tape=tape)
    with pytest.raises(ConfigError, match="1 seeds for a batch of 2"):
        tape.normal(0, levels[0], levels[1], torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="seed"):
        BrownianTape((-1,))
