"""Posteriors against problems whose answer is known: one Gaussian in closed form, mixtures, first-order loops.

For one Gaussian nothing is sampled: the law of what a method returns is carried through its production code exactly
(benchmarks/posteriors_affine.py), so these tests see errors of 1e-10.
"""

import pytest
import torch

from fewstep.benchmarks.posteriors import floor_of
from fewstep.benchmarks.posteriors_affine import Unguided, aligned, propagate
from fewstep.benchmarks.posteriors_methods import ROWS, exact_draws, measured
from fewstep.benchmarks.posteriors_metrics import by_mode, gaussian_w2, metrics, moments
from fewstep.benchmarks.posteriors_problems import PROBLEMS
from fewstep.inverse.dps import DPS, DPSGaussian
from fewstep.inverse.ldps import LDPS
from fewstep.inverse.pigdm import PiGDM
from fewstep.inverse.psld import PSLD
from fewstep.inverse.stsl import STSL
from fewstep.inverse.tmpd import TMPD
from fewstep.models.mixture_backbone import MixtureBackbone
from fewstep.samplers import GRIDS, DiscreteVP, LinearVP, Prediction, State, advance, initial_noise, renoise, trace

N = (250, 500, 1000)


@pytest.fixture(scope="module")
def unit():
    return aligned(unit=True)


@pytest.fixture(scope="module")
def anisotropic():
    return aligned(unit=False)


def law(posterior, of, exact=False):
    """Mean and covariance of what the posterior returns; of the posterior's own network if `exact`."""
    return propagate(posterior, of.backbone, of.measurement, of.backbone.network(of.posterior) if exact else None)


def same_law(a, b, tolerance=1e-9):
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=tolerance, atol=tolerance)


def converges(posterior, of, to, exact=False, steps=N):
    """First order: each of these doublings of the steps halves the error, up to terms of second order."""
    errors = [gaussian_w2(law(posterior(steps=n), of, exact), to) for n in steps]
    assert all(0.45 < finer / coarser < 0.6 for coarser, finer in zip(errors, errors[1:], strict=False)), errors
    return errors[-1]


# --- one Gaussian ---------------------------------------------------------------------------------------------------


def test_the_oracle_converges_to_the_posterior(anisotropic):
    assert converges(Unguided, anisotropic, anisotropic.exact, exact=True) < 0.02


def test_tmpd_is_the_oracle_for_any_gaussian(anisotropic):
    """So with the test above it converges to the posterior over 250, 500 and 1,000 steps."""
    same_law(law(TMPD(steps=20, iterations=4), anisotropic), law(Unguided(steps=20), anisotropic, exact=True))


@pytest.mark.slow
def test_tmpd_converges_to_the_posterior(anisotropic):
    assert converges(lambda steps: TMPD(steps=steps, iterations=4), anisotropic, anisotropic.exact) < 0.02


def test_pigdm_is_the_oracle_for_a_unit_covariance(unit):
    same_law(law(PiGDM(steps=100), unit), law(Unguided(steps=100), unit, exact=True))


def test_pigdm_does_not_converge_for_another_covariance(anisotropic):
    """The oracle's error halves with each doubling (above); this one stays, at several times the oracle's."""
    errors = [gaussian_w2(law(PiGDM(steps=n), anisotropic), anisotropic.exact) for n in (250, 500)]
    oracle = gaussian_w2(law(Unguided(steps=500), anisotropic, exact=True), anisotropic.exact)
    assert errors[1] > 4.0 * oracle and errors[1] > 0.9 * errors[0]


def test_dps_converges_to_its_own_biased_answer(anisotropic):
    """The closed form of posteriors_affine, which is not the posterior."""
    assert gaussian_w2(anisotropic.dps, anisotropic.exact) > 0.3
    assert converges(DPSGaussian, anisotropic, anisotropic.dps, steps=(100, 200, 400)) < 0.04


def test_dps_takes_too_much_from_the_measurement(unit):
    """Along a measured axis with rho = a^2 c / sigma_y^2: mean gain 1 - e^-rho > rho / (1 + rho), less variance."""
    found, exact = law(DPSGaussian(steps=100), unit), unit.exact
    prior = unit.backbone.prior.means[0]
    axes = unit.Q[:, :4]
    assert bool((((found.mean - prior) @ axes) / ((exact.mean - prior) @ axes) > 1.02).all())
    assert bool(((axes.T @ found.covariance @ axes).diagonal() < (axes.T @ exact.covariance @ axes).diagonal()).all())


# --- mixtures -------------------------------------------------------------------------------------------------------


def near_the_floor(name, samples):
    posed, row = PROBLEMS[name](0), next(row for row in ROWS if row.name == "oracle-1000")
    z, _ = measured(row, posed, samples)
    found, floor = metrics(posed, z)["sw1"], floor_of(posed, samples, 0)["sw1"]
    assert found <= 1.5 * floor + 0.1, (found, floor)


