"""Pipelines with guidance on, and counts of what their denoisers evaluate, below anything that fewstep attaches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    PixArtAlphaPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.samplers.scheduler import FewstepScheduler

from . import tiny_batched, tiny_flow, tiny_video
from .tiny import tiny_controlnet, tiny_sd, tiny_sdxl
from .tiny_batched import quiet
from .tiny_flow import Tiny, embeds

STEPS = 5
WORDS = ["a red dog", "two cats on a blue mat", "z"]


@contextmanager
def counted(module: Any) -> Iterator[list[int]]:
    """The rows of every forward of modules of this class, counted around the class's own forward.

    Enter it before the module is offloaded or compiled: those keep the forward that they find.
    """
    rows: list[int] = []
    kind = type(getattr(module, "_orig_mod", module))
    inner = kind.forward
    note = torch.compiler.disable(rows.append)  # a list that grows would be compiled anew at every call

    @functools.wraps(inner)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        note(sample.shape[0])
        return inner(self, *args, **kwargs)

    kind.forward = forward
    try:
        yield rows
    finally:
        kind.forward = inner


def negatives(call: dict[str, Any]) -> dict[str, Any]:
    """A negative of every embedding in `call`."""
    found: dict[str, Any] = {}
    for name, value in call.items():
        if isinstance(value, torch.Tensor) and "prompt" in name:
            found[f"negative_{name}"] = value if "mask" in name else embeds(*value.shape, seed=7)
    return found


def guided(builder: Callable[..., Tiny], batch: int = 1, scale: float = 4.0) -> Tiny:
    """A tiny pipeline and the keywords of a call with guidance."""
    tiny = builder(batch)
    on = {"guidance_scale": scale, "num_inference_steps": STEPS}
    return tiny._replace(call={**tiny.call, **negatives(tiny.call), **on})


def images_of(call: dict[str, Any]) -> int:
    """How many images a call makes."""
    lists = [call[name] for name in ("prompt", "prompt_embeds", "class_labels") if call.get(name) is not None]
    return len(lists[0])


def run(tiny: Tiny, image: int | None = None, **changes: Any) -> torch.Tensor:
    """What a call returns, or for one image of its batch alone. Image k begins with seed k."""
    call = {**tiny.call, **changes}
    seeds = range(images_of(call)) if image is None else [image]
    if image is not None:
        call = {name: one(value, image) for name, value in call.items()}
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    found = tiny.pipe(**call, generator=generator)
    found = found.images if hasattr(found, "images") else found.frames
    return torch.as_tensor(np.asarray(found)) if not isinstance(found, torch.Tensor) else found


def raw(threshold: float, **fields: Any) -> AdaptiveGuidance:
    """Adaptive guidance that looks at the network's own outputs."""
    return AdaptiveGuidance(threshold, space="raw", **fields)


def gammas_of(tiny: Tiny) -> dict[int, tuple[float, ...]]:
    """Tick -> gamma of every image, of raw predictions in a run that is guided to its end."""
    with attach(tiny.pipe, guidance=raw(2.0)) as attached:
        run(tiny)
    assert attached.report is not None
    return attached.report.scores


def one(value: Any, image: int) -> Any:
    """An argument of a batch's call for one of its images."""
    return value[image : image + 1] if isinstance(value, torch.Tensor | list) else value


# --- the Stable Diffusion family ------------------------------------------------------------------------------------

PICTURE = Image.fromarray((np.arange(16 * 16 * 3) % 251).astype("uint8").reshape(16, 16, 3))
MASK = Image.fromarray(((np.arange(256).reshape(16, 16) % 16) > 7).astype("uint8") * 255)
_SIZE = {"height": 16, "width": 16}


def _family(pipe: Any, batch: int, **call: Any) -> Tiny:
    words = {"prompt": WORDS[:batch], "negative_prompt": ["blue", "", "a square"][:batch]}
    return Tiny(quiet(pipe), pipe.unet, {**words, "output_type": "latent", **call})


def _paint(batch: int) -> dict[str, Any]:
    return {"image": [PICTURE] * batch, "mask_image": [MASK] * batch, "strength": 0.7, **_SIZE}


def _like(kind: type, pipe: Any, **fields: Any) -> Any:
    return kind(**pipe.components, **fields)


UNCHECKED = {"requires_safety_checker": False}
PLAIN = {"add_watermarker": False}


def sd(batch: int = 1) -> Tiny:
    return _family(tiny_sd(), batch)


def sd_img2img(batch: int = 1) -> Tiny:
    pipe = _like(StableDiffusionImg2ImgPipeline, tiny_sd(), **UNCHECKED)
    return _family(pipe, batch, image=[PICTURE] * batch, strength=0.6)


def sd_inpaint(batch: int = 1) -> Tiny:
    """Blends latents."""
    return _family(_like(StableDiffusionInpaintPipeline, tiny_sd(), **UNCHECKED), batch, **_paint(batch))


