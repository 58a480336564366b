"""LinearAG: exact where theory says so and not elsewhere, blind to what it does not evaluate, honest about its cost."""

import math

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.guidance.linear import LinearAG, kinds_alternating, kinds_leading
from fewstep.guidance.linear_fit import fit_linear
from fewstep.samplers import DDIM, EPS, FLOW, X0, DPMpp2M, DPMpp2S, Level, Run, V, solve
from fewstep.samplers.guided import Guided

from .gaussians import ISOTROPIC, STEPS, anisotropic, distance, problem
from .gaussians import SCALE as W


def roll_out(policy, table, held):
    """(relative error, result) against the same plan with true u, on prompts that no fit has seen."""
    network, x = held(99)
    true = LinearAG({}, tuple("cfg" if kind == "linear" else kind for kind in policy.kinds), policy.scale)
    expected = solve(table, network, x, guidance=true).x
    return distance(solve(table, network, x, guidance=policy).x, expected), expected


@pytest.mark.parametrize("variances", (ISOTROPIC, (0.8, 0.8)), ids=("different", "equal"))
@pytest.mark.parametrize("solver", (DDIM(), DPMpp2M()), ids=("ddim", "2m"))
@pytest.mark.parametrize("kind", (EPS, X0, V, FLOW), ids=lambda kind: kind.name)
def test_exact_on_isotropic_gaussians(kind, solver, variances):
    """All predictions are combinations of x_T and two means: three regressors suffice. E10 of the research notes."""
    table, held, run = problem(kind, solver, variances)
    kinds = kinds_alternating(STEPS)
    fit = fit_linear(run, (10, 11), kinds, scale=W, window=1, ridge=0.0)
    error, expected = roll_out(fit.policy, table, held)
    assert error <= 1e-10
    network, x = held(99)
    half = solve(table, network, x, guidance=LinearAG({}, ("cfg",) + ("cond",) * (STEPS - 1), W)).x
    assert distance(half, expected) > 1e-2  # guidance matters here
    # its square is what rounding leaves of sums over 64 numbers, 64 eps |u|^2, by |c - u|^2, down to 1e-4 |u|^2 here
    assert all(r.of_difference < 1e-5 for r in fit.residuals.values())


def test_exact_with_stages_and_all_of_the_history():
    table, held, run = problem(solver=DPMpp2S(), steps=8)
    fit = fit_linear(run, (10, 11), kinds_alternating(len(table), 10), scale=W, ridge=0.0)
    assert roll_out(fit.policy, table, held)[0] <= 1e-10


@pytest.mark.parametrize("kind", (EPS, X0), ids=lambda kind: kind.name)
def test_not_exact_on_anisotropic_gaussians(kind):
    table, held, run = problem(kind, variances=anisotropic(5))
    fit = fit_linear(run, (10, 11), kinds_alternating(STEPS), scale=W, ridge=0.0)
    assert max(r.of_uncond for r in fit.residuals.values()) > 1e-4
    assert roll_out(fit.policy, table, held)[0] > 1e-4


@pytest.mark.parametrize("seed", (5, 6))
def test_plain_least_squares_blows_up_and_ridge_or_policy_do_not(seed):
    """It fits its own runs best and is the worst by far along its own: |error| exceeds the image."""
    table, held, run = problem(solver=DDIM(), variances=anisotropic(seed))
    kinds = kinds_alternating(STEPS)
    plain = fit_linear(run, (10, 11), kinds, scale=W, ridge=0.0, on_policy=False)
    ridge = fit_linear(run, (10, 11), kinds, scale=W, ridge=1e-6, on_policy=False)
    on_policy = fit_linear(run, (10, 11), kinds, scale=W, ridge=0.0)
    assert all(plain.residuals[t].of_uncond <= ridge.residuals[t].of_uncond for t in ridge.residuals)
    assert max(r.of_uncond for r in plain.residuals.values()) < 0.02
    assert roll_out(plain.policy, table, held)[0] > 1.0
    assert roll_out(ridge.policy, table, held)[0] < 0.05
    assert roll_out(on_policy.policy, table, held)[0] < 0.05


def test_an_estimate_knows_nothing_of_u():
    """u of the "linear" ticks may be anything: neither evaluated nor read."""
    table, held, run = problem()
    policy = fit_linear(run, (10,), kinds_alternating(STEPS), scale=W).policy
    network, x = held(99)
    expected = solve(table, network, x, guidance=policy).x
    other, x = held(99)
    original = type(other).__call__

    class Masked:
        schedule, parametrisation = other.schedule, other.parametrisation

        def __call__(self, x, level: Level, branches, rows=None):
            found = dict(zip(branches, original(other, x, level, branches, rows), strict=True))
            if policy.kinds[table.plan.nodes.index(level)] == "linear":
                found = {b: out * math.nan if b == "uncond" else out for b, out in found.items()}
            return tuple(found.values())

    assert torch.equal(solve(table, Masked(), x, guidance=policy).x, expected)


def test_evaluations():
    table, held, run = problem()
    for kinds in (kinds_alternating(STEPS), kinds_leading(STEPS, 4), kinds_leading(STEPS, 3, 12)):
        policy = fit_linear(run, (10,), kinds, scale=W).policy
        network, x = held(99)
        report = solve(table, network, x, guidance=policy).report
        evaluated = kinds.count("cfg")
        assert report.nfe_per_image == (STEPS + evaluated,) * 16 and network.rows == 16 * (STEPS + evaluated)
        assert report.nfe_per_branch == {"uncond": (evaluated,) * 16, "cond": (STEPS,) * 16}
    assert kinds_alternating(20).count("cfg") == 5 and kinds_alternating(20)[10:] == ("cond",) * 10
    assert kinds_alternating(7) == ("cfg", "linear", "cfg", "linear", "cond", "cond", "cond")


