"""Stable Diffusion 1.x and 2.x, and every pipeline of their layout (UNet, one CLIP text encoder, KL autoencoder)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, IncompatibleError
from ..from_config import parametrisation_from_config, schedule_from_config
from ..levels import NoiseSchedule
from ..prediction import Parametrisation
from .base import UNetNetwork, at_least_float32
from .frozen import frozen
from .placement import execution_device, release, require_in_place

MAX_SIDE = 8192


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """A Backbone over a diffusers StableDiffusionPipeline; the pipeline is used as it is and never changed."""

    pipe: Any
    schedule: NoiseSchedule
    parametrisation: Parametrisation
    family: str = "sd"
    default_guidance_scale: float = 7.5

    @classmethod
    def of(cls, pipe: Any) -> StableDiffusion:
        """From a pipeline. IncompatibleError for a UNet that needs more than latents, time and text."""
        config = pipe.unet.config
        size = config.sample_size
        if not (isinstance(size, int) or (isinstance(size, list | tuple) and len(size) == 2)):
            raise IncompatibleError(f"the UNet's config has sample_size {size!r}: expected a number or two")
        latents = pipe.vae.config.latent_channels
        if config.in_channels != latents:
            raise IncompatibleError(
                f"this UNet takes {config.in_channels} channels and the autoencoder gives {latents}: it is an "
                "inpainting or editing model, which text-to-image sampling cannot run; use the pipeline it came with"
            )
        if config.time_cond_proj_dim is not None:
            raise IncompatibleError(
                "this UNet was distilled with an embedded guidance scale (time_cond_proj_dim), which is not supported; "
                "use the model it was distilled from"
            )
        scheduler = pipe.scheduler.config
        return cls(pipe, schedule_from_config(scheduler), parametrisation_from_config(scheduler))

    @property
    def device(self) -> torch.device:
        return execution_device(self.pipe)

    @property
    def default_size(self) -> tuple[int, int]:
        size = self.pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        return self.pipe.vae_scale_factor

    def check_size(self, height: int, width: int) -> None:
        least = self.size_multiple * 2 ** (len(self.pipe.unet.config.block_out_channels) - 1)
        for name, size in (("height", height), ("width", width)):
            if not least <= size <= MAX_SIDE or size % self.size_multiple:
                raise ConfigError(
                    f"{name} must be a multiple of {self.size_multiple} from {least} to {MAX_SIDE} for this model, "
                    f"got {size}"
                )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        self.check_size(height, width)
        factor = self.pipe.vae_scale_factor
        return self.pipe.unet.config.in_channels, height // factor, width // factor

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, *, height: int, width: int
    ) -> UNetNetwork:
        negative = list(negative_prompts) if negative_prompts is not None else None
        texts = self.pipe.encode_prompt(list(prompts), self.device, 1, True, negative)
        cond, uncond = (text.to(self.pipe.unet.dtype) for text in texts)  # encoders may be kept in float32
        conditions = {"cond": {"encoder_hidden_states": cond}, "uncond": {"encoder_hidden_states": uncond}}
        return UNetNetwork(self.pipe.unet, conditions, self.schedule, self.parametrisation)

    @property
    def pixel_range(self) -> float:
        return 2.0

    def to_latents(self, images: Tensor) -> Tensor:
        vae = self.pipe.vae
        if images.shape[1] != vae.config.in_channels:
            raise ConfigError(f"this model's pictures have {vae.config.in_channels} channels, got {images.shape[1]}: "
                              "a grey picture becomes one of three channels by expand(-1, 3, -1, -1)")  # fmt: skip
        pixels = (2.0 * images - 1.0).to(device=self.device, dtype=vae.dtype)
        mean = vae.encode(pixels).latent_dist.mode().to(images.dtype)
        shift, scale = _latent_statistics(vae, mean)
        return (mean - shift) * scale

    def to_pixels(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        shift, scale = _latent_statistics(vae, latents)
        images = vae.decode((latents / scale + shift).to(vae.dtype), return_dict=False)[0]
        return images.to(latents.dtype) / 2.0 + 0.5

    def for_gradients(self, checkpoint: bool = False) -> AbstractContextManager[None]:
        require_in_place(self.pipe)
        return frozen(self.pipe, ("unet", "vae"), checkpoint, float32=("vae",))

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        return self.to_latents(images.float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False) and self.family == "sdxl"
        if upcast:
            vae.to(dtype=torch.float32)
        try:
            images = self.to_pixels(at_least_float32(latents))
        finally:
            if upcast:
                vae.to(dtype=torch.float16)
        if getattr(self.pipe, "safety_checker", None) is not None:
            images, _ = self.pipe.run_safety_checker(2.0 * images - 1.0, self.device, self.pipe.unet.dtype)
            images = images / 2.0 + 0.5
        release(self.pipe)
        return images.clamp(0.0, 1.0).cpu()


def _latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(shift, scale) of latents = (encoder output - shift) * scale; per channel where the model has statistics."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        views = [torch.tensor(v, dtype=like.dtype, device=like.device).view(1, -1, 1, 1) for v in (mean, std)]
        return views[0], config.scaling_factor / views[1]
    return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
