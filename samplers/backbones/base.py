"""What a model family must offer so that `solve` can run it: a Backbone makes Networks and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from ...kernels.upload import to_device
from ..engine import Network
from ..feeding import batch_of
from ..levels import NoiseSchedule
from ..prediction import Parametrisation


class Backbone(Protocol):
    """A loaded model with its text encoders and autoencoder. Pixels are float32 in [0, 1]."""

    @property
    def family(self) -> str:
        """Short name: "sd", "sdxl"."""
        ...

    @property
    def schedule(self) -> NoiseSchedule: ...

    @property
    def parametrisation(self) -> Parametrisation: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the model was trained at."""
        ...

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        ...

    @property
    def default_guidance_scale(self) -> float: ...

    def check_size(self, height: int, width: int) -> None:
        """ConfigError for a size that the model cannot make."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]: ...

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, *, height: int, width: int
    ) -> Network:
        """The network with one conditioning per prompt; branches "cond" and "uncond"."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pixels to the mean of their latent distribution (B, C, h, w), float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) latents to (B, 3, H, W) pixels on the CPU, float32, or float64 where the latents are."""
        ...

    # What posteriors send gradients through:

    @property
    def pixel_range(self) -> float:
        """Length of the interval that the model's own pixels fill: 2 for [-1, 1]. Published step sizes are in it."""
        ...

    def to_pixels(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) latents to (B, 3, H, W) pixels, where [0, 1] is the range of pictures; not clamped, on the
        device and in the dtype of the latents, with gradients."""
        ...

    def to_latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pixels to the mean of their latent distribution, in their dtype, with gradients."""
        ...

    def for_gradients(self, checkpoint: bool = False) -> AbstractContextManager[None]:
        """Inside, gradients of inputs cost no more than they must: none are kept for the parameters, and an
        autoencoder that overflows in half precision is float32. The model is as before afterwards.

        checkpoint: activations are computed again in the backward pass instead of kept (less memory, more time).
        """
        ...


class UNetNetwork:
    """A conditional UNet with one embedding per branch and image (diffusers' UNet2DConditionModel).

    conditions: branch -> {argument of the UNet: tensor (B, ...), or a dict of such}. Branches are evaluated in one
    forward of len(branches) * B rows, in the given order.
    """

    def __init__(
        self,
        unet: Any,
        conditions: dict[str, dict[str, Any]],
        schedule: NoiseSchedule,
        parametrisation: Parametrisation,
    ) -> None:
        self.unet = unet
        self.conditions = conditions
        self.schedule = schedule
        self.parametrisation = parametrisation
        self._joined: dict[tuple[str, ...], dict[str, Any]] = {}
        self._selected: tuple[Any, dict[str, Any]] = (None, {})

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def __call__(
        self, x: Tensor, level: Any, branches: tuple[str, ...], rows: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        time = torch.full((), float(level.time), dtype=torch.float32, device=x.device)
        if rows is None:
            return self.forward_batch(batch_of(x, self.dtype, len(branches)), time, branches)
        arguments = _join([_rows(self.conditions[b], rows) for b in branches])
        return self._forward(batch_of(x[rows], self.dtype, len(branches)), time, arguments, len(branches))

    def forward_batch(self, batch: Tensor, time: Tensor, branches: tuple[str, ...]) -> tuple[Tensor, ...]:
        """The branches' outputs for their rows of one batch; see BatchedNetwork."""
        arguments = self._joined.get(branches)
        if arguments is None:
            arguments = self._joined[branches] = _join([self.conditions[b] for b in branches])
        return self._forward(batch, time, arguments, len(branches))

    def forward_rows(
        self, batch: Tensor, time: Tensor, branches: tuple[str, ...], images: tuple[tuple[int, ...] | None, ...]
    ) -> tuple[Tensor, ...]:
        """As `forward_batch` for some images of every branch, None for all; batch has their rows in this order.

        Returns one raw output per branch, with as many rows as it has images.
        """
        key = (branches, images)
        if self._selected[0] != key:
            parts = [self.conditions[b] for b in branches]
            rows = [None if v is None else to_device(v, batch.device, torch.int64) for v in images]
            self._selected = key, _join([p if r is None else _rows(p, r) for p, r in zip(parts, rows, strict=True)])
        some = sum(len(v) for v in images if v is not None)
        everyone = (batch.shape[0] - some) // max(1, images.count(None))
        counts = [everyone if v is None else len(v) for v in images]
        return self.unet(batch, time, return_dict=False, **self._selected[1])[0].split(counts)

    def select(self, images: Tensor) -> UNetNetwork:
        """The network of some images of the batch, given by their numbers."""
        conditions = {branch: _rows(part, images) for branch, part in self.conditions.items()}
        return UNetNetwork(self.unet, conditions, self.schedule, self.parametrisation)

    def _forward(self, batch: Tensor, time: Tensor, arguments: dict[str, Any], count: int) -> tuple[Tensor, ...]:
        out = self.unet(batch, time, return_dict=False, **arguments)[0]
        return out.chunk(count) if count > 1 else (out,)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate the branches' tensors along the batch, through nested dicts."""
    joined: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, dict):
            joined[name] = _join(values)
        else:
            joined[name] = torch.cat(values) if len(values) > 1 else first
    return joined


def _rows(part: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    return {name: _rows(v, rows) if isinstance(v, dict) else v[rows] for name, v in part.items()}
