"""A Gaussian mixture behind the interface of a model, so that what drives a pipeline runs on it with a known answer.

A vector of d numbers is a picture (B, 1, 1, d). Latents are the mixture's own numbers; "pixels" are the same, or
x = W z + b with orthonormal columns W (D, d): then encoding, W^T (x - b), is the exact inverse, and what a measurement
y = A x + sigma_y n of pixels says of latents is known, too: `MixtureBackbone.posterior`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..samplers import EPS, DiscreteVP, Level, NoiseSchedule, Parametrisation
from .gaussian_mixture import GaussianMixture


@dataclass(frozen=True, eq=False)
class MixtureNetwork:
    """The exact network of a mixture: differentiable, in the dtype of its input, the same for every branch."""

    prior: GaussianMixture
    schedule: NoiseSchedule
    parametrisation: Parametrisation = EPS

    def __call__(
        self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """One output (B, 1, 1, d) per branch."""
        x = x if rows is None else x[rows]
        x0, eps = (p.reshape(x.shape) for p in self.prior.prediction(x.double().flatten(1), level))
        out = output(self.parametrisation, level, x.double(), x0, eps).to(x.dtype)
        return (out,) * len(branches)


def output(parametrisation: Parametrisation, level: Level, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """What a network of this parametrisation returns where it predicts x0 and eps, from the one it is nearer to.

    x0 = a x + b out and eps = c x + d out: the larger of b and d is divided by.
    """
    a, b = _row(parametrisation.x0_row, level)
    c, d = _row(parametrisation.eps_row, level)
    return (x0 - a * x) / b if abs(b) >= abs(d) else (eps - c * x) / d


def _row(row, level: Level) -> tuple[float, float]:
    try:
        a, b = row(level)
    except ArithmeticError:  # not defined at this level
        return 0.0, 0.0
    return float(a), float(b)


class MixtureBackbone:
    """A DifferentiableBackbone without weights: see samplers.backbones.Backbone.

    prior: of the latents.       schedule, parametrisation: of the network.
    decoder: (W (D, d), b (D,)) with orthonormal columns, or None where pixels are the latents.
    Errors: ConfigError for a decoder that does not fit.
    """

    family = "mixture"
    device = torch.device("cpu")
    default_guidance_scale = 1.0
    size_multiple = 1
    pixel_range = 1.0

    def __init__(
        self,
        prior: GaussianMixture,
        schedule: NoiseSchedule | None = None,
        parametrisation: Parametrisation = EPS,
        decoder: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        d = prior.dimension
        W, b = (torch.eye(d), torch.zeros(d)) if decoder is None else decoder
        W, b = W.double(), b.double()
        if W.dim() != 2 or W.shape[1] != d or b.shape != W.shape[:1]:
            raise ConfigError(f"a decoder of {d} latents is W (D, {d}) and b (D,), got {tuple(W.shape)} and "
                              f"{tuple(b.shape)}")  # fmt: skip
        if not torch.allclose(W.T @ W, torch.eye(d, dtype=torch.float64), atol=1e-10):
            raise ConfigError("the columns of the decoder's W must be orthonormal: take those of torch.linalg.qr")
        self.prior, self.W, self.b = prior, W, b
        self.schedule = DiscreteVP.linear() if schedule is None else schedule
        self.parametrisation = parametrisation

    @property
    def default_size(self) -> tuple[int, int]:
        return 1, len(self.b)

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != self.default_size:
            raise ConfigError(f"pictures of this mixture are 1 x {len(self.b)}, got {height} x {width}")

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        self.check_size(height, width)
        return 1, 1, self.prior.dimension

    def network(self, prior: GaussianMixture | None = None) -> MixtureNetwork:
        """Of the prior, or of another mixture: the exact posterior's, say."""
        return MixtureNetwork(self.prior if prior is None else prior, self.schedule, self.parametrisation)

    def posterior(self, A: Tensor, y: Tensor, sigma_y: float) -> GaussianMixture:
        """Of the latents, exactly, for y (m,) = A x + sigma_y n of pixels x.       A: (m, D)."""
        A = A.double()
        return self.prior.posterior(A @ self.W, y.double() - A @ self.b, sigma_y)

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None, *, height: int, width: int
    ) -> MixtureNetwork:
        """The prior's network; there is nothing to prompt."""
        self.check_size(height, width)
        return self.network()

    def to_pixels(self, latents: Tensor) -> Tensor:
        """(B, 1, 1, d) to (B, 1, 1, D)."""
        return latents @ self.W.T.to(latents.dtype) + self.b.to(latents.dtype)

    def to_latents(self, images: Tensor) -> Tensor:
        """(B, 1, 1, D) to (B, 1, 1, d)."""
        return (images - self.b.to(images.dtype)) @ self.W.to(images.dtype)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.to_latents(images).float()

    def decode(self, latents: Tensor) -> Tensor:
        return self.to_pixels(latents).cpu()

    def for_gradients(self, checkpoint: bool = False) -> AbstractContextManager[None]:
        return nullcontext()
