"""Tiny transformer pipelines for images with random weights: SD3, Flux, PixArt-Sigma, Sana, QwenImage, CogView4,
Lumina 2, Chroma.

Without text encoders and autoencoders: calls get embeddings and return latents. Each builder gives fresh components and
the keywords of a call with guidance off, for `batch` images. Recipes: every size is the smallest that the layers allow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .tiny import tiny_ddim  # first: keeps the hub away and the progress bars quiet

# isort: split
import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)


class Tiny(NamedTuple):
    """A pipeline, its denoiser, and the keywords of a call."""

    pipe: Any
    denoiser: Any
    call: dict[str, Any]


def built(kind: type, denoiser: Any, scheduler: Any, call: dict[str, Any], **components: Any) -> Tiny:
    """The pipeline of the given class around `denoiser` alone."""
    pipe = kind(transformer=denoiser.eval(), scheduler=scheduler, vae=None, **components)
    pipe.set_progress_bar_config(disable=True)
    return Tiny(pipe, denoiser, {"output_type": "latent", **call})


def embeds(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + seed))


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.int64)


def flow(**fields: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**fields)


def sd3(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 8, 8)."""
    torch.manual_seed(0)
    denoiser = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=16,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 20, 32), "pooled_prompt_embeds": embeds(batch, 64), "guidance_scale": 1.0}
    encoders = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    return built(
        StableDiffusion3Pipeline,
        denoiser,
        scheduler or flow(shift=3.0),
        {**call, "height": 64, "width": 64},
        **encoders,
    )


def flux(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Packed latents (B, 16, 16)."""
    torch.manual_seed(0)
    denoiser = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 12, 32), "pooled_prompt_embeds": embeds(batch, 32)}
    encoders = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return built(
        FluxPipeline, denoiser, scheduler or flow(use_dynamic_shifting=True), {**call, "height": 64, "width": 64},
        **encoders,
    )  # fmt: skip


def pixart(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 8, 8); the network also returns a variance."""
    torch.manual_seed(0)
    denoiser = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        out_channels=8, cross_attention_dim=24, caption_channels=32, attention_bias=True, num_embeds_ada_norm=1000,
        activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 20, 32), "prompt_attention_mask": ones(batch, 20), "negative_prompt": None,
            "guidance_scale": 1.0, "use_resolution_binning": False, "height": 64, "width": 64}  # fmt: skip
    return built(PixArtSigmaPipeline, denoiser, scheduler or tiny_ddim(), call, text_encoder=None, tokenizer=None)


def sana(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 2, 2)."""
    torch.manual_seed(0)
    denoiser = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=32,
        sample_size=8,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 20, 32), "prompt_attention_mask": ones(batch, 20), "negative_prompt": None,
            "guidance_scale": 1.0, "use_resolution_binning": False, "height": 64, "width": 64}  # fmt: skip
    return built(SanaPipeline, denoiser, scheduler or flow(shift=3.0), call, text_encoder=None, tokenizer=None)


def qwen(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Packed latents (B, 16, 16)."""
    torch.manual_seed(0)
    denoiser = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 7, 16), "prompt_embeds_mask": ones(batch, 7), "true_cfg_scale": 1.0,
            "height": 64, "width": 64}  # fmt: skip
    scheduler = scheduler or flow(use_dynamic_shifting=True)
    return built(QwenImagePipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)


def cogview4(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 8, 8); the pipeline passes both timesteps and sigmas."""
    torch.manual_seed(0)
    denoiser = CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=4, rope_axes_dim=(256, 256),
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 16, 32), "guidance_scale": 1.0, "height": 64, "width": 64}
    scheduler = scheduler or flow(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    return built(CogView4Pipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)


def lumina2(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 8, 8); the network's time and velocity run backwards, the pipeline turns both around."""
    torch.manual_seed(0)
    denoiser = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128),
        cap_feat_dim=32,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 6, 32), "prompt_attention_mask": ones(batch, 6), "guidance_scale": 1.0,
            "height": 64, "width": 64}  # fmt: skip
    scheduler = scheduler or flow(shift=6.0)
    return built(Lumina2Pipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)


def chroma(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Packed latents (B, 16, 16)."""
    torch.manual_seed(0)
    denoiser = ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=32,
        approximator_layers=1,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 12, 32), "prompt_attention_mask": ones(batch, 12).bool(),
            "guidance_scale": 1.0, "height": 64, "width": 64}  # fmt: skip
    scheduler = scheduler or flow(use_dynamic_shifting=True)
    return built(ChromaPipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)
