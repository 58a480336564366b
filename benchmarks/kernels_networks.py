"""Whole networks of random weights: what they compute is noise, how long they take is not. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..samplers import EPS
from ..samplers.backbones.base import UNetNetwork
from .kernels_ladder import BRANCHES, SCHEDULE

TINY = {
    "sample_size": 32,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
}
SD15 = {"sample_size": 64, "cross_attention_dim": 768}
SDXL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3 = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "in_channels": 16,
    "out_channels": 16,
}


class Whole(NamedTuple):
    """build(device): a BatchedNetwork; bfloat16 on CUDA.       latent: (B, ...)."""

    name: str
    latent: tuple[int, ...]
    build: Callable[[torch.device], Any]
    on_cpu: bool = False

    def problem(self, device: torch.device) -> str | None:
        """Why it cannot be timed here."""
        if find_spec("diffusers") is None:
            return "diffusers is not installed"
        return None if self.on_cpu or device.type == "cuda" else "too slow without CUDA"


class Transformer(UNetNetwork):
    """SD 3's transformer, timed with our schedule and parametrisation."""

    def _forward(self, batch: Tensor, time: Tensor, arguments: dict[str, Any], count: int) -> tuple[Tensor, ...]:
        out = self.unet(batch, timestep=time.expand(batch.shape[0]), return_dict=False, **arguments)[0]
        return out.chunk(count) if count > 1 else (out,)


def _random(kind: str, config: dict[str, Any], device: torch.device) -> Any:
    import diffusers

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # never in float32 first: that would be twice the memory
    try:
        with device:
            return getattr(diffusers, kind)(**config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _unet(config: dict[str, Any], tokens: int = 77) -> Callable[[torch.device], UNetNetwork]:
    def build(device: torch.device) -> UNetNetwork:
        unet = _random("UNet2DConditionModel", config, device)
        like = {"dtype": unet.dtype, "device": device}
        condition: dict[str, Any] = {
            "encoder_hidden_states": torch.randn(1, tokens, config["cross_attention_dim"], **like)
        }
        if "addition_embed_type" in config:
            ids = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]], device="cpu").to(**like)
            condition["added_cond_kwargs"] = {"text_embeds": torch.randn(1, 1280, **like), "time_ids": ids}
        return UNetNetwork(unet, dict.fromkeys(BRANCHES, condition), SCHEDULE, EPS)

    return build


def _sd3(device: torch.device) -> UNetNetwork:
    transformer = _random("SD3Transformer2DModel", SD3, device)
    like = {"dtype": transformer.dtype, "device": device}
    condition = {
        "encoder_hidden_states": torch.randn(1, 333, SD3["joint_attention_dim"], **like),
        "pooled_projections": torch.randn(1, SD3["pooled_projection_dim"], **like),
    }
    return Transformer(transformer, dict.fromkeys(BRANCHES, condition), SCHEDULE, EPS)


NETWORKS = (
    Whole("UNet of 1.0 M parameters", (1, 4, 32, 32), _unet(TINY, tokens=16), on_cpu=True),
    Whole("SD 1.5's UNet", (1, 4, 64, 64), _unet(SD15)),
    Whole("SDXL's UNet", (1, 4, 128, 128), _unet(SDXL)),
    Whole("SD 3's transformer", (1, 16, 128, 128), _sd3),
)
