"""The work-precision benchmark: problems with known answers, the gate, fair budgets, resuming, tables, a picture."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fewstep.benchmarks import work_precision as wp
from fewstep.benchmarks import work_precision_adaptive as adaptive
from fewstep.benchmarks import work_precision_methods as methods
from fewstep.benchmarks import work_precision_peers as peers
from fewstep.benchmarks import work_precision_problems as problems
from fewstep.benchmarks.work_precision_report import best, markdown, overall, rankings
from fewstep.benchmarks.work_precision_rows import Row, append, read_rows
from fewstep.samplers import EPS, FLOW, DiscreteVP, RectifiedFlow, from_times

VP, RF = DiscreteVP.scaled_linear(), RectifiedFlow(time_scale=1000.0)
ARGUMENTS = (
    "--problem",
    "mixture",
    "--images",
    "8",
    "--nfe",
    "8",
    "10",
    "12",
    "--grids",
    "lambda",
    "time",
    "--solvers",
)


# --- problems -------------------------------------------------------------------------------------------------------


def gaussian(schedule, parametrisation):
    """One component in two dimensions: N((0.7, -1.5), diag(0.6^2, 0.1^2))."""
    mean, std = (torch.tensor([row], dtype=torch.float64) for row in ((0.7, -1.5), (0.6, 0.1)))
    return problems.GaussianMixture(schedule, parametrisation, torch.ones(1, dtype=torch.float64), mean, std)


def exact_flow(network, x, s, t):
    """The probability-flow ODE of a Gaussian keeps every coordinate's number of standard deviations."""
    (m,), (std,) = network.means, network.stds
    at = [((float(v.alpha) * std) ** 2 + float(v.sigma) ** 2).sqrt() for v in (s, t)]
    return float(t.alpha) * m + at[1] / at[0] * (x - float(s.alpha) * m)


def test_references_equal_the_closed_form():
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vp, flow = gaussian(VP, EPS), gaussian(RF, FLOW)
    end = exact_flow(vp, x, VP.noisiest, VP.cleanest)
    expected = vp.predictions(end, VP.cleanest)[0]
    assert (problems.integrate_vp(vp, x, 400) - expected).abs().max() < 1e-8
    assert (problems.integrate_flow(flow, x, 400) - exact_flow(flow, x, RF.noisiest, RF.clean)).abs().max() < 1e-8


