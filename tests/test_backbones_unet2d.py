"""The backbone of unconditional models of pixels: pictures equal to the pipelines' own, files, gradients, refusals."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

import fewstep
from fewstep.errors import ConfigError, IncompatibleError
from fewstep.samplers import DDIM, EPS, V, trailing
from fewstep.samplers.backbones import backbone_of, load_backbone, read_schedule

from .tiny_pixels import TINY, tiny_pixels

LEVELS: dict[str, Any] = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}


def with_unet(**changes: Any) -> DDPMPipeline:
    return DDPMPipeline(UNet2DModel(**{**TINY, **changes}), DDPMScheduler())


def test_sample_makes_the_pipelines_own_picture():
    pipe = DDIMPipeline(tiny_pixels().unet, DDIMScheduler(**LEVELS))
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(s) for s in (5, 6)]
    peer = torch.from_numpy(pipe(2, generators, num_inference_steps=4, output_type="np").images).permute(0, 3, 1, 2)
    grid = trailing(backbone_of(pipe).schedule, 4)
    ours = fewstep.sample(pipe, ["", ""], solver=DDIM(), grid=grid, seeds=(5, 6))
    assert ours.images.shape == peer.shape == (2, 3, 8, 8) and ours.report.nfe == 4 * 2
    assert float((ours.images - peer).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_folders_load(kind, tmp_path):
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    kind(tiny_pixels().unet, scheduler).save_pretrained(tmp_path / "tiny", safe_serialization=True)
    backbone = load_backbone(str(tmp_path / "tiny"))
    assert (backbone.family, backbone.default_size, backbone.size_multiple) == ("unet2d", (8, 8), 2)
    assert backbone.latent_shape(8, 10) == (3, 8, 10)
    assert read_schedule(str(tmp_path / "tiny")) == (backbone.schedule, V)
    assert backbone.pipe.unet.dtype == torch.float32 and backbone.device.type == "cpu"
    assert fewstep.sample(backbone, "", steps=2).images.shape == (1, 3, 8, 8)
    weights = tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ConfigError, match="unet has only pickled weights"):
        load_backbone(str(tmp_path / "tiny"))


def test_pixels_and_states_are_the_same_up_to_scale():
    backbone = backbone_of(tiny_pixels())
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = backbone.to_latents(x)
    assert z.dtype == torch.float64 and torch.equal(z, 2.0 * x - 1.0) and backbone.pixel_range == 2.0
    assert torch.allclose(backbone.to_pixels(z), x, rtol=0.0, atol=1e-15)
    decoded = backbone.decode(2.0 * z)
    assert decoded.dtype == torch.float64 and float(decoded.min()) == 0.0 and float(decoded.max()) == 1.0
    assert backbone.encode_image(x.float()).shape == (2, 3, 8, 8)


def test_a_learned_variance_is_left_aside():
    pipe = with_unet(out_channels=6)
    backbone = backbone_of(pipe)
    network = backbone.encode([""], None, height=8, width=8)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    level = backbone.schedule.noisiest
    with torch.no_grad():
        (out,) = network(x, level, ("cond",))
        whole = pipe.unet(x, torch.tensor(float(level.time))).sample
        (some,) = network(x, level, ("cond",), torch.tensor([2, 0]))
    assert whole.shape == (3, 6, 8, 8) and torch.equal(out, whole[:, :3]) and network.parametrisation is EPS
    assert torch.allclose(some, out[[2, 0]], atol=1e-6)


def test_gradients_reach_the_state_and_no_parameter():
    pipe = tiny_pixels()
    backbone = backbone_of(pipe)
    network, level = backbone.encode([""], None, height=8, width=8), backbone.schedule.level(500.0)
    gradients = []
    for checkpoint in (False, True):
        x = torch.ones(1, 3, 8, 8, requires_grad=True)
        with backbone.for_gradients(checkpoint):
            assert not any(p.requires_grad for p in pipe.unet.parameters())
            assert pipe.unet.is_gradient_checkpointing is checkpoint
            network(x, level, ("cond",))[0].square().sum().backward()
        gradients.append(x.grad)
    assert all(p.requires_grad and p.grad is None for p in pipe.unet.parameters())
    assert float(gradients[0].norm()) > 0.0 and torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_class_embeds": 10}, "conditioned on a class"),
        ({"class_embed_type": "timestep"}, "conditioned on a class"),
        ({"time_embedding_type": "fourier"}, "'fourier'"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 1000}, "'learned'"),
        ({"out_channels": 4}, "takes 3 channels and returns 4"),
        ({"sample_size": None}, "sample_size None"),
    ],
)
def test_other_networks_are_refused(changes, said):
    with pytest.raises(IncompatibleError, match=said):
        backbone_of(with_unet(**changes))


def test_prompts_guidance_and_sizes_are_refused():
    backbone = backbone_of(tiny_pixels())
    for prompts, negative in ((["", "a red circle"], None), (["", ""], ["", "blue"])):
        with pytest.raises(IncompatibleError, match='give an empty one, ""'):
            backbone.encode(prompts, negative, height=8, width=8)
    with pytest.raises(IncompatibleError, match="guidance scale of 1"):
        fewstep.sample(backbone, "", steps=1, guidance_scale=3.0)
    with pytest.raises(ConfigError, match="width must be a multiple of 2 up to 8192 for this model, got 9"):
        backbone.latent_shape(8, 9)