def test_the_oracle_is_at_the_floor():
    near_the_floor("P1 four modes", 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["P2 (8, 1)", "P2 (8, 4)", "P3 |x|", "P4 linear decoder"])
def test_the_oracle_is_at_the_floor_everywhere(name):
    near_the_floor(name, 500)


def test_the_metrics_see_what_they_are_for():
    """A sampler that misses modes, one that is too narrow and the exact one: by known amounts."""
    posed = PROBLEMS["P1 four modes"](0)
    z, _ = exact_draws(posed, tuple(range(200)))
    right = metrics(posed, z)
    assert abs(right["cover"] - 0.9) < 0.04 and abs(right["variance"] - 1.0) < 0.2 and right["tv"] < 0.15
    missing = by_mode(posed, z[posed.mode(z) > 1], z)["tv"]
    assert abs(missing - float((posed.mode(z) <= 1).double().mean())) < 1e-6
    centre = z.mean(0)
    narrow = metrics(posed, centre + 0.5 * (z - centre))
    assert narrow["cover"] < 0.75 and narrow["sw1"] > 3.0 * right["sw1"]
    shift = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert abs(gaussian_w2(moments(z + shift), moments(z)) - 5.0) < 1e-6
    assert gaussian_w2(moments(2.0 * z), moments(2.0 * z)) < 1e-6


# --- STSL -------------------------------------------------------------------------------------------------------------


def test_stsl_without_the_trace_is_its_first_order_loop():
    """Bit by bit: K gradient steps at each level, then DDIM."""
    posed, seeds, K, zeta, steps = PROBLEMS["P4 linear decoder"](0), (3, 4, 5), 3, 0.07, 12
    backbone, y = posed.backbone, posed.measurement.images(3)
    method = STSL(eta=0.0, K=K, zeta=zeta, steps=steps, weighting="norm")
    found = method(backbone, posed.measurement, seeds=seeds).x

    network = backbone.network()
    table = trace(method.solver, GRIDS["time"](backbone.schedule, steps), backbone.schedule)
    levels = table.plan.nodes
    noise = initial_noise(seeds, (1, 1, 8)).double()
    z = renoise(backbone.to_latents(y.guess()), noise, levels[0])
    for i, level in enumerate(levels):
        for _ in range(K):
            z = z.detach().requires_grad_()
            a, b = backbone.parametrisation.x0_row(level)
            out = network(z, level, ("cond",))[0]
            z0 = a * z + b * out  # after the network: gradients add up in this order
            leaf = z0.detach().requires_grad_()
            r = (y.y - y.operator.A(backbone.to_pixels(leaf))).flatten(1)
            (g,) = torch.autograd.grad(torch.linalg.vector_norm(r, dim=1).sum(), leaf)
            (step,) = torch.autograd.grad(z0, z, zeta * g)
            z = (z - step).detach()
        out = network(z, level, ("cond",))[0]
        a, b, c, d = backbone.parametrisation(level)
        z = advance(table, State(i, z), Prediction(a * z + b * out, c * z + d * out)).x
    assert torch.equal(backbone.to_pixels(z), found)


# --- batches --------------------------------------------------------------------------------------------------------

METHODS = {
    "STSL": STSL(steps=6, K=2, zeta=0.1),
    "STSL norm": STSL(steps=6, K=2, zeta=0.1, weighting="norm"),
    "LDPS": LDPS(steps=12, zeta=0.1),
    "PSLD": PSLD(steps=12, omega=0.1, gamma=0.05),
    "DPS": DPS(steps=12, zeta=0.1),
    "DPSGaussian": DPSGaussian(steps=12, zeta=0.1),
    "PiGDM": PiGDM(steps=12),
    "TMPD": TMPD(steps=12, iterations=4),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_its_images_one_by_one(name):
    """To rounding: matrix products of other shapes add in another order."""
    posed, method, seeds = PROBLEMS["P4 linear decoder"](1), METHODS[name], (5, 9, 2)
    together = method(posed.backbone, posed.measurement, seeds=seeds)
    for k, seed in enumerate(seeds):
        alone = method(posed.backbone, posed.measurement, seeds=(seed,))
        torch.testing.assert_close(together.x[k : k + 1], alone.x, rtol=1e-8, atol=1e-8)
    assert float((together.x[0] - together.x[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), LinearVP()], ids=["discrete", "continuous"])
def test_schedules_agree(schedule):
    """The oracle's own network on either schedule ends in the same law as far as the steps allow."""
    of = aligned(unit=True)
    backbone = MixtureBackbone(of.backbone.prior, schedule)
    end = propagate(Unguided(steps=200), backbone, of.measurement, backbone.network(of.posterior))
    assert gaussian_w2(end, of.exact) < 0.08
