"""Tiny video pipelines with random weights: LTX, Wan, Mochi, CogVideoX. See tiny_flow."""

from __future__ import annotations

from typing import Any

from .tiny_flow import Tiny, built, embeds, flow, ones

# isort: split
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)


def ltx(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Packed latents (B, 8, 8) of 9 frames at 64x64."""
    torch.manual_seed(0)
    denoiser = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 6, 32), "prompt_attention_mask": ones(batch, 6), "guidance_scale": 1.0,
            "height": 64, "width": 64, "num_frames": 9}  # fmt: skip
    scheduler = scheduler or flow(use_dynamic_shifting=True, shift_terminal=0.1)
    return built(LTXPipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)


def wan(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 2, 8, 8) of 5 frames at 64x64."""
    torch.manual_seed(0)
    denoiser = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=16, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 8, 16), "guidance_scale": 1.0, "height": 64, "width": 64, "num_frames": 5}
    scheduler = scheduler or UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return built(WanPipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)


def mochi(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 12, 2, 8, 8) of 7 frames at 64x64; the network's time and velocity run backwards."""
    torch.manual_seed(0)
    denoiser = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4, activation_fn="swiglu",
        max_sequence_length=16,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 16, 32), "prompt_attention_mask": ones(batch, 16).bool(),
            "guidance_scale": 1.0, "height": 64, "width": 64, "num_frames": 7}  # fmt: skip
    scheduler = scheduler or flow(invert_sigmas=True)
    return built(MochiPipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)


def cogvideox(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 3, 4, 8, 8) of 9 frames at 64x64; variance preserving, at zero terminal SNR."""
    torch.manual_seed(0)
    denoiser = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2, num_layers=1,
        text_embed_dim=32, sample_width=8, sample_height=8, sample_frames=9, patch_size=2, max_text_seq_length=16,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 16, 32), "guidance_scale": 1.0, "height": 64, "width": 64, "num_frames": 9}
    scheduler = scheduler or CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    return built(CogVideoXPipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)
