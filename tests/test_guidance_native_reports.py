"""Rescaled guidance against its formula, reports as text, refusals, and mixed images under every solver."""

import math

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.guidance.cfg import CFG
from fewstep.guidance.interval import Interval
from fewstep.guidance.scale import with_scale
from fewstep.samplers import SOLVERS, solve

from .guided_problems import AG, SCALE, Pair, gammas, mixed_threshold, run, table_of

THRESHOLD = mixed_threshold()


# --- rescaled guidance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("phi", (0.7, 1.0))
def test_rescaled_guidance_is_the_formula_of_the_paper(dtype, phi):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    made = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, c = (0.8 * made[0] + 0.3).to(dtype), (made[0] + 0.2 * made[1]).to(dtype)

    class Fixed(Pair):
        def _branch(self, x, m, level, branch):
            return c if branch == "cond" else u

    seen = []
    solve(table_of("ddim", 1), Fixed(), made[0].float(), guidance=CFG(7.5, rescale=phi),
          on_tick=lambda i, state, prediction: seen.append(prediction.eps))  # fmt: skip
    guided = u.double() + 7.5 * (c.double() - u.double())
    expected = rescale_noise_cfg(guided, c.double(), guidance_rescale=phi)
    assert (seen[0].double() - expected).abs().max() <= 1e-6 * expected.abs().max()


# --- reports and refusals ---------------------------------------------------------------------------------------------


def test_a_report_says_what_was_saved():
    report = run(AG(THRESHOLD, scale=SCALE)).report
    assert report.saved == pytest.approx(1.0 - report.nfe / 72)
    assert report.switched_steps == report.switched
    text = str(report)
    assert f"{100 * report.saved:.0f} % saved" in text
    assert f"uncond: {', '.join(map(str, report.nfe_per_branch['uncond']))}" in text
    assert f"step: {', '.join('never' if k is None else str(k) for k in report.switched_steps)}" in text
    assert "0 % saved" in str(run(None).report) and "score" not in str(run(CFG(SCALE)).report)


def test_reading_a_report_decides_nothing():
    """The newest predictions may be broken: the run is over, so that is not an error of the report."""
    report = run(AG(2.0, scale=SCALE), net=Pair(broken=("uncond", 11))).report
    assert all(map(math.isnan, report.scores[11])) and "NFE" in str(report)
    assert set(gammas()) == set(range(12))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AG(math.nan), "threshold"),
        (lambda: AG(scale=math.nan), "finite"),
        (lambda: AG(scale=-1.0), "finite"),
        (lambda: AG(lag=-1), "lag"),
        (lambda: AG(rule="same", lag=1), "lag must be 0"),
        (lambda: AG(rule="same", lower_order=True), "next"),
        (lambda: AG(max_fraction=1.5), "max_fraction"),
        (lambda: AG(space="latent"), "x0, raw, eps, v"),
        (lambda: run(AG()), "no guidance scale"),
        (lambda: run(AG(scale=(1.0, 2.0))), "2 guidance scales"),
        (lambda: CFG(3.0, rescale=1.5), "rescale"),
        (lambda: AG(rule="same", on_switch="delta_reuse"), "next"),
        (lambda: AG(max_fraction="x"), "max_fraction"),
        (lambda: AG(True), "threshold"),
        (lambda: CFG("7.5"), "finite"),
        (lambda: CFG(object()), "finite"),
        (lambda: CFG(rescale="a"), "rescale"),
        (lambda: Interval(start="a"), "start"),
        (lambda: Interval(sigma=3.0), "two numbers"),
        (lambda: Interval(sigma=(1,)), "two numbers"),
        (lambda: with_scale(CFG(5.0), "4"), "finite"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_numbers_of_numpy_and_torch():
    import numpy

    for scale in (numpy.float32(7.5), torch.tensor(7.5), numpy.float64(7.5)):
        assert CFG(scale).scale == 7.5 and type(CFG(scale).scale) is float
    assert CFG(torch.tensor([3.0, 1.0])).scale == CFG([3, 1]).scale == (3.0, 1.0)


def test_reports_of_runs_that_cannot_save():
    for policy in (None, CFG(1.0), CFG(0.0), AG(scale=1.0)):
        report = run(policy).report
        assert report.saved == 0.0 and report.switched_steps == (None,) * 3 and "alone" not in str(report)
    assert run(AG(-1.0, scale=SCALE)).report.saved == 0.5


@pytest.mark.parametrize("name", list(SOLVERS))
def test_every_solver_runs_mixed_images(name):
    found = run(AG(THRESHOLD, scale=SCALE, lower_order=True), name, steps=6)
    assert torch.isfinite(found.x).all()
