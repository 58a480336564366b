"""Where LinearAG evaluates u: one pass gives the plan and its coefficients."""

from itertools import combinations

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.linear import kinds_alternating, kinds_leading
from fewstep.guidance.linear_fit import Inner, fit_linear, regressors
from fewstep.guidance.linear_plan import Recorded, choose_kinds, fit_gains, fit_recorded, record_linear
from fewstep.samplers import EPS, FLOW, X0, DPMpp2S, V, solve

from .gaussians import SCALE, anisotropic, distance, normal, problem

STEPS = 8


def recorded(kind=EPS, seed=5):
    table, held, run = problem(kind, variances=anisotropic(seed), steps=STEPS)
    return table, held, run, record_linear(run, (10, 11), STEPS, scale=SCALE)


def test_one_pass_gives_what_the_fit_gives():
    _, _, run, found = recorded()
    for kinds, window in ((kinds_alternating(STEPS), None), (kinds_leading(STEPS, 3), 2)):
        expected = fit_linear(run, (10, 11), kinds, scale=SCALE, window=window, on_policy=False)
        fit = fit_recorded(found, kinds, window=window)
        assert fit.policy.kinds == expected.policy.kinds and fit.policy.scale == SCALE
        for t, line in expected.policy.coefficients.items():
            names = [f"{branch}@{k}" if k < t else branch for k in range(t + 1) for branch in ("cond", "uncond")]
            mine = [fit.policy.coefficients[t].get(n, 0.0) for n in names]
            assert mine == pytest.approx([line.get(n, 0.0) for n in names], rel=1e-6, abs=1e-9)
            assert fit.residuals[t] == pytest.approx(expected.residuals[t], rel=1e-6)


def total(found, kinds, weights):
    fit = fit_recorded(found, kinds)
    u = {t: float(inner.matrix[-1, -1]) for t, inner in fit.inner.items()}
    return sum(weights[t] * found.noise[t] * u[t] * r.of_uncond**2 for t, r in fit.residuals.items())


