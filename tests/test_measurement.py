"""Measurements, data losses and the proximal step."""

import math

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.inverse.likelihood import check_weighting, data_loss, prox
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import Denoise, Downsample, InpaintBox
from fewstep.samplers import NoiseTape

from .posterior_runs import CLOSE, SIGMA, Duck, Squared, far, measured, pictures


def test_noise_belongs_to_the_seed():
    """Image k has the same noise alone, in a batch, and of another picture; other seeds have other noise."""
    x, operator = pictures(3), Downsample(2)
    batch = Measurement.simulate(operator, x, 0.1, seeds=(4, 5, 6))
    for k in range(3):
        alone = Measurement.simulate(operator, x[k : k + 1], 0.1, seeds=(4 + k,))
        assert torch.equal(alone.y[0], batch.y[k])
    noise = (batch.y - operator.A(x)) / 0.1
    other = Measurement.simulate(operator, 1.0 - x, 0.1, seeds=(4, 5, 6))
    assert far(noise, (other.y - operator.A(1.0 - x)) / 0.1) < CLOSE
    assert far(noise[0], noise[1]) > 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=5.0 / math.sqrt(2 * noise.numel()))


def test_chi2_of_the_truth_is_one_and_counts_what_was_measured():
    for operator, count in ((Downsample(2), 3 * 64), (InpaintBox(), 3 * (256 - 64))):
        y = measured(2, operator)
        assert y.count.tolist() == [count, count] and y.batch == 2
        assert y.chi2(pictures(2)).tolist() == pytest.approx([1.0, 1.0], abs=5.0 * math.sqrt(2.0 / count))
        assert y.chi2(pictures(2) + 1.0).min() > 10.0
        assert y.chi2(pictures(2)).dtype == torch.float64


def test_what_was_not_measured_does_not_count():
    operator = InpaintBox()
    y = measured(2, operator)
    hole = ~operator.observed(y.y).expand_as(y.y)
    assert not y.y[hole].any()
    x = pictures(2)
    noisy = torch.where(hole, math.nan, x)
    assert not y.residual(x)[hole].any() and y.residual(noisy).isfinite().all()
    filled = Measurement(torch.where(hole, 7.0, y.y), operator, y.sigma_y)
    assert torch.equal(filled.residual(x), y.residual(x)) and torch.equal(filled.chi2(x), y.chi2(x))


def test_without_noise():
    y = measured(sigma_y=0.0)
    assert not y.residual(pictures(2)).any() and y.chi2(pictures(2)).isnan().all()


def test_one_measurement_for_many_pictures():
    y = measured(1)
    many = y.images(3)
    assert many.batch == 3 and torch.equal(many.y[2], y.y[0]) and y.images(1) is y and many.sigma_y == y.sigma_y
    with pytest.raises(ConfigError, match="2 measurements for 3"):
        measured(2).images(3)


def test_a_first_picture():
    assert measured().guess().shape == (2, 3, 16, 16)
    y = Measurement.simulate(Duck(), pictures(2), 0.0, seeds=(0, 1))
    assert far(y.guess()[..., ::2, :], pictures(2)[..., ::2, :]) < CLOSE  # its adjoint is four times as bright

    class Neither:
        def A(self, x):
            return x

    with pytest.raises(IncompatibleError, match="guess"):
        Measurement(pictures(1), Neither(), 0.1).guess()


@pytest.mark.parametrize(
    "y, operator, sigma_y, error, words",
    [
        ("y", Denoise(), 0.1, IncompatibleError, "tensor"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.float16), Denoise(), 0.1, IncompatibleError, "float16"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), Denoise(), 0.1, IncompatibleError, "uint8"),
        (torch.zeros(3), Denoise(), 0.1, ConfigError, "shape"),
        (torch.zeros(0, 3, 4, 4), Denoise(), 0.1, ConfigError, "shape"),
        (torch.full((1, 3, 4, 4), math.nan), Denoise(), 0.1, ConfigError, "finite"),
        (torch.zeros(1, 3, 4, 4), object(), 0.1, IncompatibleError, "A\\(x\\)"),
        (torch.zeros(1, 3, 4, 4), Denoise(), -0.1, ConfigError, "sigma_y"),
        (torch.zeros(1, 3, 4, 4), Denoise(), math.nan, ConfigError, "sigma_y"),
        (torch.zeros(1, 3, 4, 4), Denoise(), "0.1", ConfigError, "sigma_y"),
    ],
)
def test_what_cannot_be_measured(y, operator, sigma_y, error, words):
    with pytest.raises(error, match=words):
        Measurement(y, operator, sigma_y)


def test_an_operator_of_another_size():
    with pytest.raises(IncompatibleError, match="not made for this measurement"):
        Measurement(torch.zeros(1, 3, 4, 4), Downsample(4), 0.1).residual(torch.zeros(1, 3, 8, 8))


