"""`fewstep.sample` from pictures, within a budget, and with a given table; pictures of every kind to pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from PIL.Image import Transpose

import fewstep
from fewstep.errors import ConfigError, FewstepError, IncompatibleError
from fewstep.guidance.pictures import as_rgb, batch_of_images, fitting_size, pixels_of
from fewstep.samplers import (
    DDIM,
    AdaptiveDPM,
    DiscreteVP,
    LinearVP,
    from_times,
    initial_noise,
    karras,
    renoise,
    trace,
    uniform_lambda,
)
from fewstep.samplers.backbones import backbone_of

from .tiny import tiny_ddim, tiny_sd


def picture(width: int = 16, height: int = 16, mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode) if mode == "L" else Image.fromarray(values, mode)


@pytest.fixture(scope="module")
def pipe():
    return tiny_sd(tiny_ddim(timestep_spacing="trailing", set_alpha_to_one=True))


# ---------------------------------------------------------------- sampling


def test_the_image_to_image_pipelines_own_picture(pipe):
    """On the levels that diffusers takes for strength 0.5 of 8 steps, and from the same latents."""
    backbone = backbone_of(pipe)
    pixels = torch.stack([pixels_of(picture(seed=s)) for s in (1, 2)])
    peer = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    peer.set_progress_bar_config(disable=True)
    expected = peer(
        ["a red circle", "a star"],
        image=backbone.encode_image(pixels),
        strength=0.5,
        num_inference_steps=8,
        guidance_scale=5.0,
        generator=[torch.Generator("cpu").manual_seed(s) for s in (5, 6)],
        output_type="pt",
    ).images
    levels = from_times(backbone.schedule, [int(t) for t in peer.scheduler.timesteps[4:]])
    ours = fewstep.sample(
        pipe,
        ["a red circle", "a star"],
        init_images=pixels,
        solver=DDIM(),
        grid=levels,
        guidance_scale=5.0,
        seeds=(5, 6),
    )
    assert len(ours.report.ticks) == 4
    assert float((ours.images - expected).abs().max()) < 2e-4


def test_what_the_run_begins_with(pipe):
    """alpha latents + sigma noise at the level of the strength, with the noise of the seed."""
    backbone, image, seen = backbone_of(pipe), picture(), []
    done = fewstep.sample(
        pipe, "x", init_images=image, strength=0.6, steps=3, seeds=(7,), on_tick=lambda i, state, p: seen.append(p.x)
    )
    level = backbone.schedule.level(599)
    assert done.table.plan.nodes[0] == level and done.report.evaluations == 3
    latents = backbone.encode_image(pixels_of(image)[None])
    assert torch.equal(seen[0], renoise(latents, initial_noise((7,), latents.shape[1:]), level))


def test_strength_one_is_text_to_image(pipe):
    with_image = fewstep.sample(pipe, "x", init_images=picture(), strength=1, steps=2)
    assert torch.equal(with_image.images, fewstep.sample(pipe, "x", steps=2).images)


def test_a_weak_strength_returns_the_picture():
    """With the network's answer in front, a run from time 1 moves the latents by no more than sigma does."""
    pipe = tiny_sd()
    backbone, image = backbone_of(pipe), picture()
    end = []
    fewstep.sample(
        pipe, "x", init_images=image, strength=0.002, steps=1, on_tick=lambda i, state, p: end.append((state.x, p))
    )
    (x, p), latents = end[0], backbone.encode_image(pixels_of(image)[None])
    sigma, alpha = p.level.sigma, p.level.alpha
    noise = initial_noise((0,), latents.shape[1:])
    assert torch.allclose(x, latents + (sigma / alpha) * (noise - p.eps), atol=1e-5) and sigma < 0.05


def test_one_for_all_or_one_each(pipe):
    a, b = picture(seed=1), picture(seed=2)
    both = fewstep.sample(pipe, ["x", "y"], init_images=[a, b], steps=2, strength=0.5).images
    same = fewstep.sample(pipe, ["x", "y"], init_images=a, steps=2, strength=0.5).images
    alone = fewstep.sample(pipe, "y", init_images=b, steps=2, strength=0.5, seeds=(1,)).images
    assert torch.allclose(both[0], same[0], atol=1e-4) and torch.allclose(both[1], alone[0], atol=1e-4)
    assert float((both[1] - same[1]).abs().max()) > 1e-2


def test_the_picture_gives_the_size(pipe):
    assert fewstep.sample(pipe, "x", init_images=picture(23, 36), steps=1).images.shape == (1, 3, 36, 24)
    assert fewstep.sample(pipe, "x", init_images=picture(20, 40), steps=1, height=20).images.shape == (1, 3, 20, 10)
    assert fewstep.sample(pipe, "x", init_images=picture(20, 40), steps=1, height=16, width=16).images.shape[3] == 16


def test_budgets_count_both_branches(pipe):
    for scale, steps in ((1.0, 9), (3.0, 4)):
        done = fewstep.sample(pipe, "x", nfe=9, guidance_scale=scale)
        assert done.report.evaluations == steps and done.report.nfe <= 9
    assert fewstep.sample(pipe, "x", solver="DPM++ 2M Karras", steps=2).table == fewstep.sample(
        pipe, "x", solver="2m", grid="karras", steps=2
    ).table  # fmt: skip


