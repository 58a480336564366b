"""What is known about a picture: y = A(x) + sigma_y n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..samplers.noise import NoiseTape, check_seeds
from .operators import guess_of, name_of

NOISE_TICK = (1 << 32) - 1  # no run has so many: a measurement and a run with the same seeds share no noise


@dataclass(frozen=True, eq=False)
class Measurement:
    """y = A(x) + sigma_y n with n ~ N(0, I).

    y: (B, ...) float32 or float64, as `operator.A` gives it; pixels are in [0, 1], and so is sigma_y (papers that work
    in [-1, 1] quote twice the number).
    operator: has `A(x)`, and `A_adjoint(y)`, `A_dagger(y)`, `prox_l2(z, y, gamma)` if it is linear: ours, or any
    deepinv physics.       sigma_y: 0 is allowed where a method does not divide by it.
    Errors: ConfigError for values that cannot be; IncompatibleError for a y or an operator of another type.
    """

    y: Tensor
    operator: Any
    sigma_y: float

    def __post_init__(self) -> None:
        if not isinstance(self.y, Tensor) or self.y.dtype not in (torch.float32, torch.float64):
            got = self.y.dtype if isinstance(self.y, Tensor) else type(self.y).__name__
            raise IncompatibleError(f"y must be a float32 or float64 tensor (B, ...), got {got}")
        if self.y.dim() < 2 or not self.y.numel():
            raise ConfigError(f"y must have the shape (B, ...) with something in it, got {tuple(self.y.shape)}")
        if not bool(torch.isfinite(self.y).all()):
            raise ConfigError("y holds values that are not finite: mask those entries out and set them to 0")
        _check_operator(self.operator)
        if not (isinstance(self.sigma_y, Real) and math.isfinite(self.sigma_y) and self.sigma_y >= 0.0):
            raise ConfigError(f"sigma_y is a standard deviation, a number from 0, got {self.sigma_y!r}")
        object.__setattr__(self, "sigma_y", float(self.sigma_y))

    @classmethod
    def simulate(cls, operator: Any, x: Tensor, sigma_y: float, seeds: Sequence[int]) -> Measurement:
        """The measurement of known pictures x (B, C, H, W); the noise of image k depends on seeds[k] alone."""
        _check_operator(operator)
        tape = NoiseTape(check_seeds(seeds))
        with torch.no_grad():
            clean = _measured(operator, x)
        y = cls(clean, operator, sigma_y)  # checked before noise is drawn
        if len(tape.seeds) != y.batch:
            raise ConfigError(f"{len(tape.seeds)} seeds for {y.batch} picture(s): give one for each")
        noise = tape.draw(NOISE_TICK, clean)
        return replace(y, y=y.seen(clean + sigma_y * noise))

    @property
    def batch(self) -> int:
        return self.y.shape[0]

    @cached_property
    def count(self) -> Tensor:
        """How many numbers of each image were measured, [B] int64."""
        observed = self._observed()
        seen = torch.ones_like(self.y) if observed is None else observed.expand_as(self.y)
        return seen.flatten(1).count_nonzero(1)

    def seen(self, y: Tensor) -> Tensor:
        """y where something was measured, 0 elsewhere."""
        observed = self._observed()
        return y if observed is None else torch.where(observed != 0, y, 0.0)

    def residual(self, x: Tensor) -> Tensor:
        """y - A(x), of y's shape, 0 where nothing was measured; with gradients."""
        predicted = _measured(self.operator, x)
        if predicted.shape != self.y.shape:
            raise IncompatibleError(
                f"y has the shape {tuple(self.y.shape)} and A(x) {tuple(predicted.shape)}: the operator was not made "
                "for this measurement"
            )
        return self.seen(self.y - predicted)

    def chi2(self, x: Tensor) -> Tensor:
        """|y - A(x)|^2 / (m sigma_y^2), [B] float64 on the CPU, m numbers measured; about 1 for the true picture."""
        if self.sigma_y == 0.0:
            return torch.full((self.batch,), math.nan, dtype=torch.float64)
        with torch.no_grad():
            squared = self.residual(x).flatten(1).cpu().double().square().sum(1)  # mps has no float64
        return squared / (self.count.cpu() * self.sigma_y**2)

    def guess(self) -> Tensor:
        """(B, C, H, W): a first picture; see operators.guess_of."""
        with torch.no_grad():
            guess = guess_of(self.operator, self.y)
        if not (isinstance(guess, Tensor) and guess.dim() >= 2 and guess.shape[0] == self.batch):
            got = tuple(guess.shape) if isinstance(guess, Tensor) else type(guess).__name__
            raise IncompatibleError(f"the first picture of {name_of(self.operator)} must be a tensor (B, C, H, W) of "
                                    f"{self.batch} picture(s), got {got}")  # fmt: skip
        if not bool(torch.isfinite(guess).all()):
            raise IncompatibleError(f"the first picture of {name_of(self.operator)} holds values that are not finite")
        return guess

    def images(self, count: int) -> Measurement:
        """The same for `count` images: one y is repeated, several must be as many."""
        if self.batch not in (1, count):
            raise ConfigError(
                f"{self.batch} measurements for {count} seeds: give one seed for each, or one measurement"
            )
        return self if self.batch == count else replace(self, y=self.y.expand(count, *self.y.shape[1:]).contiguous())

    def to(self, device: torch.device) -> Measurement:
        return self if self.y.device == device else replace(self, y=self.y.to(device))

    def _observed(self) -> Tensor | None:
        """What carries a measurement: the operator's `observed`, else a `mask` that it has, as deepinv's inpainting."""
        if hasattr(self.operator, "observed"):
            return self.operator.observed(self.y)
        mask = getattr(self.operator, "mask", None)
        if not isinstance(mask, Tensor) or mask.shape[-2:] != self.y.shape[-2:]:
            return None
        return mask.to(self.y.device)


def _check_operator(operator: Any) -> None:
    """IncompatibleError for what measures nothing."""
    if isinstance(operator, type):
        raise IncompatibleError(f"{operator.__name__} is a class: give an operator, such as {operator.__name__}(...)")
    if not callable(getattr(operator, "A", None)):
        raise IncompatibleError(f"{type(operator).__name__} is no operator: it has no method A(x)")


def _measured(operator: Any, x: Tensor) -> Tensor:
    y = operator.A(x)
    if not isinstance(y, Tensor):
        raise IncompatibleError(f"A(x) of {name_of(operator)} must be a tensor (B, ...), got {type(y).__name__}")
    return y