def test_a_scale_of_1_costs_nothing():
    """A step of scale 1 evaluates u where another one reads it, and no estimate."""
    table, held, _ = problem(steps=5)
    line = {"cond": 0.5, "uncond@0": 0.5}
    kinds = ("cfg", "linear", "cfg", "linear", "cond")
    for scale, rows in ((1.0, 5), ((1.0, 3.0, 3.0, 1.0, 3.0), 7), ((3.0, 1.0, 1.0, 1.0, 1.0), 6)):
        network, x = held(1)
        solve(table, network, x, guidance=LinearAG({1: line, 3: line}, kinds, scale))
        assert network.rows == 16 * rows


def test_a_run_keeps_what_is_read_later_and_no_more():
    table, _, run = problem()
    policy = fit_linear(run, (10,), kinds_alternating(STEPS), scale=W, window=1).policy
    guided = Guided(policy, Run(16, table.plan.nodes, table.plan.step, table.plan.stage, EPS))
    for i in range(STEPS):
        asked = guided.asked(i)
        guided.observed(i, torch.zeros(16, 4), [torch.zeros(16, 4) for _ in asked.branches])
        expected = {f"cond@{i}", f"uncond@{i}"} if i < 10 and i % 2 == 0 else set()
        assert set(guided.recalled) == expected


def test_the_caller_may_multiply():
    """Without a scale of its own the line is u^, and c where the run is not guided."""
    kinds = ("cfg", "linear", "cond")
    policy = LinearAG({1: {"cond": 0.25, "uncond@0": 0.75}}, kinds)
    table, _, _ = problem(steps=3)
    memory = policy.begin(Run(1, table.plan.nodes, table.plan.step, table.plan.stage, EPS, caller_scales=True))
    lines = [dict(policy.weights(i, None, memory)) for i in range(3)]
    assert lines == [{"uncond": 1.0}, {"cond": 0.25, "uncond@0": 0.75}, {"cond": 1.0}]


def test_half_precision_outputs_are_combined_in_float32():
    """Coefficients that cancel, on outputs in bfloat16: what is left is right to float32's rounding of the terms."""
    table, held, _ = problem(steps=4)
    line = {"cond": 200.5, "cond@0": -200.0, "uncond@0": 0.5}
    policy = LinearAG({1: line}, ("cfg", "linear", "cond", "cond"), W)
    inside, x = held(1)

    class Half:
        schedule, parametrisation = inside.schedule, inside.parametrisation

        def __call__(self, x, level, branches, rows=None):
            return tuple(out.bfloat16() for out in inside(x.double(), level, branches, rows))

    found = {}
    solve(table, Half(), x.float(), guidance=policy, on_tick=lambda i, state, p: found.update({i: p.eps}))
    log = [{b: out.bfloat16().double() for b, out in call.items()} for call in inside.log]
    c, terms = log[1]["cond"], (line["cond"] * log[1]["cond"], line["cond@0"] * log[0]["cond"])
    expected = W * c + (1.0 - W) * (terms[0] + terms[1] + line["uncond@0"] * log[0]["uncond"])
    largest = max(float(term.abs().max()) for term in terms) * (W - 1.0)
    assert float((found[1] - expected).abs().max()) <= 4 * 2.0**-24 * largest


@pytest.mark.parametrize(
    ("coefficients", "kinds", "message"),
    [
        ({}, ("linear", "cond"), "the first tick has nothing"),
        ({}, ("cfg", "guess"), "one of cfg, linear, cond per tick"),
        ({}, (), "per tick"),
        ({}, ("cfg", "linear"), r"needed for the \"linear\" ticks \[1\]"),
        ({0: {"cond": 1.0}}, ("cfg", "cond"), r"ticks \[\]"),
        ({1: {}}, ("cfg", "linear"), "has no coefficient"),
        ({1: {"uncond": 1.0}}, ("cfg", "linear"), "cannot read 'uncond'"),
        ({1: {"uncond@1": 1.0}}, ("cfg", "linear"), "cannot read 'uncond@1'"),
        ({1: {"cond@1": 1.0}}, ("cfg", "linear"), "cannot read 'cond@1'"),
        ({2: {"uncond@1": 1.0}}, ("cfg", "cond", "linear"), "cannot read 'uncond@1'"),
        ({1: {"cond@00": 1.0}}, ("cfg", "linear"), "cannot read 'cond@00'"),
        ({1: {"x": 1.0}}, ("cfg", "linear"), "cannot read 'x'"),
        ({1: {"cond": math.nan}}, ("cfg", "linear"), "finite number"),
    ],
)
def test_coefficients_that_cannot_be(coefficients, kinds, message):
    with pytest.raises(ConfigError, match=message):
        LinearAG(coefficients, kinds, W)


def test_runs_that_do_not_fit():
    table, held, _ = problem(steps=4)
    kinds = ("cfg", "linear", "cond", "cond")
    with pytest.raises(ConfigError, match="has no guidance scale"):
        solve(table, *held(1), guidance=LinearAG({1: {"cond": 1.0}}, kinds))
    with pytest.raises(ConfigError, match="has 2 kinds, one per tick, and the run has 4 ticks"):
        solve(table, *held(1), guidance=LinearAG({}, ("cfg", "cond"), W))
    with pytest.raises(ConfigError, match="guided, got 0"):
        kinds_alternating(4, 0)
    with pytest.raises(ConfigError, match="evaluated <= guided"):
        kinds_leading(4, 3, 2)
