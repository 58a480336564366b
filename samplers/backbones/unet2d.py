"""Unconditional models of pixels: diffusers' DDPMPipeline and DDIMPipeline (a UNet2DModel and nothing else)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, IncompatibleError
from ..feeding import batch_of
from ..from_config import parametrisation_from_config, schedule_from_config
from ..levels import NoiseSchedule
from ..prediction import Parametrisation
from .base import at_least_float32
from .frozen import frozen
from .placement import execution_device, release

MAX_SIDE = 8192


@dataclass(frozen=True, eq=False)
class UNet2D:
    """A Backbone over a diffusers DDPMPipeline or DDIMPipeline; the pipeline is used as it is and never changed.

    There is no autoencoder: latents are pixels in [-1, 1], of as many channels as the UNet has.
    """

    pipe: Any
    schedule: NoiseSchedule
    parametrisation: Parametrisation
    family: str = "unet2d"
    default_guidance_scale: float = 1.0

    @classmethod
    def of(cls, pipe: Any) -> UNet2D:
        """From a pipeline. IncompatibleError for a UNet that needs more than pixels and a time, or another time."""
        config = pipe.unet.config
        _check_unet(config)
        scheduler = pipe.scheduler.config
        return cls(pipe, schedule_from_config(scheduler), parametrisation_from_config(scheduler))

    @property
    def device(self) -> torch.device:
        return execution_device(self.pipe)

    @property
    def default_size(self) -> tuple[int, int]:
        size = self.pipe.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def size_multiple(self) -> int:
        """The UNet halves its picture between two blocks."""
        return 2 ** (len(self.pipe.unet.config.block_out_channels) - 1)

    @property
    def pixel_range(self) -> float:
        return 2.0

    def check_size(self, height: int, width: int) -> None:
        for name, size in (("height", height), ("width", width)):
            if not self.size_multiple <= size <= MAX_SIDE or size % self.size_multiple:
                raise ConfigError(
                    f"{name} must be a multiple of {self.size_multiple} up to {MAX_SIDE} for this model, got {size}"
                )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        self.check_size(height, width)
        return self.pipe.unet.config.in_channels, height, width

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, *, height: int, width: int
    ) -> UNet2DNetwork:
        """The network; every prompt must be empty."""
        given = [text for text in (*prompts, *(negative_prompts or ())) if text]
        if given:
            raise IncompatibleError(f"this model was trained without text and cannot follow the prompt "
                                    f'{given[0][:60]!r}: give an empty one, ""')  # fmt: skip
        return UNet2DNetwork(self.pipe.unet, self.schedule, self.parametrisation)

    def to_latents(self, images: Tensor) -> Tensor:
        channels = self.pipe.unet.config.in_channels
        if images.shape[1] != channels:
            raise ConfigError(f"this model's pictures have {channels} channel(s), got {images.shape[1]}")
        return 2.0 * images.to(self.device) - 1.0

    def to_pixels(self, latents: Tensor) -> Tensor:
        return latents / 2.0 + 0.5

    def for_gradients(self, checkpoint: bool = False) -> AbstractContextManager[None]:
        return frozen(self.pipe, ("unet",), checkpoint)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.to_latents(images.float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        release(self.pipe)
        return self.to_pixels(at_least_float32(latents)).clamp(0.0, 1.0).cpu()


class UNet2DNetwork:
    """A UNet2DModel as a BatchedNetwork with one branch, "cond". Of a learned variance only the mean is returned."""

    def __init__(self, unet: Any, schedule: NoiseSchedule, parametrisation: Parametrisation) -> None:
        self.unet, self.schedule, self.parametrisation = unet, schedule, parametrisation

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def __call__(
        self, x: Tensor, level: Any, branches: tuple[str, ...], rows: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        time = torch.full((), float(level.time), dtype=torch.float32, device=x.device)
        x = x if rows is None else x[rows]
        return self.forward_batch(batch_of(x, self.dtype, len(branches)), time, branches)

    def forward_batch(self, batch: Tensor, time: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]:
        """See BatchedNetwork."""
        if branches != ("cond",):
            raise IncompatibleError("this model was trained without a condition, so there is nothing to guide with: "
                                    "use a guidance scale of 1")  # fmt: skip
        out = self.unet(batch, time, return_dict=False)[0]
        return (out[:, : batch.shape[1]],)

    def select(self, images: Tensor) -> UNet2DNetwork:
        """The network of some images of the batch: the same one."""
        return self


def _check_unet(config: Any) -> None:
    """IncompatibleError for what unconditional sampling cannot run."""
    size = config.sample_size
    if not (isinstance(size, int) or (isinstance(size, list | tuple) and len(size) == 2)):
        raise IncompatibleError(f"the UNet's config has sample_size {size!r}: expected a number or two")
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise IncompatibleError("this UNet is conditioned on a class (class_embed_type, num_class_embeds), which is "
                                "not supported: use an unconditional model")  # fmt: skip
    if config.time_embedding_type != "positional":
        raise IncompatibleError(f"this UNet has time_embedding_type {config.time_embedding_type!r}, which is not fed "
                                "the times of a schedule as they are: expected 'positional'")  # fmt: skip
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise IncompatibleError(
            f"this UNet takes {config.in_channels} channels and returns {config.out_channels}: expected as many, or "
            "twice as many with a learned variance"
        )
