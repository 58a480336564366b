"""The fit of LinearAG: right inner products, passes that stop early and can be resumed, clear refusals."""

import math

import pytest
import torch

from fewstep.errors import ConfigError, NumericsError
from fewstep.guidance.cfg import CFG
from fewstep.guidance.linear import kinds_alternating
from fewstep.guidance.linear_fit import Enough, Inner, Recorder, fit_linear, regressors, residual, solved
from fewstep.samplers import solve

from .gaussians import SCALE as W
from .gaussians import STEPS, anisotropic, distance, problem


def test_inner_products_are_those_of_the_outputs():
    """The Gram matrix gives what least squares over all elements of all images gives."""
    table, held, run = problem(variances=anisotropic(5))
    kinds = kinds_alternating(STEPS)
    fit = fit_linear(run, (10, 11), kinds, scale=W, window=2, ridge=1e-3, on_policy=False)
    columns, target = [], []
    for seed in (10, 11):
        network, x = held(seed)
        solve(table, network, x, guidance=CFG(W))
        of = {"cond": network.log[5]["cond"]}
        of |= {f"{branch}@{k}": call[branch] for k, call in enumerate(network.log) for branch in call}
        columns.append(torch.stack([of[name].flatten() for name in fit.inner[5].names[:-1]], dim=1))
        target.append(network.log[5]["uncond"].flatten())
    R, y = torch.cat(columns), torch.cat(target)
    K = R.shape[1]
    square = (R * R).sum() / K
    ridged = torch.linalg.lstsq(torch.cat([R, (1e-3 * square).sqrt() * torch.eye(K)]), torch.cat([y, torch.zeros(K)]))
    found = fit.policy.coefficients[5]
    assert list(found) == ["uncond@2", "uncond@4", "cond@2", "cond@3", "cond@4", "cond"]
    assert torch.allclose(torch.tensor(list(found.values())).double(), ridged.solution, rtol=1e-7, atol=0.0)
    u_hat = R @ ridged.solution
    c = columns[0][:, -1], columns[1][:, -1]
    assert fit.residuals[5].of_uncond == pytest.approx(distance(u_hat, y), rel=1e-7)
    assert fit.residuals[5].of_difference == pytest.approx(float((u_hat - y).norm() / (torch.cat(c) - y).norm()), 1e-7)
    assert fit.inner[5].images == 32
    fewer = solved(fit.inner[5], 0.0, ("cond", "uncond@4"))
    assert torch.allclose(
        torch.tensor(list(fewer.values())), torch.linalg.lstsq(R[:, [-1, 1]], y).solution.float(), 1e-5
    )


def test_passes_stop_early_and_can_be_resumed():
    table, held, _ = problem(steps=8)
    kinds = kinds_alternating(8, 6)  # "linear" at 1, 3 and 5
    rows, said, saved = [], [], {}

    def run(policy, seed):
        network, x = held(seed)
        try:
            solve(table, network, x, guidance=policy)
        finally:
            rows.append(network.rows // 16)

    first = fit_linear(run, (10, 11), kinds, scale=W, progress=lambda *now: said.append(now),
                       on_fitted=lambda t, line: saved.update({t: line}))  # fmt: skip
    assert rows == [4, 4, 7, 7, 10, 10]  # with u at ticks 0 and 1; 0, 2, 3; 0, 2, 4, 5
    assert said == [(n, 6) for n in range(1, 7)]
    assert saved == first.policy.coefficients
    rows.clear()
    again = fit_linear(run, (10, 11), kinds, scale=W, known={t: saved[t] for t in (1, 3)})
    assert again.policy == first.policy and rows == [10, 10] and set(again.residuals) == {5}
    rows.clear()
    fit_linear(run, (10, 11), kinds, scale=W, on_policy=False)
    assert rows == [12, 12]


def test_regressors():
    kinds = ("cfg", "cfg", "linear", "linear", "cfg", "linear")
    assert regressors(2, kinds, 1) == ("uncond@1", "cond@1", "cond")
    assert regressors(3, kinds, 1) == ("uncond@1", "cond@1", "cond@2", "cond")
    assert regressors(5, kinds, 2) == ("uncond@1", "uncond@4", "cond@1", "cond@2", "cond@3", "cond@4", "cond")
    assert regressors(5, kinds) == ("uncond@0", "uncond@1", "uncond@4", *(f"cond@{k}" for k in range(5)), "cond")


def test_singular_inner_products():
    """Of two equal regressors each gets half; nothing to divide by gives no infinite residual of u."""
    twins = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [2.0, 2.0, 4.0]], dtype=torch.float64)
    line = solved(Inner(("cond@0", "cond", "uncond"), twins, 1), 0.0)
    assert line == pytest.approx({"cond@0": 1.0, "cond": 1.0}, abs=1e-12)
    assert residual(Inner(("cond@0", "cond", "uncond"), twins, 1), line).of_uncond < 1e-7


def test_refusals():
    table, held, run = problem(steps=4)
    kinds = ("cfg", "linear", "cond", "cond")
    with pytest.raises(ConfigError, match="one batch of samples"):
        fit_linear(run, (), kinds, scale=W)
    with pytest.raises(ConfigError, match="never came to tick 1"):
        fit_linear(lambda policy, seed: None, (1,), kinds, scale=W)
    for wrong in ({"window": 0}, {"window": 1.5}, {"ridge": -1.0}, {"ridge": math.nan}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be a"):
            fit_linear(run, (1,), kinds, scale=W, **wrong)

    def broken(policy, seed):
        network, x = held(seed)
        network.means["uncond"] = network.means["uncond"] * math.nan
        solve(table, network, x, guidance=policy)

    with pytest.raises(NumericsError, match="not all finite"):
        fit_linear(broken, (1,), kinds, scale=W)
    with pytest.raises(Enough):
        solve(table, *held(1), guidance=Recorder(kinds, {}, {1: ("cond",)}, W))