@pytest.mark.parametrize("kind", (EPS, V), ids=lambda kind: kind.name)
def test_the_choice_is_nearly_the_best(kind):
    """Of all plans with as many evaluations it is among the best tenth by its own cost."""
    _, _, _, found = recorded(kind)
    weights = [1.0 - t / STEPS for t in range(STEPS)]
    plans = [tuple("cfg" if t in (0, *rest) else "linear" for t in range(STEPS))
             for rest in combinations(range(1, STEPS), 3)]  # fmt: skip
    costs = sorted(total(found, plan, weights) for plan in plans)
    mine = total(found, choose_kinds(found, 4), weights)
    assert costs[0] <= mine * (1 + 1e-9) and mine <= costs[len(costs) // 10]
    assert mine < 0.5 * costs[len(costs) // 2]


def test_a_chosen_plan_beats_the_others_in_a_run():
    """On prompts that were not recorded, at equal cost, against fully guided runs."""
    table, held, _, found = recorded()
    network, x = held(99)
    full = solve(table, network, x, guidance=CFG(SCALE)).x

    def error(kinds):
        policy = fit_recorded(found, kinds).policy
        result = solve(table, network, x, guidance=policy)
        assert result.report.nfe_per_image[0] == STEPS + kinds.count("cfg")
        return distance(result.x, full)

    chosen = error(choose_kinds(found, 3))
    assert chosen < 0.5 * min(error(kinds_alternating(STEPS, 6)), error(kinds_leading(STEPS, 3)))


def test_all_and_one():
    _, _, _, found = recorded()
    assert choose_kinds(found, STEPS) == ("cfg",) * STEPS
    assert choose_kinds(found, 1) == ("cfg",) + ("linear",) * (STEPS - 1)
    late = choose_kinds(found, 2, weights=[0.0] * (STEPS - 1) + [1.0])
    assert late[-1] == "cfg"  # the only tick that counts
    first = choose_kinds(found._replace(noise=(0.0, 1.0) + (0.0,) * (STEPS - 2)), 2)
    assert first[1] == "cfg"


def test_the_default_weights():
    _, _, _, found = recorded()
    falling = [1.0 - t / STEPS for t in range(STEPS)]
    plans = [choose_kinds(found, 6, weights=weights) for weights in (None, falling, falling[::-1])]
    assert plans[0] == plans[1] != plans[2]


def test_weights_are_in_noise():
    """The squared factor from an output to the noise prediction, at every tick but the first."""
    for kind in (EPS, X0, FLOW):
        table, _, _, found = recorded(kind)
        rows = [float(kind.eps_row(node)[1]) ** 2 for node in table.plan.nodes[1:]]
        assert found.noise == pytest.approx((0.0, *rows))


def test_gains_of_a_frozen_difference():
    """Against least squares on the recorded outputs; two ticks of a step of 2S share a gain."""
    table, held, run = problem(solver=DPMpp2S(), variances=anisotropic(5), steps=4)
    policy = fit_gains(record_linear(run, (10, 11), len(table), scale=SCALE), 0.5)
    logs = []
    for seed in (10, 11):
        network, x = held(seed)
        solve(table, network, x, guidance=CFG(SCALE))
        logs.append([call["cond"] - call["uncond"] for call in network.log])
    kept, *rest = (torch.cat([log[i] for log in logs]) for i in range(3, 7))
    two = torch.stack(rest[:2])
    expected = ((two * kept).sum() / (2 * kept * kept).sum(), (rest[2] * kept).sum() / (kept * kept).sum())
    assert policy.gain == pytest.approx((1.0, 1.0, *map(float, expected)), rel=1e-9)
    assert abs(policy.gain[2] - 1.0) > 1e-3
    fitted, plain = (solve(table, *held(99), guidance=p).x for p in (policy, DeltaReuse(SCALE)))
    full = solve(table, *held(99), guidance=CFG(SCALE)).x
    assert distance(fitted, full) < distance(plain, full)


def test_gains_begin_where_the_policy_freezes():
    """0.58 of 50 steps are 29, though the product is below: delta is that of step 28, here by numbers for pictures."""
    c, u = normal(2, 50, seed=1)
    inner = {}
    for t in range(1, 50):
        names = (*regressors(t, ("cfg",) * 50), "uncond")
        branches = (name.partition("@") for name in names)  # "cond" is this tick's, "cond@3" of tick 3
        v = torch.stack([(c if branch == "cond" else u)[int(k or t)] for branch, _, k in branches])
        inner[t] = Inner(names, torch.outer(v, v), 1)
    policy = fit_gains(Recorded(inner, (1.0,) * 50, tuple(range(50)), SCALE), 0.58)
    assert policy.gain[:29] == (1.0,) * 29
    assert policy.gain[29:] == pytest.approx(((c - u) / (c - u)[28])[29:].tolist(), rel=1e-9)


def test_refusals():
    _, _, run, found = recorded()
    with pytest.raises(ConfigError, match="one batch and two ticks"):
        record_linear(run, (), STEPS, scale=SCALE)
    with pytest.raises(ConfigError, match="one batch and two ticks"):
        record_linear(run, (1,), 1, scale=SCALE)
    with pytest.raises(ConfigError, match="has 3 kinds, one per tick, and the run has 8"):
        record_linear(run, (1,), 3, scale=SCALE)
    for wrong in (0, STEPS + 1):
        with pytest.raises(ConfigError, match="can evaluate u"):
            choose_kinds(found, wrong)
    with pytest.raises(ConfigError, match="got 1 weights"):
        choose_kinds(found, 2, weights=[1.0])
    with pytest.raises(ConfigError, match="3 kinds, one per tick, for 8"):
        fit_recorded(found, ("cfg", "linear", "cond"))