def test_losses_are_their_formulas_and_per_image():
    y, x = measured(), pictures(2) + 0.1
    r = (y.y - y.operator.A(x)).flatten(1)
    expected = {"norm": r.norm(dim=1), "squared": r.square().sum(1), "gaussian": r.square().sum(1) / (2 * 0.05**2)}
    for weighting, value in expected.items():
        loss, residual = data_loss(y, x, weighting)  # type: ignore[arg-type]
        assert far(loss / value, torch.ones(2)) < 1e-12 and far(residual, r.norm(dim=1)) < 1e-12
        x_ = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(data_loss(y, x_, weighting)[0][0], x_)  # type: ignore[arg-type]
        assert gradient[0].any() and not gradient[1].any()
        assert not data_loss(y, x_, weighting)[1].requires_grad  # type: ignore[arg-type]


def test_the_gradient_where_nothing_is_left():
    """|r| has none at r = 0; it is taken as 0, not NaN."""
    y = measured(sigma_y=0.0)
    x = pictures(2).requires_grad_()
    (gradient,) = torch.autograd.grad(data_loss(y, x, "norm")[0].sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_losses_are_float32_whatever_the_network_is(dtype):
    y, x = measured(dtype=torch.float32), pictures(2, torch.float32).to(dtype)
    plain = data_loss(y, x, "norm")
    with torch.autocast("cpu", torch.bfloat16):
        inside = data_loss(y, x, "norm")
    assert plain[0].dtype == plain[1].dtype == torch.float32
    assert torch.equal(plain[0], inside[0]) and torch.equal(plain[1], inside[1])


def test_weightings_that_do_not_exist():
    check_weighting("norm")
    check_weighting("gaussian", 0.1)
    check_weighting("polyak", polyak=True)
    for weighting in ("l2", "", "polyak"):
        with pytest.raises(ConfigError, match="norm, squared, gaussian"):
            check_weighting(weighting)
    with pytest.raises(ConfigError, match="sigma_y"):
        check_weighting("gaussian", 0.0)


def test_prox_of_an_operator_that_has_none():
    """By conjugate gradients: the gradient of its objective is 0."""
    y = Measurement.simulate(Duck(), pictures(2), 0.1, seeds=(0, 1))
    z, gamma = pictures(2) + 0.3, 0.7
    u = prox(y, z, gamma)
    assert far(gamma * Duck().A_adjoint(Duck().A(u) - y.y) + u - z, torch.zeros_like(z)) < 1e-10
    own = prox(measured(2, Denoise()), z, gamma)
    assert far(own, (z + gamma * measured(2, Denoise()).y) / (1.0 + gamma)) < CLOSE
    with pytest.raises(IncompatibleError, match="linear"):
        prox(measured(operator=Squared()), z, gamma)


def test_prox_keeps_no_graph():
    z = pictures(2).requires_grad_()
    assert not prox(measured(2, Denoise()), z, 1.0).requires_grad


class Masked:
    """Inpainting as deepinv has it: a mask, and nothing else that says what was measured."""

    def __init__(self, mask):
        self.mask = mask

    def A(self, x):
        return self.mask * x

    def A_adjoint(self, y):
        return self.mask * y


def test_a_mask_that_the_operator_has_is_what_was_measured():
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.float64)
    mask[0, :, :8], mask[1, :, :2] = 1.0, 1.0
    x = pictures(2)
    y = Measurement.simulate(Masked(mask), x, SIGMA, seeds=(0, 1))
    assert y.count.tolist() == [3 * 16 * 8, 3 * 16 * 2] and not y.y[1, :, 2:].any()
    for k in range(2):
        alone = Measurement(y.y[k : k + 1], Masked(mask[k : k + 1]), SIGMA)
        assert alone.chi2(x[k : k + 1]).item() == pytest.approx(y.chi2(x)[k].item(), rel=1e-12)
        assert abs(y.chi2(x)[k].item() - 1.0) < 5.0 * math.sqrt(2.0 / (3 * 16 * (8, 2)[k]))


def test_the_first_guess_of_a_foreign_operator_has_the_pictures_brightness():
    class Foreign:
        inner = Downsample(4)

        def __init__(self):
            self.A, self.A_adjoint, self.A_dagger = self.inner.A, self.inner.A_adjoint, self.inner.A_dagger

    grey = torch.full((1, 3, 16, 16), 0.8, dtype=torch.float64)
    assert float(Measurement(Foreign().A(grey), Foreign(), 0.0).guess().mean()) == pytest.approx(0.8, abs=1e-6)


def test_a_run_of_the_same_seeds_draws_other_noise():
    y = Measurement.simulate(Denoise(), pictures(2), 1.0, seeds=(0, 1))
    noise = y.y - pictures(2)
    for tick in range(3):
        assert far(NoiseTape((0, 1)).draw(tick, noise), noise) > 0.5
