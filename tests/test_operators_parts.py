"""What single operators do: masks, cubic weights, kernels, padding; and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fewstep.errors import ConfigError, IncompatibleError, NumericsError
from fewstep.inverse.operators import (
    JPEG,
    Composed,
    Denoise,
    Downsample,
    GaussianBlur,
    InpaintBox,
    InpaintMask,
    InpaintRandom,
    KernelBlur,
    MotionBlur,
    dagger_by_cg,
    guess_of,
    is_linear,
    name_of,
    prox_by_cg,
)
from fewstep.inverse.operators.blur import PADDINGS

from .operator_rows import normal, pictures

NAN = float("nan")

# --- inpainting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 256, 512])
def test_default_box(side):
    mask = InpaintBox().mask_for(side, side)
    quarter = side // 4
    expected = torch.ones(1, 1, side, side, dtype=torch.bool)
    expected[..., quarter:-quarter, quarter:-quarter] = False
    assert torch.equal(mask, expected)


def test_random_boxes_keep_their_margin_and_go_everywhere():
    tops = set()
    for seed in range(200):
        mask = InpaintBox(8, "random", 3, seed).mask_for(20, 40)
        rows, columns = (~mask[0, 0]).any(1).nonzero().flatten(), (~mask[0, 0]).any(0).nonzero().flatten()
        assert len(rows) == len(columns) == 8 and (~mask).sum() == 64
        assert rows[0] >= 3 and rows[-1] < 17 and columns[0] >= 3 and columns[-1] < 37
        tops.add(int(rows[0]))
    assert tops == set(range(3, 10))


def test_masks_are_functions_of_seed_and_size():
    for make in (lambda seed: InpaintRandom(0.7, seed), lambda seed: InpaintBox(0.2, "random", 0.1, seed)):
        first, again, other = (make(seed).mask_for(31, 17) for seed in (5, 5, 6))
        torch.manual_seed(0)
        assert torch.equal(first, again) and torch.equal(first, make(5).mask_for(31, 17))
        assert not torch.equal(first, other)


def test_random_pixels_are_as_many_as_asked_for_in_all_channels():
    mask = InpaintRandom(0.4, 3).mask_for(10, 15)
    assert mask.shape == (1, 1, 10, 15) and int((~mask).sum()) == 60
    y = InpaintRandom(0.4, 3).A(torch.ones(2, 3, 10, 15))
    assert torch.equal(y, mask.float().expand(2, 3, 10, 15))


def test_the_hole_is_never_read():
    operator = InpaintBox()
    x = pictures(1)
    broken = torch.where(operator.observed(x), x, NAN)
    assert torch.equal(operator.A(broken), operator.A(x))
    assert torch.equal(operator.prox_l2(x, broken, 5.0), operator.prox_l2(x, operator.A(x), 5.0))
    assert torch.equal(operator.guess(broken), operator.guess(operator.A(x)))


def test_guess_fills_the_hole_with_the_mean():
    mask = torch.zeros(2, 4, 4)
    mask[0, 0, :2] = 1
    x = pictures(1, size=(2, 4, 4))
    guess = InpaintMask(mask).guess(x)
    assert torch.allclose(guess[0, 0, 1:], (x[0, 0, 0, 0] + x[0, 0, 0, 1]).div(2).expand(3, 4))
    assert torch.equal(guess[0, 0, 0, :2], x[0, 0, 0, :2]) and bool((guess[0, 1] == 0.5).all())


# --- super-resolution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_bicubic_is_pillows_and_torchs_inside(factor):
    """Away from the edges, where they leave out what lies beyond and we mirror; both work in float32."""
    x = pictures(1, size=(1, 12 * factor, 10 * factor))
    y = Downsample(factor).A(x)[0, 0, 2:-2, 2:-2]
    small = Image.fromarray(x[0, 0].float().numpy()).resize((10, 12), Image.Resampling.BICUBIC)
    assert torch.allclose(torch.from_numpy(np.array(small)).double()[2:-2, 2:-2], y, rtol=0, atol=2e-6)
    theirs = F.interpolate(x, (12, 10), mode="bicubic", antialias=True, align_corners=False)[0, 0, 2:-2, 2:-2]
    assert torch.allclose(theirs, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_sees_the_picture_mirrored_at_its_edges(factor):
    x = pictures(1, size=(1, 3 * factor, 6 * factor))
    tall = torch.cat((x.flip(-2), x, x.flip(-2)), -2)
    mirrored = torch.cat((tall.flip(-1), tall, tall.flip(-1)), -1)
    assert torch.allclose(Downsample(factor).A(mirrored)[..., 3:6, 6:12], Downsample(factor).A(x), rtol=0, atol=1e-14)


def test_average_is_average():
    x = pictures(2)
    assert torch.allclose(Downsample(4, "average").A(x), F.avg_pool2d(x, 4), rtol=0, atol=1e-15)


# --- blur -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
def test_blur_is_convolution_of_the_padded_picture(padding):
    k = torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = pictures(2)
    padded = F.pad(x, (3, 3, 2, 2), mode=padding)
    turned = (k / k.sum()).flip(0, 1).expand(3, 1, 5, 7)  # conv2d correlates
    assert torch.allclose(KernelBlur(k, padding).A(x), F.conv2d(padded, turned, groups=3), rtol=0, atol=1e-14)
    g = GaussianBlur(1.2, 7, padding)
    line = g.kernel_for(16, 24)
    square = (line[:, None] * line).expand(3, 1, 7, 7)
    expected = F.conv2d(F.pad(x, (3, 3, 3, 3), mode=padding), square, groups=3)
    assert torch.allclose(g.A(x), expected, rtol=0, atol=1e-14)
    assert torch.allclose(KernelBlur(square[0, 0], padding).A(x), expected, rtol=0, atol=1e-14)


def test_gaussian_kernel():
    assert GaussianBlur().kernel_for(256, 300).shape == (25,)  # 4 std of 3 pixels to each side
    k = GaussianBlur(3.0, 61).kernel_for(256, 256)
    t = torch.arange(-30, 31, dtype=torch.float64)
    assert float(k.sum()) == pytest.approx(1.0, abs=1e-15)
    assert float((k * t * t).sum()) == pytest.approx(9.0, abs=1e-6)
    assert GaussianBlur().kernel_for(64, 64).shape == (7,) and GaussianBlur().kernel_for(1, 1).tolist() == [1.0]


@pytest.mark.parametrize(("side", "size"), [(64, 15), (256, 61), (512, 121), (768, 183), (2, 1), (1, 1)])
def test_motion_kernel_grows_with_the_picture(side, size):
    k = MotionBlur().kernel_for(side, 2 * side)
    assert k.shape == (size, size) and k.dtype == torch.float64
    assert float(k.sum()) == pytest.approx(1.0, abs=1e-14) and float(k.min()) >= 0.0


@pytest.mark.parametrize("intensity", [0.0, 0.5, 1.0])
def test_motion_kernel_is_a_line_around_the_centre(intensity):
    for seed in range(20):
        k = MotionBlur(31, intensity, seed).kernel_for(64, 64)
        torch.manual_seed(seed)
        assert torch.equal(k, MotionBlur(31, intensity, seed).kernel_for(300, 32))
        assert not torch.equal(k, MotionBlur(31, intensity, seed + 1).kernel_for(64, 64))
        rows, columns = (k > 0).any(1).nonzero().flatten(), (k > 0).any(0).nonzero().flatten()
        for seen in (rows, columns):  # without gaps, and centred to a pixel
            assert len(seen) == seen[-1] - seen[0] + 1 and abs(int(seen[0] + seen[-1]) - 30) <= 2
        extent = max(len(rows), len(columns))
        assert extent <= 31
        if intensity == 0.0:  # straight: 0.5 to 0.9 of 31 pixels long, so at least 15.5 / sqrt(2) along one axis
            assert extent >= 10 and len(rows) ** 2 + len(columns) ** 2 >= 15.5**2


def test_kernels_are_scaled_to_their_sum():
    x = torch.full((1, 3, 8, 8), 0.3)
    assert torch.allclose(KernelBlur(torch.tensor([[1.0, 250.0, 4.0]])).A(x), x)
    dot = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    dot[..., 4, 4] = 1.0
    k = torch.tensor([[0.0, 1.0, 2.0], [3.0, -1.0, 0.0], [0.0, 4.0, 1.0]])
    assert torch.allclose(KernelBlur(k).A(dot)[0, 0, 3:6, 3:6], k.double() / 10, rtol=0, atol=1e-15)


# --- composition and solvers ------------------------------------------------------------------------------------------


def test_composition():
    chain = Composed(JPEG(50), Downsample(2))
    x = pictures(1)
    assert torch.equal(chain.A(x), JPEG(50).A(Downsample(2).A(x)))
    assert not is_linear(chain) and name_of(chain) == "JPEG (quality 50, 4:2:0) after super-resolution x2 (bicubic)"
    assert chain.guess(chain.A(x)).shape == x.shape and chain.observed(chain.A(x)) is None
    for call in (chain.A_adjoint, chain.A_dagger, lambda y: chain.prox_l2(x, y, 1.0), lambda y: dagger_by_cg(chain, y)):
        with pytest.raises(IncompatibleError, match="needs a linear operator"):
            call(chain.A(x))
    hole = InpaintBox()
    assert torch.equal(Composed(hole, GaussianBlur(1.0)).observed(x), hole.observed(x))
    assert torch.equal(Composed(Denoise(), hole).observed(x), hole.observed(x))
    assert Composed(GaussianBlur(1.0), hole).observed(x) is None
    with pytest.raises(IncompatibleError, match="no method A"):
        Composed(Denoise(), 3)
    with pytest.raises(IncompatibleError, match="give it guess"):
        guess_of(object(), x)


def test_composed_with_denoise_takes_what_the_other_part_has():
    """Its pseudo-inverse and proximal step where it has them, conjugate gradients where it has but an adjoint."""

    class Bare:
        def A(self, x):
            return 2.0 * x

        A_adjoint = A

    x, y = pictures(2), pictures(2)
    for chain in (Composed(Denoise(), Bare()), Composed(Bare(), Denoise())):
        assert torch.allclose(chain.A_dagger(y), y / 2.0)
        assert torch.allclose(chain.prox_l2(x, y, 3.0), (x + 6.0 * y) / 13.0)


def test_prox_that_does_not_converge_is_an_error():
    operator, x = MotionBlur(7), pictures(1)
    with pytest.raises(NumericsError, match=r"after 3 iterations.*residual is .* of the right side"):
        prox_by_cg(operator, x, normal(x, 1), 100.0, iterations=3)
    with pytest.raises(NumericsError, match="not finite"):
        prox_by_cg(operator, x, x * NAN, 100.0)


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "cannot be divided by 4: crop or resize it to multiples, such as 64x64": lambda: Downsample(4).A(
        torch.rand(1, 3, 65, 65)
    ),
    "factor must be a whole number from 1 to 64, got 0": lambda: Downsample(0),
    "filter must be one of bicubic, average, got 'cubic'": lambda: Downsample(2, "cubic"),
    "does not fit into 8 pixels": lambda: InpaintBox(9).A(pictures(1, size=(3, 8, 8))),
    "fraction of the side below 1, or a whole number of pixels, got 2.5": lambda: InpaintBox(2.5),
    "place must be one of center, random": lambda: InpaintBox(place="left"),
    "seed must be a whole number from 0": lambda: InpaintRandom(seed=-1),
    "fraction_missing must be a number from 0 to 1, got 1.5": lambda: InpaintRandom(1.5),
    "leaves no pixel": lambda: InpaintRandom(1.0),
    "leaves none of 2x2 pixels": lambda: InpaintRandom(0.9).mask_for(2, 2),
    "the mask has 4x6 pixels .* and the picture 6x4": lambda: InpaintMask(torch.ones(4, 6)).A(torch.rand(1, 3, 6, 4)),
    "the mask has 3 channels and the picture 1": lambda: InpaintMask(torch.ones(3, 4, 6)).A(torch.rand(1, 1, 4, 6)),
    "0 \\(missing\\) and 1 \\(known\\) only, got values from 0 to 255": lambda: InpaintMask(torch.tensor([[0, 255]])),
    "a mask must hold": lambda: InpaintMask(torch.tensor([[0.0, NAN]])),
    "no pixel is known: 1 means known": lambda: InpaintMask(torch.zeros(4, 4)),
    "a mask must be a tensor": lambda: InpaintMask(torch.ones(4)),
    "size must be odd.* got 4: take 5": lambda: MotionBlur(4),
    "std, in pixels, must be a number from 0.001": lambda: GaussianBlur(0.0),
    "a kernel of 9 pixels is larger than the picture of 8x12": lambda: GaussianBlur(1.0, 9).A(torch.rand(1, 1, 8, 12)),
    "a kernel of 30001 pixels is larger than the picture of 8x12": lambda: MotionBlur(30001).A(torch.rand(1, 1, 8, 12)),
    "the kernel of 3x5 pixels is larger than the picture of 4x4": lambda: KernelBlur(torch.ones(3, 5)).A(
        torch.rand(1, 1, 4, 4)
    ),
    "odd sides.* got 2x3": lambda: KernelBlur(torch.ones(2, 3)),
    "the kernel sums to 0": lambda: KernelBlur(torch.tensor([[1.0, -2.0, 1.0]])),
    "the kernel sums to 0,": lambda: KernelBlur(torch.zeros(3, 3)),
    "the kernel holds values that are not finite": lambda: KernelBlur(torch.tensor([[1.0, NAN, 1.0]])),
    "a kernel must be a tensor": lambda: KernelBlur(torch.ones(3)),
    "rcond must be a number from 0 and below 1": lambda: MotionBlur(rcond=1.0),
    "iterations must be a whole number from 1": lambda: MotionBlur(iterations=0),
    "intensity must be a number from 0 to 1": lambda: MotionBlur(intensity=2.0),
    "x must have the shape \\(B, C, H, W\\)": lambda: Denoise().A(torch.rand(3, 8, 8)),
    "pass x.float\\(\\)": lambda: Downsample(2).A(torch.rand(1, 3, 8, 8).half()),
    "gamma must be a finite number from 0, got -1": lambda: Denoise().prox_l2(*[torch.rand(1, 3, 8, 8)] * 2, -1.0),
    "one per image, \\(2,\\), got the shape \\(3,\\)": lambda: InpaintBox().prox_l2(
        *[torch.rand(2, 3, 8, 8)] * 2, torch.ones(3)
    ),
    "JPEG needs pictures of 1 or 3 channels, got 4": lambda: JPEG().A(torch.rand(1, 4, 8, 8)),
    "quality must be a whole number from 1 to 100": lambda: JPEG(0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(ConfigError, match=message):
        REFUSED[message]()


# --- deepinv, where it is installed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_blur_is_that_of_deepinv(padding):
    physics = pytest.importorskip("deepinv").physics
    x, kernel = pictures(2, torch.float32), torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    theirs = physics.Blur(filter=(kernel / kernel.sum()).view(1, 1, 3, 5), padding=padding)
    torch.testing.assert_close(KernelBlur(kernel, padding).A(x), theirs.A(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_downsampling_is_that_of_matlab_as_deepinv_has_it(factor):
    physics = pytest.importorskip("deepinv").physics
    x, theirs = pictures(2, torch.float32), physics.DownsamplingMatlab(factor=factor)
    y = theirs.A(x)
    torch.testing.assert_close(Downsample(factor).A(x), y, rtol=0, atol=1e-6)
    torch.testing.assert_close(Downsample(factor).A_adjoint(y), theirs.A_adjoint(y), rtol=0, atol=1e-6)
