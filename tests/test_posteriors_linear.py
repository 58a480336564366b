"""PiGDM and TMPD against dense matrices and closed forms; for which Gaussians they are exact, and DPS is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fewstep.inverse.dps import DPS, DPSGaussian
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import InpaintRandom
from fewstep.inverse.pigdm import PiGDM
from fewstep.inverse.posterior import Posterior
from fewstep.inverse.tmpd import TMPD
from fewstep.inverse.tweedie import guided
from fewstep.models.gaussian_mixture import GaussianMixture
from fewstep.models.mixture_backbone import MixtureBackbone
from fewstep.samplers import FLOW, Level, Prediction, RectifiedFlow

F64 = torch.float64
D = 6


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def anisotropic() -> Tensor:
    """A covariance with eigenvalues from 0.05 to 3."""
    Q, _ = torch.linalg.qr(normal(D, D, seed=3))
    return (Q * torch.logspace(-1.3, 0.5, D, dtype=F64)) @ Q.mT


def gaussian(C: Tensor) -> GaussianMixture:
    return GaussianMixture(torch.ones(1), normal(1, D, seed=4), C.unsqueeze(0))


def three_modes() -> GaussianMixture:
    covariances = torch.stack([anisotropic(), 0.3 * anisotropic(), 0.5 * torch.eye(D, dtype=F64)])
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3]), normal(3, D, seed=5), covariances)


class Half(MixtureBackbone):
    """States in [-1, 1] where pixels are in [0, 1]: D' = I / 2, known to nobody but to_pixels."""

    pixel_range = 2.0

    def to_pixels(self, latents: Tensor) -> Tensor:
        return latents / 2.0 + 0.5

    def to_latents(self, images: Tensor) -> Tensor:
        return 2.0 * images - 1.0


@dataclass(frozen=True, eq=False)
class Matrix:
    """y = M x, with nothing but its adjoint: everything else is by conjugate gradients."""

    M: Tensor

    def A(self, x: Tensor) -> Tensor:
        return x @ self.M.mT

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y @ self.M


class Known(Matrix):
    """The same with a proximal step in closed form; its own pseudo-inverse, too."""

    def A_dagger(self, y: Tensor) -> Tensor:
        return y @ torch.linalg.pinv(self.M).mT

    def prox_l2(self, z: Tensor, y: Tensor, gamma: Any) -> Tensor:
        return (z + gamma * y @ self.M) @ torch.linalg.inv(
            torch.eye(self.M.shape[1], dtype=F64) + gamma * self.M.mT @ self.M
        )


class Seen(NamedTuple):
    x: Tensor
    level: Level
    x0: Tensor
    eps: Tensor


def ticks(method: Posterior, backbone: Any, measurement: Measurement) -> list[Seen]:
    """State and guided prediction of every tick but the first; x (B, D)."""
    found, states = [], []

    def on_tick(tick: Any) -> None:
        if states:
            p = tick.prediction
            found.append(Seen(states[-1].flatten(1), tick.level, p.x0.flatten(1), p.eps.flatten(1)))
        states.append(tick.state.x)

    method(backbone, measurement, seeds=(1, 2), on_tick=on_tick)
    assert len(found) == method.steps - 1
    return found


def posed(prior: GaussianMixture, kind: str, operator: type[Matrix], sigma_y: float) -> tuple[Any, Measurement, Tensor]:
    """(backbone, measurement, H) of two pictures, three numbers of each."""
    if kind == "wide":
        W, _ = torch.linalg.qr(normal(10, D, seed=6))
        backbone, slope = MixtureBackbone(prior, decoder=(W, normal(10, seed=7))), W
    else:
        backbone = (Half if kind == "half" else MixtureBackbone)(prior)
        slope = torch.eye(D, dtype=F64) / backbone.pixel_range
    M = normal(3, slope.shape[0], seed=8)
    x = backbone.to_pixels(prior.sample(2, 9).view(2, 1, 1, D))
    return backbone, Measurement.simulate(operator(M), x, sigma_y, (5, 6)), M @ slope


def by_matrices(backbone: Any, measurement: Measurement, H: Tensor, seen: Seen, k: int, r2: float | None) -> Tensor:
    """x0' of image k from dense matrices; r2: of PiGDM, or None for the covariance of the network."""
    a, s = float(seen.level.alpha), float(seen.level.sigma)
    prior: GaussianMixture = backbone.prior
    x = seen.x[k : k + 1]
    x0 = prior.prediction(x, seen.level).x0[0]
    J = torch.autograd.functional.jacobian(lambda v: prior.prediction(v[None], seen.level).x0[0], x[0])
    Cov = s * s / a * J if r2 is None else r2 * torch.eye(D, dtype=F64)
    r = measurement.y[k].flatten() - measurement.operator.A(backbone.to_pixels(x0.view(1, 1, 1, D))).flatten()
    S = H @ Cov @ H.mT + measurement.sigma_y**2 * torch.eye(3, dtype=F64)
    return x0 + s * s / a * J.mT @ H.mT @ torch.linalg.solve(S, r)


@pytest.mark.parametrize("operator", [Matrix, Known])
@pytest.mark.parametrize("kind", ["same", "half", "wide"])
@pytest.mark.parametrize("sigma_y", [0.3, 0.0])
def test_pigdm_is_its_formula(kind, operator, sigma_y):
    """Residuals of the conjugate gradients are 1e-12 of the right side; the systems' condition is below 1e3."""
    backbone, measurement, H = posed(three_modes(), kind, operator, sigma_y)
    for seen in ticks(PiGDM(steps=4), backbone, measurement):
        r2 = float(seen.level.sigma) ** 2 / (float(seen.level.alpha) ** 2 + float(seen.level.sigma) ** 2)
        for k in range(2):
            expected = by_matrices(backbone, measurement, H, seen, k, r2)
            assert float((seen.x0[k] - expected).abs().max()) < 1e-8


