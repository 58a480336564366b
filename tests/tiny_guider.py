"""Tiny pipelines with a guider: HunyuanVideo 1.5, HunyuanImage 2.1, Modular SDXL and Wan. See tiny_flow."""

from __future__ import annotations

from typing import Any

from .tiny import tiny_ddim, tiny_sdxl  # first: keeps the hub away and the progress bars quiet

# isort: split
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLWan,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    StableDiffusionXLAutoBlocks,
    UniPCMultistepScheduler,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance, BaseGuidance, ClassifierFreeGuidance
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks
from diffusers.modular_pipelines.wan.modular_blocks_wan22 import Wan22Blocks
from diffusers.utils import logging as diffusers_logging

from .thresholds import STEPS
from .tiny_flow import Tiny, embeds, flow, ones
from .tiny_video import wan

diffusers_logging.set_verbosity_error()  # every new guider warns that guiders are experimental


def hunyuan_video(batch: int = 1, guider: BaseGuidance | None = None) -> Tiny:
    """Latents (B, 4, 2, 2, 2) of 5 frames at 32x32; in every forward 729 image tokens."""
    torch.manual_seed(0)
    denoiser = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=32, image_embed_dim=12,
        rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
    ).eval()  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1,
                                      downsample_match_channel=False, upsample_match_channel=False)  # fmt: skip
    pipe = HunyuanVideo15Pipeline(
        transformer=denoiser, vae=vae.eval(), scheduler=flow(shift=5.0), guider=guider or ClassifierFreeGuidance(5.0),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return Tiny(pipe, denoiser, {**hunyuan_text(batch), "height": 32, "width": 32, "num_frames": 5})


def hunyuan_image(batch: int = 1, guider: BaseGuidance | None = None) -> Tiny:
    """Latents (B, 4, 2, 2)."""
    torch.manual_seed(0)
    denoiser = HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=(1, 1), text_embed_dim=16, text_embed_2_dim=32,
        rope_axes_dim=(4, 4),
    ).eval()  # fmt: skip
    guider = guider or AdaptiveProjectedMixGuidance(guidance_scale=3.5, adaptive_projected_guidance_start_step=1)
    pipe = HunyuanImagePipeline(
        transformer=denoiser, vae=None, scheduler=flow(shift=5.0), guider=guider,
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return Tiny(pipe, denoiser, {**hunyuan_text(batch), "height": 64, "width": 64})


def hunyuan_text(batch: int) -> dict[str, Any]:
    """Without a second text: no glyphs to draw."""
    call: dict[str, Any] = {"output_type": "latent", "num_inference_steps": STEPS}
    for seed, prefix in enumerate(("", "negative_")):
        call |= {f"{prefix}prompt_embeds": embeds(batch, 6, 16, seed=seed),
                 f"{prefix}prompt_embeds_mask": ones(batch, 6),
                 f"{prefix}prompt_embeds_2": torch.zeros(batch, 4, 32),
                 f"{prefix}prompt_embeds_mask_2": torch.zeros(batch, 4, dtype=torch.int64)}  # fmt: skip
    return call


def modular_sdxl(batch: int = 1, guider: BaseGuidance | None = None) -> Tiny:
    """Latents (B, 4, 8, 8)."""
    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.pop("text_encoder")
    pipe = blocks.init_pipeline()
    classic = tiny_sdxl()
    pipe.update_components(
        unet=classic.unet, vae=classic.vae, scheduler=tiny_ddim(), guider=guider or ClassifierFreeGuidance(5.0)
    )
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"height": 16, "width": 16, "output": "latents", "num_inference_steps": STEPS}
    for seed, prefix in enumerate(("", "negative_")):
        call |= {f"{prefix}prompt_embeds": embeds(batch, 77, 64, seed=seed),
                 f"{prefix}pooled_prompt_embeds": embeds(batch, 32, seed=seed)}  # fmt: skip
    return Tiny(pipe, pipe.unet, call)


def modular_wan(batch: int = 1, guider: BaseGuidance | None = None, *, second: bool = False) -> Tiny:
    """Latents (B, 4, 2, 2, 2) of 5 frames at 16x16. second: Wan 2.2, with a transformer and guider for low noise."""
    blocks = Wan22Blocks() if second else WanBlocks()
    blocks.sub_blocks.pop("text_encoder")
    pipe = blocks.init_pipeline()
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
                           temperal_downsample=[False, True, True], latents_std=[1.0] * 4)  # fmt: skip
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe.update_components(
        transformer=wan().denoiser, vae=vae.eval(), scheduler=scheduler, guider=guider or ClassifierFreeGuidance(5.0)
    )
    if second:
        pipe.update_components(transformer_2=wan().denoiser, guider_2=ClassifierFreeGuidance(3.0), boundary_ratio=0.9)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt_embeds": embeds(batch, 8, 16), "negative_prompt_embeds": embeds(batch, 8, 16, seed=1),
            "height": 16, "width": 16, "num_frames": 5, "output": "latents", "num_inference_steps": STEPS}  # fmt: skip
    return Tiny(pipe, pipe.transformer, call)
