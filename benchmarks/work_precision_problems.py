r"""The problems of `work_precision`: a Gaussian mixture, the same as a flow, and tiny-sd.

The mixture has an exact denoiser. Its covariances are diagonal in one common basis, so every coordinate's marginal is
a known mixture on the line, and the ODE can be integrated by a classical method that shares no code with the solvers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..guidance.cfg import CFG
from ..models import embedded
from ..models.captions import prompts
from ..models.evaluate import KINDS
from ..models.judge import judge
from ..samplers import (
    EPS,
    FLOW,
    DiscreteVP,
    DPMpp3M,
    Level,
    NoiseSchedule,
    Parametrisation,
    RectifiedFlow,
    initial_noise,
    level_at,
    solve,
    trace,
    uniform_lambda,
)
from ..samplers.backbones import load_backbone

Integrate = Callable[[int], Tensor]

SHAPE = (4, 8, 8)
COMPONENTS = 24
BATCH = 32  # images of tiny-sd in one forward


@dataclass(frozen=True, eq=False)
class Problem:
    """What every method is given. All tensors hold one row an image; image k has seed k.

    networks: one per batch of images, in order.       noise: x_T, float32, N(0, I).
    integrate: a number of steps -> the solution at sigma = 0, float64.       steps: what makes the reference.
    metric: "distance" or "accuracy"; score: images -> that number.       memo: runs so far, by their tables.
    """

    name: str
    title: str
    schedule: NoiseSchedule
    parametrisation: Parametrisation
    networks: tuple[Any, ...]
    noise: Tensor
    integrate: Integrate
    steps: int
    metric: str
    score: Callable[[Tensor], float]
    guidance: CFG | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def images(self) -> int:
        return self.noise.shape[0]

    @property
    def is_flow(self) -> bool:
        return isinstance(self.schedule, RectifiedFlow)

    def batches(self) -> list[tuple[Any, Tensor, range]]:
        """(network, x_T, seeds) of every batch."""
        size = math.ceil(self.images / len(self.networks))
        starts = range(0, self.images, size)
        return [
            (network, self.noise[k : k + size], range(k, min(k + size, self.images)))
            for network, k in zip(self.networks, starts, strict=True)
        ]


# --- mixtures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """x0 ~ sum_k w_k N(m_k, diag(s_k^2)) with its exact posterior means; a Network of one branch.

    weights: (K,); means, stds: (K, d), float64. Works in float64 and returns x's shape and dtype.
    """

    schedule: NoiseSchedule
    parametrisation: Parametrisation
    weights: Tensor
    means: Tensor
    stds: Tensor

    def predictions(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """E[x0 | x] and E[eps | x], (B, d) float64, for x (B, d) float64."""
        alpha, sigma = float(level.alpha), float(level.sigma)
        variance = (alpha * self.stds) ** 2 + sigma**2
        centre = alpha * self.means
        square = (x * x) @ (1.0 / variance).T - 2.0 * x @ (centre / variance).T + (centre**2 / variance).sum(1)
        logs = self.weights.log() - 0.5 * variance.log().sum(1) - 0.5 * square
        r = torch.softmax(logs, dim=1)
        gain = alpha * self.stds**2 / variance  # E[x0 | x, k] = m_k + gain (x - alpha m_k)
        x0 = r @ (self.means - gain * centre) + x * (r @ gain)
        eps = sigma * (x * (r @ (1.0 / variance)) - r @ (centre / variance))
        return x0, eps

    def __call__(
        self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        x = x if rows is None else x[rows]
        x0, eps = self.predictions(x.double().flatten(1), level)
        out = eps - x0 if self.parametrisation is FLOW else eps
        return tuple(out.reshape(x.shape).to(x.dtype) for _ in branches)

    def quantiles(self, count: int) -> Tensor:
        """(count, d): the (i - 1/2) / count quantiles of every coordinate of x0, by bisection."""
        p = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).reshape(-1, 1)
        reach = float((self.means.abs() + 10.0 * self.stds).max())
        low = torch.full((count, self.means.shape[1]), -reach, dtype=torch.float64)
        high = -low
        for _ in range(40):
            middle = 0.5 * (low + high)
            below = self._cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def _cdf(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for w, m, s in zip(self.weights, self.means, self.stds, strict=True):
            total += w * torch.special.ndtr((x - m) / s)
        return total


def latent_mixture(schedule: NoiseSchedule, parametrisation: Parametrisation) -> GaussianMixture:
    """24 components in 256 dimensions whose variances fall as those of natural pictures do, of mean 1 in all.

    Half of the variance lies between the components, half within; widths differ by a factor of three.
    """
    generator = torch.Generator().manual_seed(2024)
    size = math.prod(SHAPE)
    spectrum = 1.0 / torch.arange(1, size + 1, dtype=torch.float64)
    spread = (spectrum * size / spectrum.sum()).sqrt()
    draw = partial(torch.randn, dtype=torch.float64, generator=generator)
    width = 0.5 + torch.rand(COMPONENTS, 1, dtype=torch.float64, generator=generator)
    means = math.sqrt(0.5) * spread * draw(COMPONENTS, size)
    weights = torch.softmax(0.5 * draw(COMPONENTS), dim=0)
    return GaussianMixture(
        schedule, parametrisation, weights, means - (weights @ means), math.sqrt(0.5) * spread * width
    )


def integrate_vp(network: GaussianMixture, x: Tensor, steps: int) -> Tensor:
    """From the noisiest to the cleanest level in float64, then E[x0 | x] there, which is what every run ends with.

    The classical Runge-Kutta method of order 4 in lam on z = x / sigma, dz/dlam = e^lam E[x0 | x]
    (Lu et al. 2022, arXiv:2211.01095, proposition 4.1).
    """
    schedule = network.schedule
    top, bottom = schedule.noisiest, schedule.cleanest
    h = (float(bottom.lam) - float(top.lam)) / steps
    shape, z = x.shape, x.double().flatten(1) / float(top.sigma)

    def slope(z: Tensor, lam: float) -> Tensor:
        level = level_at(schedule, lam)
        return math.exp(lam) * network.predictions(float(level.sigma) * z, level)[0]

    for i in range(steps):
        z = runge_kutta(slope, z, float(top.lam) + i * h, h)
    return network.predictions(float(bottom.sigma) * z, bottom)[0].reshape(shape)


def integrate_flow(network: GaussianMixture, x: Tensor, steps: int) -> Tensor:
    """From t = 1 to t = 0 in float64: the same method in t on dx/dt = E[eps - x0 | x], which is smooth at both ends."""
    scale = network.schedule.noisiest.time

    def slope(x: Tensor, t: float) -> Tensor:
        x0, eps = network.predictions(x, network.schedule.level(max(t, 0.0) * float(scale)))
        return eps - x0

    shape, x = x.shape, x.double().flatten(1)
    for i in range(steps):
        x = runge_kutta(slope, x, 1.0 - i / steps, -1.0 / steps)
    return x.reshape(shape)


def runge_kutta(slope: Callable[[Tensor, float], Tensor], z: Tensor, at: float, h: float) -> Tensor:
    """One step of the classical method of order 4."""
    k1 = slope(z, at)
    k2 = slope(z + 0.5 * h * k1, at + 0.5 * h)
    k3 = slope(z + 0.5 * h * k2, at + 0.5 * h)
    k4 = slope(z + h * k3, at + h)
    return z + (h / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


def marginal_distance(network: GaussianMixture, x: Tensor) -> float:
    """Wasserstein-1 distance of each coordinate's samples from its exact distribution, over that one's standard
    deviation, mean over coordinates. Exact samples are not at 0 but at about 0.8 / sqrt(B)."""
    exact = _quantiles(network, x.shape[0])
    found = x.double().flatten(1).sort(dim=0).values
    return float(((found - exact).abs().mean(0) / exact.std(0)).mean())


@cache
def _quantiles(network: GaussianMixture, count: int) -> Tensor:
    return network.quantiles(count)


def mixture(images: int = 256) -> Problem:
    """The mixture as a noise-predicting network of Stable Diffusion's schedule."""
    network = latent_mixture(DiscreteVP.scaled_linear(), EPS)
    x = initial_noise(range(images), SHAPE)
    title = f"Gaussian mixture, exact noise prediction, Stable Diffusion's schedule, {images} latents of 4x8x8"
    return Problem(
        "mixture", title, network.schedule, EPS, (network,), x, partial(integrate_vp, network, x), 1000,
        "distance", partial(marginal_distance, network),
    )  # fmt: skip