def test_a_given_table_is_the_one_that_runs(pipe):
    schedule = backbone_of(pipe).schedule
    table = trace(DDIM(), karras(schedule, 3), schedule)
    ours = fewstep.sample(pipe, "x", table=table)
    assert ours.table is table
    assert torch.equal(ours.images, fewstep.sample(pipe, "x", solver=DDIM(), steps=3).images)
    other = trace(DDIM(), uniform_lambda(LinearVP(), 3), LinearVP())
    with pytest.raises(IncompatibleError, match="another noise schedule"):
        fewstep.sample(pipe, "x", table=other)
    for more in ({"steps": 3}, {"solver": DDIM()}, {"grid": "karras"}, {"nfe": 5}):
        with pytest.raises(ConfigError, match="a table were both given"):
            fewstep.sample(pipe, "x", table=table, **more)
    with pytest.raises(ConfigError, match="leave strength out"):
        fewstep.sample(pipe, "x", table=table, init_images=picture(), strength=0.5)


def test_adaptive_solvers(pipe):
    """From noise and from pictures; image k does not depend on its batch."""
    both = fewstep.sample(pipe, ["x", "y"], solver="adaptive-12:rtol=0.2", guidance_scale=2.0)
    alone = fewstep.sample(pipe, "y", solver=AdaptiveDPM(2, rtol=0.2), guidance_scale=2.0, seeds=(1,))
    assert both.table is None and torch.allclose(both.images[1], alone.images[0], atol=1e-4)
    assert both.report.nfe_per_image[1] == alone.report.nfe == 2 * alone.report.ticks[0]
    near = fewstep.sample(pipe, "y", solver="DPM adaptive", init_images=picture(), strength=0.1)
    far = fewstep.sample(pipe, "y", solver="DPM adaptive", init_images=picture(), strength=1.0)
    start = backbone_of(pipe).schedule.level(99).lam
    assert near.report.lams[0][0] > start > far.report.lams[0][0]
    table = trace(DDIM(), uniform_lambda(LinearVP(), 3), LinearVP())
    for more in ({"steps": 3}, {"grid": "karras"}, {"nfe": 9}, {"table": table}, {"graph": True}):
        with pytest.raises(ConfigError, match="does not go with AdaptiveDPM"):
            fewstep.sample(pipe, "x", solver=AdaptiveDPM(), **more)


@pytest.mark.parametrize(
    ("images", "more", "match"),
    [
        (None, {"strength": 0.5}, "belongs to init_images"),
        (picture(), {"strength": 0.0}, "strength must be"),
        (picture(), {"strength": 0.5, "grid": uniform_lambda(DiscreteVP.scaled_linear(), 2)}, "leave strength out"),
        ("a.png", {}, "must be PIL images"),
        ([], {}, "must be PIL images"),
        ([picture()] * 3, {}, "3 init_images for 1 prompts"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), {}, "divide by 255"),
        (torch.full((1, 3, 16, 16), 2.0), {}, r"in \[0, 1\]"),
        (torch.full((1, 3, 16, 16), float("nan")), {}, r"in \[0, 1\]"),
        (torch.zeros(1, 4, 16, 16), {}, r"shape \(B, 3, H, W\)"),
        (torch.zeros(0, 3, 16, 16), {}, r"shape \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 16, 17), {}, "width must be a multiple"),
        (torch.zeros(1, 3, 16, 16), {"height": 32}, "resize the tensor"),
        (picture(), {"height": 17}, "height must be a multiple"),
    ],
)
def test_what_is_refused(pipe, images, more, match):
    with pytest.raises(FewstepError, match=match):
        fewstep.sample(pipe, "x", init_images=images, **more)


def test_pictures_of_different_sizes_need_one_size():
    several = [picture(16, 16), picture(16, 24)]
    with pytest.raises(ConfigError, match="16x16, 16x24"):
        batch_of_images(several, 2, None, None, 2)
    assert batch_of_images(several, 2, 16, 16, 2).shape == (2, 3, 16, 16)


# ---------------------------------------------------------------- pictures


def test_the_size_of_a_picture():
    assert fitting_size((500, 333), None, None, 8) == (336, 504)
    assert fitting_size((500, 333), 512, None, 8) == (512, 768)
    assert fitting_size((500, 333), None, 64, 8) == (40, 64)
    assert fitting_size((500, 333), 64, 64, 8) == (64, 64)
    assert fitting_size((1, 1), None, None, 8) == (8, 8)


def test_transparency_becomes_white():
    image = picture(mode="RGBA")
    r, g, b, a = (np.asarray(channel, dtype=float) for channel in image.split())
    expected = np.stack([c * a / 255 + 255 - a for c in (r, g, b)], axis=-1)
    assert np.abs(np.asarray(as_rgb(image)) - expected).max() <= 1.0
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.info["transparency"] = 0
    assert np.asarray(as_rgb(palette)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_sixteen_bits_are_rounded_to_eight():
    deep = Image.fromarray(np.array([[0, 257, 65535, 32896]], dtype=np.uint16))
    assert deep.mode.startswith("I;16")
    assert np.asarray(as_rgb(deep))[0, :, 0].tolist() == [0, 1, 255, 128]
    real = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert np.asarray(as_rgb(real))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(ConfigError, match="save it with 8 bits"):
        as_rgb(Image.fromarray(np.array([[70_000]], dtype=np.int32)))
    with pytest.raises(ConfigError, match="save it with 8 bits"):
        as_rgb(Image.fromarray(np.array([[float("nan")]], dtype=np.float32)))


def test_the_camera_was_held_upright():
    image = picture(4, 6)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.info["exif"] = exif.tobytes()
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(image.transpose(Transpose.ROTATE_270)))


def test_other_modes():
    assert np.asarray(as_rgb(Image.new("CMYK", (1, 1), (255, 0, 0, 0)))).tolist() == [[[0, 255, 255]]]
    assert np.asarray(as_rgb(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]
    grey = picture(mode="L")
    assert torch.equal(pixels_of(as_rgb(grey))[0], torch.from_numpy(np.array(grey)) / 255.0)
