"""Stable Diffusion XL: two text encoders, a pooled embedding and the size conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import UNetNetwork
from .sd import StableDiffusion


@dataclass(frozen=True, eq=False)
class StableDiffusionXL(StableDiffusion):
    """A Backbone over a diffusers StableDiffusionXLPipeline.

    Without a negative prompt the unconditional embedding is what the pipeline uses (zeros for the released base model).
    """

    family: str = "sdxl"
    default_guidance_scale: float = 5.0

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, *, height: int, width: int
    ) -> UNetNetwork:
        negative = list(negative_prompts) if negative_prompts is not None else None
        cond, uncond, pooled, uncond_pooled = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=True, negative_prompt=negative
        )
        size = self._size_ids(height, width, cond).repeat(len(prompts), 1)
        conditions = {
            "cond": _condition(cond.to(self.pipe.unet.dtype), pooled, size),  # encoders may be kept in float32
            "uncond": _condition(uncond.to(self.pipe.unet.dtype), uncond_pooled, size),
        }
        return UNetNetwork(self.pipe.unet, conditions, self.schedule, self.parametrisation)

    def _size_ids(self, height: int, width: int, like: Tensor) -> Tensor:
        """(1, 6): original size, crop corner, target size (Podell et al. 2023, arXiv:2307.01952, section 2.2)."""
        encoder = self.pipe.text_encoder_2 or self.pipe.text_encoder
        ids = self.pipe._get_add_time_ids(
            (height, width), (0, 0), (height, width), like.dtype, encoder.config.projection_dim
        )
        return ids.to(like.device)


def _condition(text: Tensor, pooled: Tensor, size: Tensor) -> dict[str, Any]:
    return {"encoder_hidden_states": text, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": size}}