def test_the_released_weight_is_alpha_squared_times_the_exact_one():
    """On the variance-preserving schedule; released is x0 + alpha_t J^T H^+ r for sigma_y = 0."""
    backbone, measurement, H = posed(three_modes(), "same", Known, 0.0)
    for seen in ticks(PiGDM(steps=4, weight="released"), backbone, measurement):
        a, r2 = float(seen.level.alpha), float(seen.level.sigma) ** 2
        x0 = backbone.prior.prediction(seen.x, seen.level).x0
        for k in range(2):
            exact = by_matrices(backbone, measurement, H, seen, k, r2)
            assert float((seen.x0[k] - (x0[k] + a * a * (exact - x0[k]))).abs().max()) < 1e-8


@pytest.mark.parametrize("kind", ["same", "half", "wide"])
def test_tmpd_is_its_formula(kind):
    """For priors that are no Gaussian, too: two modes or more, and J from automatic differentiation."""
    backbone, measurement, H = posed(three_modes(), kind, Matrix, 0.3)
    for seen in ticks(TMPD(steps=4, iterations=9), backbone, measurement):
        for k in range(2):
            expected = by_matrices(backbone, measurement, H, seen, k, None)
            assert float((seen.x0[k] - expected).abs().max()) < 1e-8


def conditional(prior: GaussianMixture, measurement: Measurement, H: Tensor, seen: Seen) -> Tensor:
    """E[x0 | x_t, y] of a Gaussian: both are measurements of x0, stacked."""
    a, s = float(seen.level.alpha), float(seen.level.sigma)
    G = torch.cat([a * torch.eye(D, dtype=F64), H])
    noise = torch.tensor([s * s] * D + [measurement.sigma_y**2] * 3, dtype=F64)
    y = torch.cat([seen.x, measurement.y.flatten(1)], 1)
    return torch.stack([prior.posterior(G / noise.sqrt()[:, None], row / noise.sqrt(), 1.0).mean for row in y])


C_UNIT, C_WIDE = torch.eye(D, dtype=F64), 2.5 * torch.eye(D, dtype=F64)


@pytest.mark.parametrize(
    ("method", "C", "exact"),
    [
        (TMPD(steps=5, iterations=9), anisotropic(), True),
        (PiGDM(steps=5), C_UNIT, True),
        (PiGDM(steps=5, prior_variance=2.5), C_WIDE, True),
        (TMPD(steps=5, iterations=1), anisotropic(), False),
        (PiGDM(steps=5), C_WIDE, False),
        (PiGDM(steps=5), anisotropic(), False),
        (DPSGaussian(steps=5), C_UNIT, False),
    ],
    ids=["tmpd", "pigdm-unit", "pigdm-variance", "tmpd-1-iteration", "pigdm-wide", "pigdm-anisotropic", "dps"],
)
def test_for_which_gaussians_the_guided_prediction_is_exact(method, C, exact):
    """E[x0 | x_t, y] in closed form: reached by the network's covariance for all, by r_t^2 I for multiples of I."""
    backbone, measurement, H = posed(gaussian(C), "same", Known, 0.3)
    worst = 0.0
    for seen in ticks(method, backbone, measurement):
        expected = conditional(backbone.prior, measurement, H, seen)
        worst = max(worst, float((seen.x0 - expected).abs().max()))
        whole = float(seen.level.alpha) * seen.x0 + float(seen.level.sigma) * seen.eps
        assert float((whole - seen.x).abs().max()) < 1e-9  # eps' is the one that belongs to x0'
    assert worst < 1e-8 if exact else worst > 1e-2


def test_what_was_not_measured_is_not_read():
    """In a hole y may hold anything."""
    backbone = MixtureBackbone(gaussian(anisotropic()))
    operator = InpaintRandom(0.5)
    clean = Measurement.simulate(operator, backbone.prior.sample(2, 9).view(2, 1, 1, D), 0.3, (5, 6))
    dirty = replace(clean, y=torch.where(operator.observed(clean.y), clean.y, 7.0))
    for method in (DPS(steps=3), DPSGaussian(steps=3), PiGDM(steps=3, init="gaussian"), TMPD(steps=3)):
        assert torch.equal(method(backbone, clean, seeds=(1, 2)).x, method(backbone, dirty, seeds=(1, 2)).x)


@pytest.mark.parametrize("method", [PiGDM(steps=4), TMPD(steps=4), DPSGaussian(steps=4), DPS(steps=4)])
def test_flows_begin_where_the_state_says_nothing(method):
    """alpha = 0 at the first tick, where g is 0 and x0' is x0hat; later ticks are guided."""
    prior = gaussian(anisotropic())
    backbone = MixtureBackbone(prior, RectifiedFlow(), FLOW)
    measurement = Measurement.simulate(Matrix(normal(3, D, seed=8)), prior.sample(2, 9).view(2, 1, 1, D), 0.3, (5, 6))
    seen: list[Any] = []
    method(backbone, measurement, seeds=(1, 2), on_tick=seen.append)
    assert seen[0].level.alpha == 0.0 and float((seen[0].prediction.x0.flatten(1) - prior.mean).abs().max()) < 1e-9
    assert float((seen[1].prediction.x0.flatten(1) - prior.mean).abs().max()) > 1e-3


def test_guided_by_hand():
    p = guided(Prediction(torch.ones(1), torch.zeros(1)), Level(0.0, 0.8, 0.6), torch.full((1,), 0.36 * 2.0))
    assert float(p.x0) == pytest.approx(1.0 + 0.36 / 0.8 * 2.0) and float(p.eps) == pytest.approx(-0.6 * 2.0)