def mixture_flow(images: int = 256) -> Problem:
    """The mixture as a velocity-predicting network of rectified flow, times 0 to 1000."""
    network = latent_mixture(RectifiedFlow(time_scale=1000.0), FLOW)
    x = initial_noise(range(images), SHAPE)
    title = f"Gaussian mixture, exact velocity, rectified flow, {images} latents of 4x8x8"
    return Problem(
        "mixture-flow", title, network.schedule, FLOW, (network,), x, partial(integrate_flow, network, x), 1000,
        "distance", partial(marginal_distance, network),
    )  # fmt: skip


# --- tiny-sd --------------------------------------------------------------------------------------------------------


@cache
def _tiny_sd() -> Any:
    return load_backbone(str(embedded("tiny-sd")))


def tiny_sd(images: int = 32, scale: float = 1.0) -> Problem:
    """tiny-sd with test prompts of the three kinds in turn; the reference is our true 3M, uniform in lam."""
    backbone = _tiny_sd()
    height, width = backbone.default_size
    kinds = [prompts(kind, images) for kind in KINDS]
    texts = [kinds[k % len(kinds)][k // len(kinds)] for k in range(images)]
    size = math.ceil(images / math.ceil(images / BATCH))
    chunks = [texts[k : k + size] for k in range(0, images, size)]
    networks = tuple(backbone.encode(chunk, None, height=height, width=width) for chunk in chunks)
    x = initial_noise(range(images), backbone.latent_shape(height, width))
    guidance = None if scale == 1.0 else CFG(scale)

    def integrate(steps: int) -> Tensor:
        table = trace(DPMpp3M(), uniform_lambda(backbone.schedule, steps), backbone.schedule)
        parts = zip(networks, x.double().split(size), strict=True)
        return torch.cat([solve(table, network, part, guidance=guidance).x for network, part in parts])

    def accuracy(latents: Tensor) -> float:
        pictures = torch.cat([backbone.decode(part) for part in latents.split(BATCH)]).permute(0, 2, 3, 1).numpy()
        return sum(judge(p, text).accepted for p, text in zip(pictures, texts, strict=True)) / images

    name = "tiny-sd" if guidance is None else f"tiny-sd-cfg{scale:g}"
    title = f"tiny-sd, 64x64 pixels, guidance scale {scale:g}, {images} test prompts"
    return Problem(
        name, title, backbone.schedule, backbone.parametrisation, networks, x, integrate,
        1000 if guidance is None else 600, "accuracy", accuracy, guidance,
    )  # fmt: skip


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "mixture": mixture,
    "mixture-flow": mixture_flow,
    "tiny-sd": tiny_sd,
    "tiny-sd-cfg2": partial(tiny_sd, scale=2.0),
    "tiny-sd-cfg5": partial(tiny_sd, scale=5.0),
}
IMAGES = {"mixture": 256, "mixture-flow": 256, "tiny-sd": 32, "tiny-sd-cfg2": 24, "tiny-sd-cfg5": 24}
