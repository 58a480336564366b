"""JPEG against Pillow's encoder, its gradients, and what it does not depend on."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fewstep.inverse.operators import JPEG, is_linear
from fewstep.inverse.operators.jpeg import _CHROMINANCE, _LUMINANCE, _transform, quantisation

from .operator_rows import normal, pictures

ZIGZAG = sorted(range(64), key=lambda n: (n // 8 + n % 8, n // 8 if (n // 8 + n % 8) % 2 else n % 8))


def encoded(x: torch.Tensor, quality: int, chroma: str = "4:4:4") -> Image.Image:
    pixels = (255 * x[0]).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=chroma)
    return Image.open(stream)


def levels(image: Image.Image) -> torch.Tensor:
    array = torch.from_numpy(np.array(image)).double()
    return array[None, None] if array.dim() == 2 else array.permute(2, 0, 1)[None]


def soft(channels: int = 3, height: int = 50, width: int = 37) -> torch.Tensor:
    x = F.interpolate(pictures(1, size=(channels, 7, 6)), (height, width), mode="bicubic", align_corners=False)
    return x.clamp(0.0, 1.0)


@pytest.mark.parametrize("quality", [1, 5, 10, 49, 50, 51, 75, 95, 100])
def test_tables_are_those_in_the_file(quality):
    tables = encoded(soft(), quality).quantization
    for table, ours in zip((tables[0], tables[1]), (_LUMINANCE, _CHROMINANCE), strict=True):
        scaled = quantisation(ours, quality)
        assert tuple(table) in (scaled, tuple(scaled[n] for n in ZIGZAG))  # Pillow's order changed with its versions


def test_grey_is_pillows_to_one_level():
    """Blocks of a constant and one wave, 0.1 of a step away from multiples: neither the rounding of the pixels (at most
    4 in a coefficient, steps are 50 and more) nor libjpeg's whole-number transform changes what they are rounded to.
    The inverse transform may round another way."""
    generator = torch.Generator().manual_seed(1)
    D = _transform(torch.float64, torch.device("cpu"))
    Q = torch.tensor(quantisation(_LUMINANCE, 10), dtype=torch.float64).view(8, 8)
    multiples = torch.zeros(20, 8, 8, dtype=torch.float64)
    multiples[:, 0, 0] = torch.randint(-4, 5, (20,), generator=generator)
    u, v = torch.randint(1, 3, (2, 20), generator=generator)
    multiples[torch.arange(20), u, v] = 1.0
    near = multiples + 0.1 * multiples.sign()
    pixels = (D.mT @ (near * Q) @ D + 128.0).view(5, 4, 8, 8).transpose(1, 2).reshape(1, 1, 40, 32)
    assert 0.0 < pixels.min() and pixels.max() < 255.0
    ours = 255 * JPEG(10).A(pixels.round() / 255)
    exact = (D.mT @ (multiples * Q) @ D + 128.0).view(5, 4, 8, 8).transpose(1, 2).reshape(1, 1, 40, 32)
    assert float((ours - exact).abs().max()) <= 0.5 + 1e-9
    assert float((ours - levels(encoded(pixels / 255, 10))).abs().max()) <= 1.0


@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("quality", [1, 5, 10, 20, 50])
@pytest.mark.parametrize("size", [(50, 37), (16, 16), (1, 1), (9, 17)])
def test_colour_is_pillows(quality, chroma, size):
    """A hundredth to a tenth of the loss itself: where a coefficient lies near the middle between two multiples,
    libjpeg's whole-number arithmetic may choose the other one."""
    x = soft(3, *size)
    theirs = levels(encoded(x, quality, chroma))
    ours = 255 * JPEG(quality, chroma).A(x)
    loss = float((theirs - 255 * x).abs().mean())
    assert float((ours - theirs).abs().mean()) <= 0.1 * loss + 0.5


def test_grey_of_one_channel_has_no_colour():
    x = soft(1)
    assert torch.allclose(JPEG(30).A(x), JPEG(30, "4:4:4").A(x.expand(1, 3, 50, 37)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("quality", [5, 60])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_is_the_identity_without_subsampling(quality, channels):
    x = pictures(2, size=(channels, 19, 10)).mul(1.4).sub(0.2).requires_grad_()  # some are clipped
    y = JPEG(quality, "4:4:4").A(x)
    v = normal(y, 1)
    (gradient,) = torch.autograd.grad(y, x, v)
    assert torch.allclose(gradient, v, rtol=0, atol=1e-12)
    assert torch.equal(y.detach(), JPEG(quality, "4:4:4").A(x.detach()))


def test_gradient_of_colour_passes_the_filters():
    """That of Y + the subsampled and interpolated colour, written here with other matrices."""
    x = pictures(1, size=(3, 12, 20)).requires_grad_()
    y = JPEG(10).A(x)
    v = normal(y, 1)
    K = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)
    luma = (K * x).sum(1, keepdim=True)
    colour = F.interpolate(F.avg_pool2d(x - luma, 2), scale_factor=2, mode="bilinear", align_corners=False)
    expected = torch.autograd.grad(luma + colour, x, v)
    assert torch.allclose(torch.autograd.grad(y, x, v)[0], expected[0], rtol=0, atol=1e-12)


def test_alike_in_batches_and_dtypes():
    x = pictures(3, size=(3, 21, 18))
    operator = JPEG(15)
    y = operator.A(x)
    assert torch.equal(y[1:2], operator.A(x[1:2]))
    eight_bits = (255 * x).round() / 255
    assert torch.equal(operator.A(eight_bits.float()), operator.A(eight_bits).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator.A(x), y)
    assert y.dtype == torch.float64 and float(y.min()) >= 0.0 and float(y.max()) <= 1.0
    assert not is_linear(operator) and operator.guess(y) is y


def test_quality_orders_the_loss():
    x = soft()
    losses = [float((JPEG(q).A(x) - x).square().mean()) for q in (5, 10, 20, 50, 90)]
    assert losses == sorted(losses, reverse=True)
    assert float((JPEG(100, "4:4:4").A(x) - x).abs().max()) <= 4 / 255  # steps of 1 and three roundings
