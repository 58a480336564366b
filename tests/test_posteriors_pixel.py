"""DPS, PiGDM and TMPD on a network of pixels: loops written without them, batches, costs, and what must be refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor

from fewstep.errors import ConfigError, IncompatibleError, NumericsError
from fewstep.inverse.dps import DPS, DPSGaussian
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import JPEG, Denoise, Downsample, InpaintRandom
from fewstep.inverse.pigdm import PiGDM
from fewstep.inverse.tmpd import TMPD
from fewstep.samplers import (
    DDIM,
    DPMpp2M,
    Level,
    NoiseTape,
    initial_noise,
    solve,
    trace,
    uniform_time,
)
from fewstep.samplers.backbones import backbone_of

from .tiny import tiny_sd
from .tiny_pixels import tiny_pixels

F64 = torch.float64

# ---------------------------------------------------------------- a network of pixels

TIMES = 6
LOUD = DDPMScheduler(TIMES, beta_start=0.05, beta_end=0.5)  # every training time is a step of the run


def network_of_pixels() -> Any:
    """float64, so that two ways of computing the same thing agree to rounding."""
    return backbone_of(DDPMPipeline(tiny_pixels().unet.double(), LOUD))


@pytest.fixture(scope="module")
def pixels() -> Any:
    return network_of_pixels()


def pictures(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=F64)


def halves(sigma_y: float = 0.05, n: int = 2) -> Measurement:
    return Measurement.simulate(Downsample(2, "average"), pictures(n), sigma_y, tuple(range(n)))


@pytest.mark.parametrize("clip", [False, True])
def test_dps_is_the_released_loop(pixels, clip):
    """x_{t-1} = coef1 x0 + coef2 x_t + posterior noise - zeta grad |y - A(x0)|, all in [-1, 1]; norms per image."""
    zeta, seeds, measurement, clamped = 0.7, (3, 4), halves(), 0
    beta = torch.linspace(0.05, 0.5, TIMES, dtype=F64)
    bar = (1.0 - beta).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=F64), bar[:-1]])
    y = 2.0 * measurement.y - 1.0
    x = initial_noise(seeds, (3, 8, 8)).double()
    for i, t in enumerate(reversed(range(TIMES))):
        x = x.detach().requires_grad_()
        eps = pixels.pipe.unet(x, torch.tensor(float(t))).sample
        x0 = (1.0 / bar[t]).sqrt() * x - (1.0 / bar[t] - 1.0).sqrt() * eps
        clamped += int((x0.abs() > 1.0).sum())
        x0 = x0.clamp(-1.0, 1.0) if clip else x0
        coef1 = beta[t] * before[t].sqrt() / (1.0 - bar[t])
        coef2 = (1.0 - before[t]) * (1.0 - beta[t]).sqrt() / (1.0 - bar[t])
        noise = NoiseTape(seeds).draw(i, x.detach())
        deviation = (beta[t] * (1.0 - before[t]) / (1.0 - bar[t])).sqrt()
        seen = torch.nn.functional.avg_pool2d(x0, 2)
        (g,) = torch.autograd.grad((y - seen).flatten(1).norm(dim=1).sum(), x)
        x = coef1 * x0 + coef2 * x + deviation * noise - zeta * g
    assert clamped > 20
    ours = DPS(steps=TIMES, zeta=zeta, clip=clip)(pixels, measurement, seeds=seeds)
    expected = (x.detach() / 2.0 + 0.5).clamp(0.0, 1.0)
    assert ours.x.dtype == F64 and float((ours.x - expected).abs().max()) < 1e-9
    assert bool(((expected > 0.0) & (expected < 1.0)).any())


class WithLikelihood:
    """A network whose eps is that of s + grad log N(y; A(x0), sigma_y^2), by autograd through everything."""

    def __init__(self, network: Any, measurement: Measurement) -> None:
        self.network, self.measurement = network, measurement
        self.schedule, self.parametrisation = network.schedule, network.parametrisation

    def __call__(self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Any = None) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (eps,) = self.network(x, level, branches)
            seen = torch.nn.functional.avg_pool2d(((x - level.sigma * eps) / level.alpha + 1.0) / 2.0, 2)
            log_p = -(self.measurement.y - seen).square().sum() / (2.0 * self.measurement.sigma_y**2)
            (g,) = torch.autograd.grad(log_p, x)
        return ((eps - level.sigma * g).detach(),)


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M()])
def test_the_gaussian_likelihood_guides_any_solver(pixels, solver):
    seeds, measurement = (3, 4), halves(0.5)
    network = WithLikelihood(pixels.encode(["", ""], None, height=8, width=8), measurement)
    table = trace(solver, uniform_time(pixels.schedule, TIMES), pixels.schedule)
    x = solve(table, network, initial_noise(seeds, (3, 8, 8)).double()).x
    ours = DPSGaussian(steps=TIMES, solver=solver)(pixels, measurement, seeds=seeds)
    assert float((ours.x - (x / 2.0 + 0.5).clamp(0.0, 1.0)).abs().max()) < 1e-9


METHODS = (DPS(steps=3), DPSGaussian(steps=3), PiGDM(steps=3), TMPD(steps=3, iterations=4))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_an_image_does_not_depend_on_its_batch(pixels, method):
    """To the rounding of the network's own batched arithmetic."""
    measurement = halves(0.3)
    both = method(pixels, measurement, seeds=(3, 4)).x
    for k, seed in enumerate((3, 4)):
        alone = method(pixels, replace(measurement, y=measurement.y[k : k + 1]), seeds=(seed,)).x
        assert float((both[k : k + 1] - alone).abs().max()) < 1e-9
    assert float((both[0] - both[1]).abs().max()) > 0.01


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_without_guidance_it_is_the_solver_alone(pixels, method):
    method = replace(method, zeta=0.0, solver=DDIM(), init="gaussian")
    table = trace(DDIM(), uniform_time(pixels.schedule, 3), pixels.schedule)
    network = pixels.encode([""], None, height=8, width=8)
    x = solve(table, network, initial_noise((3,), (3, 8, 8)).double()).x
    ours = method(pixels, halves(0.3, 1), seeds=(3,))
    assert float((ours.x - (x / 2.0 + 0.5).clamp(0.0, 1.0)).abs().max()) < 1e-12


