"""Steps that follow the error, image by image."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError, NumericsError
from fewstep.guidance.cfg import CFG
from fewstep.names import ADAPTIVE_NAMES
from fewstep.samplers import (
    ADAPTIVE,
    DPM2S,
    DPM3S,
    EPS,
    FLOW,
    AdaptiveDPM,
    AdaptiveDPMpp,
    DiscreteVP,
    DPMpp2S,
    DPMpp3S,
    RectifiedFlow,
    level_at,
    solve,
    trace,
    uniform_lambda,
)
from fewstep.samplers.backbones.base import UNetNetwork

from .problems import Mixture
from .solver_rows import VP, relative, states
from .tiny import tiny_unet

KINDS = [AdaptiveDPM(2), AdaptiveDPM(3), AdaptiveDPMpp(2), AdaptiveDPMpp(3)]
kinds = pytest.mark.parametrize("solver", KINDS, ids=lambda s: f"{type(s).__name__}-{s.order}")


def tight(solver, tolerance: float, to_zero: bool = False, **options):
    return type(solver)(solver.order, atol=tolerance, rtol=tolerance, to_zero=to_zero, **options)


def test_names():
    assert tuple(ADAPTIVE) == ADAPTIVE_NAMES


@kinds
def test_the_error_falls_with_the_tolerance(solver):
    """Against the exact flow: a tolerance 256 times smaller gives at least 16 times less error and costs more."""
    x, errors, costs = states(8), [], []
    for tolerance in (1e-2, 1e-2 / 16, 1e-2 / 256):
        network = Mixture(VP)
        found, report = solve(tight(solver, tolerance), network, x)
        exact = network.flow(x, VP.noisiest, VP.cleanest)
        errors.append(float((found - exact).abs().max()))
        costs.append(report.nfe)
        assert sum(report.ticks) == report.nfe == network.calls == report.evaluations
    assert 0.1 > errors[0] > errors[1] > errors[2] and errors[2] < errors[0] / 16
    assert costs[0] < costs[1] < costs[2]


@kinds
def test_rejected_steps_are_counted(solver):
    """A first step that is far too long is rejected; every evaluation shows in the report."""
    network, x = Mixture(VP), states(6)
    report = solve(tight(solver, 1e-4, h_init=4.0), network, x).report
    assert all(n >= 1 for n in report.rejected)
    per_step = [
        solver.order * a + (solver.order - 1) * r for a, r in zip(report.accepted, report.rejected, strict=True)
    ]
    assert report.ticks == per_step and network.calls == sum(per_step)
    assert all(lams == sorted(lams) and lams[-1] == VP.cleanest.lam for lams in report.lams)


@kinds
def test_a_batch_is_its_images(solver):
    x = states(5, 3) * torch.tensor([0.2, 1.0, 3.0, 1.0, 0.01], dtype=torch.float64).view(-1, 1)
    together, report = solve(solver, Mixture(VP), x)
    for k in range(5):
        alone, single = solve(solver, Mixture(VP), x[k : k + 1])
        assert torch.equal(alone[0], together[k])
        assert single.ticks == report.ticks[k : k + 1] and single.lams == report.lams[k : k + 1]
    assert len(set(report.ticks)) > 1  # or this test would show nothing


@kinds
def test_a_step_is_the_singlestep_method(solver):
    """x_high of an accepted step is the singlestep solver's step between the same levels."""
    x = states(1, 4)
    report = solve(solver, Mixture(VP), x).report
    levels = (VP.noisiest, *(level_at(VP, lam) for lam in report.lams[0][:-1]), VP.cleanest, VP.clean)
    second, third = (DPM2S(), DPM3S()) if type(solver) is AdaptiveDPM else (DPMpp2S(), DPMpp3S())
    singlestep = second if solver.order == 2 else third
    expected = solve(trace(singlestep, levels, VP), Mixture(VP), x).x
    assert relative(solve(solver, Mixture(VP), x).x, expected) < 1e-11


@kinds
@pytest.mark.parametrize(
    "setting", [(DiscreteVP.scaled_linear(), EPS), (RectifiedFlow(1000.0), FLOW)], ids=["vp", "flow"]
)
def test_from_noise_to_sigma_zero(solver, setting):
    schedule, parametrisation = setting
    network, x = Mixture(schedule, parametrisation), states(16)
    found, report = solve(tight(solver, 1e-3, to_zero=True), network, x)
    fine = trace(DPMpp3S(), uniform_lambda(schedule, 150), schedule)
    assert float((found - solve(fine, Mixture(schedule, parametrisation), x).x).abs().max()) < 0.05
    assert report.nfe == network.calls and max(report.ticks) < 1000