def test_the_denoiser_is_the_posterior_mean():
    """Against a sum over the components that is written out, and x = alpha x0 + sigma eps."""
    network = problems.latent_mixture(VP, EPS)
    level, x = VP.level(400.0), torch.randn(3, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0, eps = network.predictions(x, level)
    assert torch.allclose(level.alpha * x0 + level.sigma * eps, x, atol=1e-12)
    logs, means = [], []
    for w, m, s in zip(network.weights, network.means, network.stds, strict=True):
        variance = (level.alpha * s) ** 2 + level.sigma**2
        normal = torch.distributions.Normal(level.alpha * m, variance.sqrt())
        logs.append(w.log() + normal.log_prob(x).sum(1))
        means.append(m + level.alpha * s * s / variance * (x - level.alpha * m))
    r = torch.softmax(torch.stack(logs), dim=0)
    assert torch.allclose(x0, (r.unsqueeze(-1) * torch.stack(means)).sum(0), atol=1e-10)


def test_the_distance_tells_samples_from_shrunken_ones():
    network = problems.latent_mixture(VP, EPS)
    generator = torch.Generator().manual_seed(2)
    which = torch.multinomial(network.weights, 100, replacement=True, generator=generator)
    noise = torch.randn(100, 256, dtype=torch.float64, generator=generator)
    samples = network.means[which] + network.stds[which] * noise
    floor = problems.marginal_distance(network, samples)
    assert floor < 1.6 / 100**0.5  # twice what a standard normal's samples have on average
    assert problems.marginal_distance(network, 0.8 * samples) > 1.3 * floor


# --- methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [problems.mixture, problems.mixture_flow])
def test_the_gate_lets_equal_solvers_through_and_no_others(problem, monkeypatch):
    small = problem(4)
    assert peers.gate(small) is None
    monkeypatch.setattr(peers, "DPMpp2M", lambda: methods.SOLVERS["3m"]())
    assert "differs" in peers.gate(small)


def test_a_failed_gate_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wp, "gate", lambda problem: "they differ")
    assert wp.main([*ARGUMENTS, "2m", "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 1
    assert "they differ" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(methods.SOLVERS))
def test_nobody_exceeds_the_budget_or_wastes_a_step(name):
    problem, solver = problems.mixture(2), methods.SOLVERS[name]()
    grid = methods.grids_of(VP)["lambda"]
    for budget in (8, 9):
        found = methods.run_ours(problem, budget, solver=solver, grid=grid)
        longer = len(solver.plan(grid(VP, found.steps + 1), VP))
        assert found.ticks == found.nfe <= budget < longer


def test_peers_use_their_budget():
    for problem in (problems.mixture(2), problems.mixture_flow(2)):
        found = [(method, method.run(problem, 6)) for method in peers.peers(problem)]
        assert {(sample.ticks, sample.nfe) for _, sample in found} == {(6, 6)}
        assert all(torch.isfinite(sample.x).all() for _, sample in found)
        assert len({(method.name, method.grid) for method, _ in found}) == len(found)


def test_the_network_hears_the_peers_rounded_label():
    """diffusers' Karras grid integrates over sigmas between the labels that it feeds."""
    from diffusers import DPMSolverMultistepScheduler

    heard = []
    problem = problems.mixture(1)
    network = lambda x, level, branches: heard.append(level.time) or problem.networks[0](x, level, branches)  # noqa: E731
    options = {**peers.STABLE_DIFFUSION, "use_karras_sigmas": True}
    peers.run_peer(replace(problem, networks=(network,)), 7, build=lambda: DPMSolverMultistepScheduler(**options))
    assert len(heard) == 7 and all(time == round(time) for time in heard)


def test_no_two_grids_are_the_same_and_flows_have_shifted_times():
    assert "exponential" not in methods.grids_of(VP) and {"lambda", "karras", "linspace"} <= set(methods.grids_of(VP))
    flow = methods.grids_of(RF)
    assert {"lambda", "time", "shift-1", "shift-3", "shift-3 0.999"} <= set(flow) and "linspace" not in flow
    assert flow["shift-1"](RF, 4) == from_times(RF, [1000.0, 750.0, 500.0, 250.0])
    assert flow["shift-3 0.999"](RF, 4)[0].sigma == 0.999 and flow["shift-3"](RF, 2)[1].sigma == 0.75


def test_equal_runs_are_run_once():
    problem = problems.mixture(2)
    table = [methods.fitting(methods.SOLVERS[n](), methods.grids_of(VP)["lambda"], VP, b)[1] for n, b in
             (("ddim", 6), ("euler", 6), ("2m", 6), ("heun", 7), ("heun", 8))]  # fmt: skip
    prints = [methods.fingerprint(t, EPS) for t in table]
    assert prints[0] == prints[1] != prints[2] and prints[3] == prints[4]
    grid = methods.grids_of(VP)["lambda"]
    runs = [methods.run_ours(problem, b, solver=methods.SOLVERS["heun"](), grid=grid) for b in (7, 8)]
    assert runs[0] is runs[1]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """A reference of 60 steps and three peers."""
    monkeypatch.setitem(wp.PROBLEMS, "mixture", lambda images: replace(problems.mixture(images), steps=60))
    monkeypatch.setattr(wp, "peers", lambda problem: [m for m in peers.peers(problem) if m.grid == "exponential"])


def call(tmp_path, *more):
    return wp.main(
        [*ARGUMENTS, "2m", "3m", "sde-2m", "--out", str(tmp_path), "--cache", str(tmp_path / "cache"), *more]
    )


def test_a_run_resumes_and_writes_everything(short, tmp_path, capsys, monkeypatch):
    assert call(tmp_path, "--minutes", "0") == 0
    assert "rows did not fit" in capsys.readouterr().out
    assert call(tmp_path, "--minutes", "5", "--plot", str(tmp_path / "plot.png")) == 0
    file = tmp_path / "work_precision.csv"
    rows = read_rows(file)
    mine = [r for r in rows if r.implementation == "fewstep"]
    assert len(mine) == 3 * 2 * 3 and len(rows) > len(mine)
    assert all((r.error is None) == (r.method == "sde-2m") for r in rows)
    file.write_text("\n".join(file.read_text().split("\n")[:-3]) + "\nmixture,fewstep,2")  # interrupted in a line
    monkeypatch.setattr(wp, "measure", counted := Counted(wp.measure))
    assert call(tmp_path, "--minutes", "5") == 0
    assert counted.calls == 2
    again = {(r.implementation, r.method, r.grid, r.budget): r.error for r in read_rows(file)}
    assert again == {(r.implementation, r.method, r.grid, r.budget): r.error for r in rows}
    report = json.loads((tmp_path / "work_precision.json").read_text())
    assert report["problems"][0]["left_out"] == 0 and report["rankings"]["mixture"]
    assert report["problems"][0]["reference"]["half_steps_error"] < 1e-3
    page = (tmp_path / "work_precision.md").read_text()
    assert "| `3m` |" in page and "| diffusers UniPC-3 |" in page and str(tmp_path) not in page
    with Image.open(tmp_path / "plot.png") as image:
        assert len(image.getcolors(1 << 20)) > 100


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


def test_one_broken_method_costs_the_others_nothing(short, tmp_path, capsys, monkeypatch):
    def broken(problem, budget):
        raise ValueError("no such thing")

    monkeypatch.setattr(wp, "peers", lambda problem: [methods.Method("diffusers", "Broken", "linspace", broken)])
    assert call(tmp_path, "--minutes", "5") == 0
    assert "Failed: diffusers Broken linspace, 8 evaluations: ValueError: no such thing" in capsys.readouterr().out


# --- choosing -------------------------------------------------------------------------------------------------------


def row(method, grid, budget, error, implementation="fewstep", errors=()):
    return Row(
        "p", implementation, method, grid, budget, 4, budget, budget, budget, error, 0.0, "distance", 0.1, 0.0, errors
    )


def test_best_grid_per_budget():
    rows = [row("a", "x", 8, 0.3), row("a", "y", 8, 0.2), row("a", "y", 10, math.inf), row("a", "x", 10, 0.4)]
    assert {key[2]: r.grid for key, r in best(rows).items()} == {8: "y", 10: "x"}


def test_a_ranking_compares_one_grid_with_the_peers_best():
    peer = [row("DPM-Solver++ 2M", g, b, e, "diffusers", (e,) * 4) for g, b, e in
            (("x", 8, 0.4), ("y", 8, 0.2), ("x", 10, 0.1), ("y", 10, 0.3), ("x", 12, 0.1), ("y", 12, 0.3))]  # fmt: skip
    ours = [row("a", "x", b, e, errors=(e,) * 4) for b, e in ((8, 0.1), (10, 0.05), (12, 0.05))]
    broken = [row("b", "x", b, e) for b, e in ((8, 0.1), (10, math.nan), (12, 0.05))]
    ranked = rankings([*peer, *ours, *broken])
    first = ranked["p"][0]
    assert (first["method"], first["fixed"]) == ("a", True)
    assert first["ratio"] == pytest.approx(0.5) and first["interval"] == pytest.approx((0.5, 0.5))
    assert all(line["method"] != "b" for line in ranked["p"])
    assert overall(ranked, ["p"])[0]["ratio"] == pytest.approx(0.5) and not overall(ranked, ["p", "q"])


def test_the_interval_is_paired():
    """Images differ a thousandfold, but ours is always the half: the interval of the ratio knows that."""
    errors = (1e-3, 1e-2, 0.1, 1.0)
    peer = [row("DPM-Solver++ 2M", "x", b, sum(errors) / 4, "diffusers", errors) for b in (8, 10, 12)]
    half = tuple(e / 2 for e in errors)
    ours = [row("a", "x", b, sum(half) / 4, errors=half) for b in (8, 10, 12)]
    assert rankings([*peer, *ours])["p"][0]["interval"] == pytest.approx((0.5, 0.5))


def test_a_race_drops_hopeless_grids_alone():
    rows = [row("a", "x", 10, 0.1), row("a", "y", 10, 0.14), row("a", "z", 10, 0.3)]
    method = {grid: methods.Method("fewstep", "a", grid, lambda p, b: None) for grid in "xyz"}
    assert [wp.in_race(rows, method[g], 8, 1.5) for g in "xyz"] == [True, True, False]
    assert wp.in_race(rows, method["z"], 10, 1.5) and wp.in_race(rows, method["z"], 8, math.inf)


def test_rows_survive_the_file(tmp_path):
    rows = [row("a", "x", 8, 0.25, errors=(0.125, 0.375)), replace(row("b", "y 0.999", 8, 0.5), error=None, half=None)]
    for r in rows:
        append(tmp_path / "rows.csv", r)
    assert read_rows(tmp_path / "rows.csv") == rows and read_rows(tmp_path / "none.csv") == []


def test_tables_name_what_was_used():
    rows = [replace(row("heun", "x", 8, 0.25), ticks=7), row("2m", "x", 8, 0.5)]
    fact = {"name": "p", "title": "t", "command": "c", "failed": [], "left_out": 0, "race": None,
            "reference": {"steps": 9, "half_steps_error": 1e-9, "distance": 0.1}}  # fmt: skip
    report = {"machine": {"processor": "m", "cores": 1}, "versions": {}, "gates": [], "problems": [fact]}
    page = markdown(report, rows, rankings(rows))
    assert "| `heun` | **0.25** x (7) |" in page and "| `2m` | 0.5 x |" in page


def test_adaptive_solvers_pay_for_precision():
    problem = replace(problems.mixture(2), steps=60)
    found = adaptive.adaptive_rows(problem, problem.integrate(60), wp.mean_error)
    for name in adaptive.ADAPTIVE:
        rows = [row for row in found if row["method"] == name]
        assert rows[-1]["evaluations"] > rows[0]["evaluations"] and rows[-1]["error"] < rows[0]["error"]
    failed = [{"method": "x", "rtol": rtol, "failed": "too long"} for rtol in adaptive.TOLERANCES]
    page = adaptive.adaptive_lines([*found, *failed])
    assert len(page) == 4 + len(adaptive.ADAPTIVE) + 2 and page[-2].startswith("| `x` | failed |")