@pytest.mark.parametrize(("method", "backward"), list(zip(METHODS, (3, 3, 3, 3 * 5), strict=True)))
def test_what_a_run_costs(pixels, method, backward):
    """One evaluation a step, forward; TMPD goes backward once an iteration and once more. The decoder is counted too:
    once a step and once for the picture, and what the methods try beforehand is not."""
    ledger = method(pixels, halves(0.3), seeds=(3, 4)).report.ledger
    assert (ledger.forward, ledger.backward) == (2 * 3, 2 * backward)
    through = 2 * 3 if isinstance(method, DPS | DPSGaussian) else 0
    assert (ledger.decoder_forward, ledger.decoder_backward) == (2 * 4, through)


def test_float32_restores_on_a_network_of_pixels():
    backbone = backbone_of(DDPMPipeline(tiny_pixels().unet, LOUD))
    x = pictures().float()
    for operator in (InpaintRandom(0.5), Downsample(2)):
        measurement = Measurement.simulate(operator, x, 0.3, (0, 1))
        for method in METHODS:
            found = method(backbone, measurement, seeds=(3, 4))
            assert found.x.dtype == torch.float32 and found.x.shape == x.shape and bool(torch.isfinite(found.x).all())


# ---------------------------------------------------------------- refusals


def test_operators_and_models_that_are_not_linear_are_refused(pixels):
    jpeg = Measurement.simulate(JPEG(), pictures().float(), 0.05, (0, 1))
    small = backbone_of(tiny_sd())
    latent = Measurement.simulate(Denoise(), torch.rand(1, 3, 16, 16), 0.05, (0,))
    for method in (PiGDM(steps=2), TMPD(steps=2)):
        name = type(method).__name__
        with pytest.raises(IncompatibleError, match=f"{name} needs a linear operator.*LDPS or STSL"):
            method(pixels, jpeg, seeds=(3, 4))
        with pytest.raises(IncompatibleError, match=f"{name} needs a model whose states are pixels.*LDPS or STSL"):
            method(small, latent, seeds=(3,))
    with pytest.raises(IncompatibleError, match="clip=True needs a model whose states are pixels"):
        DPS(steps=2, clip=True)(small, latent, seeds=(3,))
    assert DPS(steps=2)(pixels, jpeg, seeds=(3, 4)).x.shape == (2, 3, 8, 8)


def test_numbers_that_cannot_be(pixels):
    without_noise = halves(0.0)
    for method in (TMPD(steps=2), DPSGaussian(steps=2)):
        with pytest.raises(ConfigError, match=f"{type(method).__name__}.* sigma_y"):
            method(pixels, without_noise, seeds=(3, 4))
    assert bool(torch.isfinite(PiGDM(steps=2)(pixels, without_noise, seeds=(3, 4)).x).all())
    for make in (DPS, DPSGaussian, PiGDM, TMPD):
        with pytest.raises(ConfigError, match="zeta"):
            make(zeta=-1.0)
    with pytest.raises(ConfigError, match="prior_variance"):
        PiGDM(prior_variance=0.0)
    with pytest.raises(ConfigError, match="weight must be one of exact, released, got 'full'"):
        PiGDM(weight="full")  # type: ignore[arg-type]
    for value in (0, 2.5, True):
        with pytest.raises(ConfigError, match="iterations"):
            TMPD(iterations=value)
    with pytest.raises(IncompatibleError, match="guidance scale of 1"):
        PiGDM(steps=2, guidance_scale=2.0)(pixels, halves(), seeds=(3, 4))
    with pytest.raises(IncompatibleError, match="trained without text"):
        DPS(steps=2)(pixels, halves(), prompt="a red circle", seeds=(3, 4))


def test_a_run_that_diverges_says_what_to_lower(pixels):
    with pytest.raises(NumericsError, match=r"DPSGaussian diverged at step \d of 6 .*lower zeta, which is 1000000000"):
        DPSGaussian(steps=6, zeta=1e9)(pixels, halves(0.01), seeds=(3, 4))