def sd_inpaint9(batch: int = 1) -> Tiny:
    """The network sees mask and picture in channels of its own."""
    return _family(_like(StableDiffusionInpaintPipeline, tiny_sd(in_channels=9), **UNCHECKED), batch, **_paint(batch))


def controlnet(batch: int = 1) -> Tiny:
    return _family(tiny_controlnet(), batch, image=[PICTURE] * batch, **_SIZE)


def controlnet_guess(batch: int = 1) -> Tiny:
    return _family(tiny_controlnet(), batch, image=[PICTURE] * batch, guess_mode=True, **_SIZE)


def controlnet_img2img(batch: int = 1) -> Tiny:
    pipe = _like(StableDiffusionControlNetImg2ImgPipeline, tiny_controlnet(), **UNCHECKED)
    pictures = [PICTURE] * batch
    return _family(pipe, batch, image=pictures, control_image=pictures, strength=0.6, **_SIZE)


def controlnet_inpaint(batch: int = 1) -> Tiny:
    pipe = _like(StableDiffusionControlNetInpaintPipeline, tiny_controlnet(), **UNCHECKED)
    return _family(pipe, batch, control_image=[PICTURE] * batch, **_paint(batch))


def sdxl(batch: int = 1) -> Tiny:
    return _family(tiny_sdxl(), batch)


def sdxl_img2img(batch: int = 1) -> Tiny:
    pipe = _like(StableDiffusionXLImg2ImgPipeline, tiny_sdxl(), **PLAIN)
    return _family(pipe, batch, image=[PICTURE] * batch, strength=0.6)


def sdxl_inpaint(batch: int = 1) -> Tiny:
    return _family(_like(StableDiffusionXLInpaintPipeline, tiny_sdxl(), **PLAIN), batch, **_paint(batch))


def multi_controlnet(batch: int = 1) -> Tiny:
    """Two ControlNets."""
    pipe = tiny_controlnet()
    parts = {**pipe.components, "controlnet": [pipe.controlnet, tiny_controlnet().controlnet]}
    pipe = StableDiffusionControlNetPipeline(**parts, **UNCHECKED)
    return _family(pipe, batch, image=[[PICTURE, PICTURE]] * batch, **_SIZE)


def _sdxl_controlled(kind: type) -> Any:
    pipe = tiny_sdxl()
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16)).eval()
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.normal_(std=0.1)
    return _like(kind, pipe, controlnet=control, **PLAIN)


def sdxl_controlnet(batch: int = 1) -> Tiny:
    return _family(_sdxl_controlled(StableDiffusionXLControlNetPipeline), batch, image=[PICTURE] * batch, **_SIZE)


def sdxl_controlnet_img2img(batch: int = 1) -> Tiny:
    pictures = [PICTURE] * batch
    pipe = _sdxl_controlled(StableDiffusionXLControlNetImg2ImgPipeline)
    return _family(pipe, batch, image=pictures, control_image=pictures, strength=0.6, **_SIZE)


def sdxl_controlnet_inpaint(batch: int = 1) -> Tiny:
    pipe = _sdxl_controlled(StableDiffusionXLControlNetInpaintPipeline)
    return _family(pipe, batch, control_image=[PICTURE] * batch, **_paint(batch))


def pixart_alpha(batch: int = 1) -> Tiny:
    tiny = tiny_flow.pixart(batch)
    return tiny._replace(pipe=quiet(PixArtAlphaPipeline(**tiny.pipe.components)))


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    """One for all tests that leave it as it was, which is what most of them are about."""
    return guided(sd, 2)


@pytest.fixture(scope="module")
def plain(tiny) -> torch.Tensor:
    return run(tiny)


@pytest.fixture
def untouched(request):
    """Whatever a test does with the shared pipeline, it runs as before."""
    yield
    if "tiny" in request.fixturenames:
        pipe = request.getfixturevalue("tiny").pipe
        assert type(pipe) is StableDiffusionPipeline and "forward" not in vars(pipe.unet)
        assert not isinstance(pipe.scheduler, FewstepScheduler)


FAMILIES: dict[str, Callable[..., Tiny]] = {
    f.__name__: f
    for f in (
        sd,
        sd_img2img,
        sd_inpaint,
        sd_inpaint9,
        controlnet,
        controlnet_guess,
        controlnet_img2img,
        controlnet_inpaint,
        sdxl,
        sdxl_img2img,
        sdxl_inpaint,
        multi_controlnet,
        sdxl_controlnet,
        sdxl_controlnet_img2img,
        sdxl_controlnet_inpaint,
        pixart_alpha,
        tiny_flow.sd3,
        tiny_batched.sd3_img2img,
        tiny_flow.pixart,
        tiny_flow.sana,
        tiny_batched.auraflow,
        tiny_batched.cogview3,
        tiny_batched.hunyuandit,
        tiny_batched.dit,
        tiny_video.ltx,
        tiny_video.cogvideox,
        tiny_video.mochi,
        tiny_batched.latte,
        tiny_batched.allegro,
    )
}
"""Every pipeline that batches [uncond, cond] and that a test runs."""