def test_guidance_costs_two_branches():
    x = states(2, 3)
    scale = 3.0

    class Guided(Mixture):
        def __call__(self, x, level, branches, rows=None):
            one = super().__call__(x, level, ("cond",), rows)[0]
            return tuple(one if b == "cond" else 0.5 * one for b in branches)

    class Weighted(Mixture):
        def __call__(self, x, level, branches, rows=None):
            one = super().__call__(x, level, ("cond",), rows)[0]
            return (0.5 * one + scale * (one - 0.5 * one),)

    guided, report = solve(AdaptiveDPM(), Guided(VP), x, guidance=CFG(scale))
    plain, single = solve(AdaptiveDPM(), Weighted(VP), x)
    assert relative(guided, plain) < 1e-12
    assert report.nfe == 2 * single.nfe and report.nfe_per_image == [2 * n for n in single.nfe_per_image]


def test_a_pid_controller_reaches_the_end_too():
    """Its factors multiply up to the plain one's where errors stay the same, so only the path there differs."""
    solver = AdaptiveDPM(3, pid=(0.4, 0.3, 0.1))
    assert math.isclose(solver.factor((0.2, 0.2, 0.2)), 0.9 * 0.2 ** (-0.3 / 3))
    assert math.isclose(solver.factor((0.2, 0.5, 0.3)), 0.9 * 0.2 ** (-0.8 / 3) * 0.5 ** (0.6 / 3) * 0.3 ** (-0.1 / 3))
    network, x = Mixture(VP), states(8)
    found, report = solve(tight(AdaptiveDPM(3), 1e-4, pid=(0.2, 0.6, 0.0)), network, x)
    assert float((found - network.flow(x, VP.noisiest, VP.cleanest)).abs().max()) < 5e-3
    assert report.lams != solve(tight(AdaptiveDPM(3), 1e-4), network, x).report.lams


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_no_number_stops_the_run(bad):
    class Broken(Mixture):
        def __call__(self, x, level, branches, rows=None):
            return tuple(o * (bad if self.calls > 6 else 1.0) for o in super().__call__(x, level, branches, rows))

    with pytest.raises(NumericsError, match="image 0 is no finite number near time"):
        solve(AdaptiveDPM(3), Broken(VP), states(1, 4))


class Rough(Mixture):
    """A network without any smoothness: no step is ever short enough."""

    def __call__(self, x, level, branches, rows=None):
        out = super().__call__(x, level, branches, rows)[0]
        return (out + 1e3 * math.sin(1e9 * float(level.time)),)


def test_steps_have_a_floor_and_runs_a_budget():
    with pytest.raises(NumericsError, match=r"image 0 used \d+ of max_evaluations=100"):
        solve(AdaptiveDPM(3, max_evaluations=100), Rough(VP), states(1, 4))
    report = solve(AdaptiveDPM(3, h_min=0.5, max_evaluations=10_000), Rough(VP), states(1, 4)).report
    assert report.forced[0] > 0 and report.forced[0] <= report.accepted[0]
    assert all(n <= 100 for n in report.ticks)


def test_what_cannot_work_is_refused():
    network, x = Mixture(VP), states(2, 3)
    for wrong in ({"order": 4}, {"atol": 0.0}, {"rtol": math.nan}, {"theta": 1.5}, {"h_init": -1.0}, {"pid": (0, 0, 0)},
                  {"max_evaluations": 1}):  # fmt: skip
        with pytest.raises(ConfigError):
            AdaptiveDPM(**wrong)
    with pytest.raises(ConfigError, match="no table"):
        trace(AdaptiveDPM(), uniform_lambda(VP, 5), VP)
    with pytest.raises(IncompatibleError, match="guidance alone"):
        solve(AdaptiveDPM(), network, x, on_tick=lambda *_: None)
    with pytest.raises(ConfigError, match="not above its end"):
        AdaptiveDPM().run(network, x, begin=VP.clean)

    def careless(x, level, branches, rows=None):
        return (x,)

    careless.schedule, careless.parametrisation = VP, EPS
    with pytest.raises(IncompatibleError, match="asked for one image"):
        solve(AdaptiveDPM(), careless, x)


def test_a_unet_is_called_for_all_images_at_once():
    """Every image at its own time, finished ones left out; as the same images alone, up to the network's batch size."""
    schedule = DiscreteVP.scaled_linear()
    text = torch.randn(3, 77, 32, generator=torch.Generator().manual_seed(0))
    unet = tiny_unet(cross_attention_dim=32).eval()
    network = UNetNetwork(unet, {"cond": {"encoder_hidden_states": text}}, schedule, EPS)
    x = states(3, 4, 8, 8).float() * torch.tensor([0.1, 1.0, 4.0]).view(-1, 1, 1, 1)
    solver = AdaptiveDPMpp(2, atol=0.3, rtol=0.3, h_init=1.0)
    together, report = solve(solver, network, x)
    assert len(set(report.ticks)) > 1 and report.evaluations < sum(report.ticks)
    for k in range(3):
        alone = solve(solver, network.select(torch.tensor([k])), x[k : k + 1])
        assert alone.report.ticks == report.ticks[k : k + 1] == [alone.report.evaluations]
        assert relative(together[k], alone.x[0]) < 1e-4
