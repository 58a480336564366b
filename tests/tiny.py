"""Tiny Stable Diffusion pipelines with random weights, built offline in a fraction of a second.

Images are 16x16, latents (B, 4, 8, 8). Every call gives fresh components: hooks, dtypes and devices never leak from one
test into another. Two calls give equal weights.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # an accidental call to the hub fails at once

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

diffusers_logging.disable_progress_bar()

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
IMAGE_SIZE, LATENT_SHAPE = 16, (4, 8, 8)


def tiny_sd(scheduler: Any = None, *, in_channels: int = 4) -> StableDiffusionPipeline:
    """A complete StableDiffusionPipeline. scheduler: default a DDIMScheduler with Stable Diffusion's levels.

    in_channels: 9 for an inpainting UNet. Other pipelines of the family: `StableDiffusionImg2ImgPipeline(
    **tiny_sd().components)`.
    """
    pipe = StableDiffusionPipeline(
        vae=tiny_autoencoder(),
        text_encoder=tiny_text_encoder(CLIPTextModel),
        tokenizer=tiny_tokenizer(),
        unet=tiny_unet(in_channels=in_channels, cross_attention_dim=32, attention_head_dim=4),
        scheduler=scheduler or tiny_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl(scheduler: Any = None) -> StableDiffusionXLPipeline:
    """A complete StableDiffusionXLPipeline. scheduler: as in `tiny_sd`."""
    unet = tiny_unet(
        in_channels=4,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    pipe = StableDiffusionXLPipeline(
        vae=tiny_autoencoder(),
        text_encoder=tiny_text_encoder(CLIPTextModel),
        text_encoder_2=tiny_text_encoder(CLIPTextModelWithProjection),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=scheduler or tiny_ddim(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_controlnet(scheduler: Any = None) -> StableDiffusionControlNetPipeline:
    """A complete StableDiffusionControlNetPipeline. scheduler: as in `tiny_sd`.

    A new ControlNet has no effect (its last layers are zero), so all its numbers are drawn again.
    """
    torch.manual_seed(0)
    controlnet = ControlNetModel(
        in_channels=LATENT_SHAPE[0],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16),
    ).eval()
    with torch.no_grad():
        for parameter in controlnet.parameters():
            parameter.normal_(std=0.1)
    pipe = StableDiffusionControlNetPipeline(
        **tiny_sd(scheduler).components, controlnet=controlnet, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_ddim(**fields: Any) -> DDIMScheduler:
    """The scheduler that Stable Diffusion 1.x came with, with `fields` changed."""
    settings = {**STABLE_DIFFUSION, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **fields}
    return DDIMScheduler(**settings)


def tiny_unet(**fields: Any) -> UNet2DConditionModel:
    """A noise predictor with text cross-attention at one of its two resolutions."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=LATENT_SHAPE[-1],
        out_channels=LATENT_SHAPE[0],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        **fields,
    ).eval()


def tiny_autoencoder(**fields: Any) -> AutoencoderKL:
    """(B, 3, 16, 16) in [-1, 1] <-> (B, 4, 8, 8), with `fields` of its config changed."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENT_SHAPE[0],
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        **fields,
    ).eval()


def tiny_text_encoder(kind: type) -> Any:
    """A CLIP text encoder of the given class, width 32, for the 514 tokens of `tiny_tokenizer`."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        projection_dim=32,
    )
    return kind(config).eval()


def tiny_tokenizer() -> CLIPTokenizer:
    """One token per byte, and the two special ones."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(s + "</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
