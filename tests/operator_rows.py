"""The linear operators that every test of test_operators.py runs, and what is known about their accuracy."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fewstep.inverse.operators import (
    Composed,
    Denoise,
    Downsample,
    GaussianBlur,
    InpaintBox,
    InpaintMask,
    InpaintRandom,
    KernelBlur,
    MotionBlur,
)

SIZE = (3, 16, 24)
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23}
# A kernel whose transform keeps away from 0: conjugate gradients reach their tolerance within the default iterations.
MILD = torch.tensor([[0.0, 0.05, 0.0], [0.05, 0.65, 0.2], [0.0, 0.05, 0.0]])


class Row(NamedTuple):
    """cut: singular values that A_dagger may leave out, as a part of the largest.

    iterations: of the conjugate gradients in A_dagger where they need not converge.
    smallest: where they do converge, a number below the smallest singular value; 0 where no iterations are needed.
    solver: the accuracy that somebody else's iterative solver is trusted with.
    """

    operator: Any
    cut: float = 0.0
    iterations: int = 0
    smallest: float = 0.0
    solver: float = 0.0

    @property
    def exact(self) -> bool:
        return not (self.iterations or self.smallest or self.solver)


def _mask(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(9)) < 0.6


OURS: dict[str, Row] = {
    "box": Row(InpaintBox()),
    "random box": Row(InpaintBox(0.3, "random", 2, seed=5)),
    "random pixels": Row(InpaintRandom(0.4, seed=1)),
    "mask": Row(InpaintMask(_mask(16, 24))),
    "mask per channel": Row(InpaintMask(_mask(3, 16, 24))),
    "sr x2": Row(Downsample(2)),
    "sr x4": Row(Downsample(4)),
    "sr x8": Row(Downsample(8)),
    "sr x4 average": Row(Downsample(4, "average")),
    "gaussian": Row(GaussianBlur()),
    "gaussian wide": Row(GaussianBlur(2.0), cut=1e-6),
    "gaussian circular": Row(GaussianBlur(1.5, 7, "circular", rcond=0.02), cut=0.02),
    "motion": Row(MotionBlur(7, seed=2, iterations=50), iterations=50),
    "motion circular": Row(MotionBlur(seed=3, padding="circular"), cut=1e-6),
    "kernel": Row(KernelBlur(MILD, iterations=60), smallest=0.28),
    "kernel circular": Row(KernelBlur(MILD, "circular")),
    "denoise": Row(Denoise()),
    "blur then sr": Row(Composed(Downsample(2), GaussianBlur(0.5), iterations=60), smallest=0.16),
    "sr then noise": Row(Composed(Denoise(), Downsample(2))),
    "noise then hole": Row(Composed(InpaintBox(), Denoise())),
}


def _deepinv(make: Callable[[Any], Any]) -> Callable[[], Row]:
    return lambda: Row(make(pytest.importorskip("deepinv").physics), solver=1e-3)


_CG: dict[str, Any] = {"max_iter": 200, "tol": 1e-6}  # a thousandth of what is asked of the result
DEEPINV: dict[str, Callable[[], Row]] = {
    "deepinv inpainting": _deepinv(lambda physics: physics.Inpainting(img_size=SIZE, mask=_mask(*SIZE).float())),
    "deepinv downsampling": _deepinv(
        lambda physics: physics.Downsampling(img_size=SIZE, factor=2, filter="bicubic", **_CG)
    ),
    "deepinv blur": _deepinv(lambda physics: physics.Blur(filter=MILD.view(1, 1, 3, 3), padding="circular", **_CG)),
    "deepinv denoising": _deepinv(lambda physics: physics.Denoising()),
}
NAMES = (*OURS, *DEEPINV)


def row_of(name: str, dtype: torch.dtype) -> Row:
    """The row; deepinv's physics are modules, whose filters must have the dtype of the pictures."""
    row = OURS[name] if name in OURS else DEEPINV[name]()
    for buffer in row.operator.buffers() if isinstance(row.operator, torch.nn.Module) else ():
        if not buffer.is_complex():  # `to` would drop the imaginary part of a filter's spectrum
            buffer.data = buffer.data.to(dtype)
    return row


def pictures(batch: int, dtype: torch.dtype = torch.float64, seed: int = 0, size: tuple[int, ...] = SIZE) -> Tensor:
    return torch.rand(batch, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def size_of(x: Tensor) -> float:
    return float(x.double().norm())


def norm_bound(operator: Any, x: Tensor) -> float:
    """|A| <= sqrt(|A|_1 |A|_inf), for operators without negative entries; x gives the size."""
    A_inf, A_1 = operator.A(torch.ones_like(x)).max(), operator.A_adjoint(torch.ones_like(operator.A(x))).max()
    return math.sqrt(float(A_1 * A_inf))


def matrix_of(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map of one picture of that shape, float64, a column per entry."""
    n = math.prod(shape)
    return linear(torch.eye(n, dtype=torch.float64).view(n, *shape)).flatten(1).mT
