"""Tiny backbones and measurements for tests of the posteriors, and counters that know nothing of the ledger.

The pipelines have random weights and 16x16 pictures. In float64 rounding is 1e-16 of each number, so that two orders of
the same sums agree to 1e-9 even after a few networks, and a wrong formula does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fewstep.inverse.ldps import LDPS
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import Downsample
from fewstep.inverse.p2l import P2L
from fewstep.inverse.psld import PSLD
from fewstep.inverse.stsl import STSL
from fewstep.samplers import DDIM
from fewstep.samplers.backbones import backbone_of

from .tiny import tiny_sd, tiny_sdxl

CLOSE = 1e-9  # float64: see above
SIGMA = 0.05

METHODS = [
    STSL(steps=2, K=2),
    LDPS(steps=2, zeta=0.2),
    LDPS(steps=2, zeta=0.2, solver=DDIM(eta=1.0)),
    PSLD(steps=2, omega=0.2),
    P2L(steps=2, zeta=0.2, lr=1e-2, project_every=2),
]
IDS = ["stsl", "ldps", "ldps-ancestral", "psld", "p2l"]


def tiny(dtype: torch.dtype = torch.float64, *, sdxl: bool = False):
    """A backbone of a random pipeline."""
    pipe = tiny_sdxl() if sdxl else tiny_sd()
    return backbone_of(pipe.to(dtype=dtype))


def pictures(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(count, 3, 16, 16) in [0, 1]: a disc of another colour and place in each."""
    g = torch.Generator().manual_seed(7)
    t = torch.linspace(-1.0, 1.0, 16, dtype=dtype)
    centre = torch.rand(count, 2, 1, 1, generator=g, dtype=dtype) - 0.5
    inside = (t[:, None] - centre[:, 0]) ** 2 + (t - centre[:, 1]) ** 2 < 0.3
    colours = torch.rand(2, count, 3, 1, 1, generator=g, dtype=dtype)
    return torch.where(inside[:, None], colours[0], colours[1])


def measured(count: int = 2, operator=None, dtype: torch.dtype = torch.float64, sigma_y: float = SIGMA) -> Measurement:
    operator = Downsample(2) if operator is None else operator
    return Measurement.simulate(operator, pictures(count, dtype), sigma_y, seeds=range(50, 50 + count))


class Duck:
    """What somebody else's operator has: A and A_adjoint alone. Here: every second row, times 2."""

    def A(self, x: Tensor) -> Tensor:
        return 2.0 * x[..., ::2, :]

    def A_adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(*y.shape[:-2], 2 * y.shape[-2], y.shape[-1])
        x[..., ::2, :] = 2.0 * y
        return x


class Squared:
    """An operator that is not linear."""

    def A(self, x: Tensor) -> Tensor:
        return x.square()

    def guess(self, y: Tensor) -> Tensor:
        return y.clamp(min=0.0).sqrt()


@contextmanager
def counted(pipe) -> Iterator[Counter]:
    """Rows that went through the pipeline's modules, forward and backward, by hooks on the modules."""
    rows, handles = Counter(), []

    def watch(module, name: str) -> None:
        def hook(_module, _inputs, output) -> None:
            out = output[0] if isinstance(output, tuple) else output
            rows[f"{name}forward"] += out.shape[0]
            if out.requires_grad:
                out.register_hook(lambda g: rows.update({f"{name}backward": g.shape[0]}))

        handles.append(module.register_forward_hook(hook))

    watch(pipe.unet, "")
    watch(pipe.vae.decoder, "decoder_")
    watch(pipe.vae.encoder, "encoder_")
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a.detach().double() - b.detach().double()).abs().max())
