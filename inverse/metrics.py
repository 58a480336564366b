"""How near a restored picture is to the true one: PSNR and SSIM, one number per image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError

WINDOW, SPREAD = 11, 1.5  # pixels
K1, K2 = 0.01, 0.03


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """[B] float64, in dB: -10 log10 of the mean squared error of pictures (B, C, H, W) in [0, 1]; inf where equal."""
    _check(x, truth)
    error = (x.double() - truth.double()).square().flatten(1).mean(1)
    return -10.0 * torch.log10(error)


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """[B] float64, 1 where equal: the structural similarity of pictures (B, C, H, W) in [0, 1].

        (2 mu_x mu_y + C1) (2 sigma_xy + C2) / ((mu_x^2 + mu_y^2 + C1) (sigma_x^2 + sigma_y^2 + C2))

    with moments under a Gaussian window of 11 x 11 pixels, standard deviation 1.5, C1 = 0.01^2, C2 = 0.03^2; the mean
    over channels and over the places where the whole window is inside.
    Errors: ConfigError for pictures smaller than the window.
    Source: Wang, Bovik, Sheikh, Simoncelli 2004, IEEE Trans. Image Processing 13 (4), equation 13.
    """
    _check(x, truth)
    B, C, H, W = x.shape
    if min(H, W) < WINDOW:
        raise ConfigError(f"SSIM needs pictures of {WINDOW}x{WINDOW} pixels at least, got {H}x{W}")
    t = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    g = torch.exp(-0.5 * (t / SPREAD).square())
    g = g / g.sum()

    def blurred(v: Tensor) -> Tensor:
        v = F.conv2d(v.reshape(B * C, 1, H, W), g.view(1, 1, -1, 1))
        return F.conv2d(v, g.view(1, 1, 1, -1))

    x, y = x.double(), truth.double()
    mu_x, mu_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mu_x * mu_x, blurred(y * y) - mu_y * mu_y
    cov = blurred(x * y) - mu_x * mu_y
    above = (2.0 * mu_x * mu_y + K1**2) * (2.0 * cov + K2**2)
    below = (mu_x * mu_x + mu_y * mu_y + K1**2) * (var_x + var_y + K2**2)
    return (above / below).view(B, -1).mean(1)


def _check(x: Tensor, truth: Tensor) -> None:
    if x.dim() != 4 or x.shape != truth.shape or not x.numel():
        raise ConfigError(f"pictures and their truth must be (B, C, H, W) alike, got {tuple(x.shape)} and "
                          f"{tuple(truth.shape)}")  # fmt: skip
