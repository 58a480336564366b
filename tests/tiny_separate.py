"""Tiny pipelines with two forwards a tick that begin from a picture: Flux, QwenImage and Wan. See tiny_flow."""

from __future__ import annotations

from typing import Any

from .tiny import tiny_autoencoder  # first: keeps the hub away and the progress bars quiet

# isort: split
import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FluxImg2ImgPipeline,
    QwenImageImg2ImgPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from PIL import Image

from . import tiny_flow
from .tiny_flow import Tiny, embeds

VIDEO_SCALES = {"num_res_blocks": 1, "temperal_downsample": [False, True, True], "latents_mean": [0.0] * 4,
                "latents_std": [1.0] * 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1]}  # fmt: skip


PICTURE = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
STRENGTH = {"strength": 0.7, "num_inference_steps": 8}  # the last six of them are run


def picture(batch: int, size: int) -> torch.Tensor:
    return embeds(batch, 3, size, size, seed=3).sigmoid()


def flux_img2img(batch: int = 1) -> Tiny:
    """Packed latents (B, 16, 16)."""
    tiny = tiny_flow.flux(batch)
    vae = tiny_autoencoder(scaling_factor=0.36, shift_factor=0.12)
    call = {**tiny.call, "image": picture(batch, 16), **STRENGTH, "height": 16, "width": 16}
    return _from(FluxImg2ImgPipeline, tiny, vae, call)


def qwen_img2img(batch: int = 1) -> Tiny:
    """Packed latents (B, 4, 16)."""
    tiny = tiny_flow.qwen(batch)
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(base_dim=8, **VIDEO_SCALES).eval()
    call = {**tiny.call, "image": picture(batch, 32), **STRENGTH, "height": 32, "width": 32}
    return _from(QwenImageImg2ImgPipeline, tiny, vae, call)


def wan_image_to_video(batch: int = 1) -> Tiny:
    """Latents (B, 4, 2, 2, 2) of 5 frames at 16x16; the network also gets a mask and the picture's latents."""
    torch.manual_seed(0)
    denoiser = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=16, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    vae = AutoencoderKLWan(base_dim=4, **VIDEO_SCALES).eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = WanImageToVideoPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler,
                                   transformer=denoiser, image_encoder=None, image_processor=None)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt_embeds": embeds(batch, 8, 16), "height": 16,
            "width": 16, "num_frames": 5, "image": PICTURE, "output_type": "latent"}  # fmt: skip
    return Tiny(pipe, denoiser, call)


def _from(kind: type, tiny: Tiny, vae: Any, call: dict[str, Any]) -> Tiny:
    own = ("vae", "image_encoder", "feature_extractor")
    pipe = kind(**{name: part for name, part in tiny.pipe.components.items() if name not in own}, vae=vae)
    pipe.set_progress_bar_config(disable=True)
    return Tiny(pipe, tiny.denoiser, call)
