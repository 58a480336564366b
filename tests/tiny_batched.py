"""Tiny pipelines that batch [uncond, cond], beside those of tiny_flow and tiny_video: AuraFlow, CogView3+, HunyuanDiT,
DiT, Latte, Allegro, and SD3 from an image. See tiny_flow."""

from __future__ import annotations

from typing import Any

from .tiny import tiny_autoencoder, tiny_ddim  # first: keeps the hub away and the progress bars quiet

# isort: split
import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    DiTPipeline,
    DiTTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    LattePipeline,
    LatteTransformer3DModel,
    StableDiffusion3Img2ImgPipeline,
)

from .tiny_flow import Tiny, embeds, flow, ones, sd3

SMALL = {"height": 16, "width": 16}
LEARNED_VARIANCE = {"attention_head_dim": 8, "attention_bias": True, "activation_fn": "gelu-approximate",
                    "num_embeds_ada_norm": 1000, "norm_elementwise_affine": False, "out_channels": 8}  # fmt: skip


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny(kind: type, denoiser: Any, scheduler: Any, call: dict[str, Any], **components: Any) -> Tiny:
    """With an autoencoder."""
    pipe = quiet(kind(transformer=denoiser.eval(), scheduler=scheduler, vae=tiny_autoencoder(), **components))
    return Tiny(pipe, denoiser, {"output_type": "latent", **call})


def auraflow(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 8, 8)."""
    torch.manual_seed(0)
    denoiser = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    with torch.no_grad():  # its last layers begin at zero
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.3)
    call = {"prompt_embeds": embeds(batch, 16, 32), "prompt_attention_mask": ones(batch, 16), **SMALL}
    return tiny(AuraFlowPipeline, denoiser, scheduler or flow(shift=1.73), call, text_encoder=None, tokenizer=None)


def cogview3(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 8, 8)."""
    torch.manual_seed(0)
    denoiser = CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2, out_channels=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    scheduler = scheduler or CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    call = {"prompt_embeds": embeds(batch, 16, 32), **SMALL}
    return tiny(CogView3PlusPipeline, denoiser, scheduler, call, text_encoder=None, tokenizer=None)


def hunyuandit(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 8, 8); the network also returns a variance."""
    torch.manual_seed(0)
    denoiser = HunyuanDiT2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24,
        activation_fn="gelu-approximate", text_len=77, text_len_t5=256,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 77, 32), "prompt_embeds_2": embeds(batch, 256, 32, seed=1),
            "prompt_attention_mask": ones(batch, 77), "prompt_attention_mask_2": ones(batch, 256),
            "use_resolution_binning": False, **SMALL}  # fmt: skip
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "safety_checker", "feature_extractor")
    return tiny(HunyuanDiTPipeline, denoiser, scheduler or tiny_ddim(), call, **dict.fromkeys(names),
                requires_safety_checker=False)  # fmt: skip


def latte(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 2, 8, 8); the network also returns a variance."""
    torch.manual_seed(0)
    denoiser = LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, num_attention_heads=3, caption_channels=32, in_channels=4,
        cross_attention_dim=24, norm_type="ada_norm_single", norm_eps=1e-6, video_length=2, **LEARNED_VARIANCE,
    )  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 16, 32), "negative_prompt": None, "video_length": 2, **SMALL}
    return tiny(LattePipeline, denoiser, scheduler or tiny_ddim(), call, text_encoder=None, tokenizer=None)


def allegro(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Latents (B, 4, 2, 8, 8)."""
    torch.manual_seed(0)
    denoiser = AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8, caption_channels=24,
    ).eval()  # fmt: skip
    pipe = quiet(AllegroPipeline(transformer=denoiser, scheduler=scheduler or tiny_ddim(), vae=None, text_encoder=None,
                                 tokenizer=None))  # fmt: skip
    call = {"prompt_embeds": embeds(batch, 16, 24), "prompt_attention_mask": ones(batch, 16), "negative_prompt": None,
            "height": 64, "width": 64, "num_frames": 8, "output_type": "latent"}  # fmt: skip
    return Tiny(pipe, denoiser, call)


def dit(batch: int = 1, scheduler: Any = None) -> Tiny:
    """Pixels (B, 16, 16, 3) of classes; the scheduler steps the doubled batch."""
    torch.manual_seed(0)
    denoiser = DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, num_attention_heads=2, in_channels=4, norm_type="ada_norm_zero",
        **LEARNED_VARIANCE,
    )  # fmt: skip
    call = {"class_labels": list(range(batch)), "output_type": "np"}
    return tiny(DiTPipeline, denoiser, scheduler or tiny_ddim(), call)


def sd3_img2img(batch: int = 1) -> Tiny:
    """Latents (B, 4, 8, 8)."""
    text = sd3(batch)
    vae = tiny_autoencoder(shift_factor=0.06, scaling_factor=1.53, use_quant_conv=False, use_post_quant_conv=False)
    images = ("image_encoder", "feature_extractor")
    components = {name: part for name, part in text.pipe.components.items() if name not in images}
    pipe = quiet(StableDiffusion3Img2ImgPipeline(**{**components, "vae": vae}))
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    call = {**text.call, **SMALL, "image": image.expand(batch, 3, 16, 16).contiguous(), "strength": 0.6}
    return Tiny(pipe, text.denoiser, call)
