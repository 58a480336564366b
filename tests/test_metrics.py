"""PSNR and SSIM against their definitions."""

import math

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.inverse.metrics import psnr, ssim


def pictures(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_is_that_of_each_image():
    x = torch.zeros(2, 3, 4, 4)
    truth = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    found = psnr(x, truth)
    assert found.dtype == torch.float64 and found[0].item() == pytest.approx(20.0, abs=1e-5) and math.isinf(found[1])


def test_ssim_is_the_formula_written_out_pixel_by_pixel():
    x, y = pictures(0, 2, 2, 13, 12), pictures(1, 2, 2, 13, 12)
    weights = torch.tensor([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)])
    w = weights.double() / weights.double().sum()
    for b in range(2):
        values = []
        for c in range(2):
            for i in range(3):
                for j in range(2):
                    p, q = x[b, c, i : i + 11, j : j + 11], y[b, c, i : i + 11, j : j + 11]
                    mp, mq = (w * p).sum(), (w * q).sum()
                    vp, vq, cov = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
                    top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                    values.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        # weights are float32 exponentials: 1e-7 relative in each moment
        assert ssim(x, y)[b].item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-6)
    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_ssim_is_that_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    x, y = pictures(0, 2, 3, 32, 40), (pictures(0, 2, 3, 32, 40) + 0.2 * pictures(1, 2, 3, 32, 40)).clamp(max=1.0)
    measure = functional.structural_similarity_index_measure
    _, full = measure(x, y, data_range=1.0, reduction="none", return_full_image=True)
    inside = full[..., 5:-5, 5:-5]  # their mean is over reflected borders, too
    torch.testing.assert_close(ssim(x, y), inside.flatten(1).mean(1), rtol=0, atol=1e-6, check_dtype=False)


def test_pictures_that_cannot_be_compared():
    with pytest.raises(ConfigError, match="11x11 pixels at least, got 10x12"):
        ssim(torch.zeros(1, 3, 10, 12), torch.zeros(1, 3, 10, 12))
    for metric in (psnr, ssim):
        with pytest.raises(ConfigError, match="alike"):
            metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16))
