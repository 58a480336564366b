"""Blur with any kernel: Fourier transforms, exact for circular padding and by conjugate gradients for reflection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from .base import check_choice, check_images, check_whole, constant, per_image
from .blur import PADDINGS, Padding, check_rcond
from .solve import DAGGER_ITERATIONS, PROX_ITERATIONS, dagger_by_cg, prox_by_cg


class Convolution:
    """Base of the blurs with a kernel of two dimensions.

    (A x)[p] = sum_q k[q] x[p - q] for each channel, q from the kernel's centre: a bright dot becomes a picture of k.
    A subclass says `kernel_for(H, W)`, float64 with odd sides and sum 1, and `padding`, `rcond`, `iterations`.

    "circular": A = F^-1 diag(k^) F, so pseudo-inverse and prox are exact; A_dagger leaves out the |k^| below rcond
    times the largest. "reflect": A = K P, P the padding and K what remains of the circular convolution; the adjoint
    P^T K^T is exact, pseudo-inverse and prox are by conjugate gradients (see `solve`).
    """

    padding: Padding
    rcond: float
    iterations: int

    def kernel_for(self, height: int, width: int) -> Tensor:
        raise NotImplementedError

    def A(self, x: Tensor) -> Tensor:
        check_images(x)
        k = _transfer(self, x.shape[-2], x.shape[-1], x.dtype, x.device)
        if self.padding == "circular":
            return _filtered(x, k.values)
        padded = torch.nn.functional.pad(x, (k.across, k.across, k.down, k.down), mode="reflect")
        padded = torch.nn.functional.pad(padded, (0, k.right, 0, k.below))
        seen = _filtered(padded, k.values)
        return seen[..., 2 * k.down : 2 * k.down + x.shape[-2], 2 * k.across : 2 * k.across + x.shape[-1]]

    def A_adjoint(self, y: Tensor) -> Tensor:
        check_images(y, "y")
        k = _transfer(self, y.shape[-2], y.shape[-1], y.dtype, y.device)
        if self.padding == "circular":
            return _filtered(y, k.values.conj())
        padded = torch.nn.functional.pad(y, (2 * k.across, k.right, 2 * k.down, k.below))
        spread = _filtered(padded, k.values.conj())
        spread = spread[..., : y.shape[-2] + 2 * k.down, : y.shape[-1] + 2 * k.across]
        return _folded(_folded(spread, k.down, -2), k.across, -1)

    def A_dagger(self, y: Tensor) -> Tensor:
        check_images(y, "y")
        if self.padding == "reflect":
            return dagger_by_cg(self, y, self.iterations)
        k = _transfer(self, y.shape[-2], y.shape[-1], y.dtype, y.device)
        return _filtered(y, k.inverse)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        check_images(z, "z")
        check_images(y, "y")
        if self.padding == "reflect":
            return prox_by_cg(self, z, y, gamma, PROX_ITERATIONS)
        k = _transfer(self, z.shape[-2], z.shape[-1], z.dtype, z.device)
        g = per_image(gamma, z).to(z.dtype)
        residual = torch.fft.rfft2(y) - k.values * torch.fft.rfft2(z)
        step = g * k.values.conj() / (1.0 + g * k.values.abs().square()) * residual
        return z + torch.fft.irfft2(step, s=z.shape[-2:])

    def guess(self, y: Tensor) -> Tensor:
        """y itself."""
        check_images(y, "y")
        return y


@dataclass(frozen=True, eq=False)
class KernelBlur(Convolution):
    """Blur with the caller's kernel.

    kernel: (h, w), odd sides, finite; it is divided by its sum. Negative entries are allowed, a sum of 0 is not. It is
    the picture of a dot (a point spread function): libraries that correlate want it turned by 180 degrees.
    padding, rcond, iterations: see Convolution; for measurements with noise take an rcond of 0.01 to 0.1, or fewer
    iterations, or `solve.damped_inverse`.       text: what `named.described` says, for a kernel from a file.
    """

    kernel: Tensor
    padding: Literal["reflect", "circular"] = "reflect"
    rcond: float = 1e-6
    iterations: int = DAGGER_ITERATIONS
    text: str = ""

    name = "blur with a kernel"

    def __post_init__(self) -> None:
        check_choice(self.padding, "padding", PADDINGS)
        check_rcond(self.rcond)
        check_whole(self.iterations, "iterations", 1)
        object.__setattr__(self, "kernel", checked_kernel(self.kernel))

    def kernel_for(self, height: int, width: int) -> Tensor:
        return self.kernel


def checked_kernel(kernel: Tensor) -> Tensor:
    """The kernel in float64 on the CPU with sum 1.       Errors: ConfigError for one that cannot be."""
    if not isinstance(kernel, Tensor) or kernel.dim() != 2 or not kernel.numel():
        got = tuple(kernel.shape) if isinstance(kernel, Tensor) else type(kernel).__name__
        raise ConfigError(f"a kernel must be a tensor (h, w), got {got}")
    k = constant(lambda: kernel.detach().to("cpu", torch.float64, copy=True))
    if not bool(torch.isfinite(k).all()):
        raise ConfigError("the kernel holds values that are not finite: replace them by 0")
    h, w = k.shape
    if h % 2 == 0 or w % 2 == 0:
        raise ConfigError(f"a kernel must have odd sides, so that it has a centre, got {h}x{w}: add a row or column of "
                          "zeros")  # fmt: skip
    total, size = float(k.sum()), float(k.abs().sum())
    if abs(total) <= 1e-6 * size or not math.isfinite(size):
        raise ConfigError(f"the kernel sums to {total:g}, so it cannot be scaled to keep the brightness: expected one "
                          "whose sum is finite and not 0")  # fmt: skip
    return constant(lambda: k / total)


class _Transfer:
    """The kernel's transform, of the size that it is applied in.

    down, across: half the kernel's height and width.       below, right: zeros that make the sizes fast to transform.
    """

    def __init__(self, blur: Convolution, height: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        k = blur.kernel_for(height, width)
        if k.shape[0] > height or k.shape[1] > width:
            raise ConfigError(f"the kernel of {k.shape[0]}x{k.shape[1]} pixels is larger than the picture of {height}x"
                              f"{width}: take a smaller kernel, or a larger picture")  # fmt: skip
        self.down, self.across = k.shape[0] // 2, k.shape[1] // 2
        self.below = self.right = 0
        if blur.padding == "circular":
            field = torch.zeros(height, width, dtype=torch.float64)
            field[: k.shape[0], : k.shape[1]] = k
            field = field.roll((-self.down, -self.across), (0, 1))
        else:  # the kernel begins at 0: outputs from 2 half on have seen no other edge
            tall, wide = height + 2 * self.down, width + 2 * self.across
            self.below, self.right = _fast(tall) - tall, _fast(wide) - wide
            field = torch.zeros(tall + self.below, wide + self.right, dtype=torch.float64)
            field[: k.shape[0], : k.shape[1]] = k
        values = torch.fft.rfft2(field)
        kept = values.abs() > blur.rcond * values.abs().max()
        inverse = torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)
        wanted = torch.complex64 if dtype == torch.float32 else torch.complex128
        self.values, self.inverse = values.to(wanted).to(device), inverse.to(wanted).to(device)


def _fast(n: int) -> int:
    """The least number from n on without a prime factor above 5."""
    rest = n
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return n if rest == 1 else _fast(n + 1)


@lru_cache(maxsize=32)
def _transfer(blur: Convolution, height: int, width: int, dtype: torch.dtype, device: torch.device) -> _Transfer:
    return constant(lambda: _Transfer(blur, height, width, dtype, device))


def _filtered(x: Tensor, transfer: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=x.shape[-2:])


def _folded(x: Tensor, half: int, dim: int) -> Tensor:
    """The transpose of padding by reflection along one side: what was seen beyond an edge goes back to where it is."""
    if half == 0:
        return x
    n = x.shape[dim] - 2 * half
    inner = x.narrow(dim, half, n)
    first, last = x.narrow(dim, 0, half).flip(dim), x.narrow(dim, half + n, half).flip(dim)
    rest = n - half - 1
    head, tail = ((1, rest), (rest, 1)) if dim == -1 else ((0, 0, 1, rest), (0, 0, rest, 1))
    return inner + torch.nn.functional.pad(first, head) + torch.nn.functional.pad(last, tail)
