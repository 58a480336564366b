"""What an operator is: the part of deepinv.physics that restoration needs, and a first picture from a measurement.

Pictures and measurements are tensors (B, C, H, W), float32 or float64, on any device; results have the dtype of what
went in. Every method treats each image of a batch on its own and is differentiable in its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ...errors import ConfigError, IncompatibleError

T = TypeVar("T")
DTYPES = (torch.float32, torch.float64)


@runtime_checkable
class Operator(Protocol):
    """Turns pictures into measurements without noise.

    An operator may also have `observed(y) -> Tensor | None`: a mask that broadcasts to y and is true where y carries a
    measurement; None, or no such method, means everywhere.
    """

    def A(self, x: Tensor) -> Tensor:
        """The measurement of pictures x."""
        ...

    def guess(self, y: Tensor) -> Tensor:
        """A first picture for each y, of the pictures' size, not clamped: where a run may begin."""
        ...


@runtime_checkable
class LinearOperator(Operator, Protocol):
    """An operator that is linear in x."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        """A^T y: <A x, y> = <x, A^T y> for each image."""
        ...

    def A_dagger(self, y: Tensor) -> Tensor:
        """A^+ y, the shortest x of those closest to y. It may amplify noise in y: see solve.damped_inverse."""
        ...

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """argmin_x gamma / 2 |A x - y|^2 + 1/2 |x - z|^2.       gamma: from 0; a tensor (B,) for one per image."""
        ...


def is_linear(operator: Any) -> bool:
    """Whether it has an adjoint and does not say `linear = False` (a composition says what its parts are)."""
    return callable(getattr(operator, "A_adjoint", None)) and bool(getattr(operator, "linear", True))


def require_linear(operator: Any, what: str) -> None:
    """IncompatibleError unless the operator is linear.       what: what was asked of it."""
    if not is_linear(operator):
        raise IncompatibleError(f"{what} needs a linear operator, one with A_adjoint(y), got {name_of(operator)}: take "
                                "a method that only needs A(x)")  # fmt: skip


def name_of(operator: Any) -> str:
    """For people: the operator's own `name` if it has one, else its class."""
    name = getattr(operator, "name", None)
    return name if isinstance(name, str) else type(operator).__name__


def check_images(x: Any, what: str = "x") -> None:
    """ConfigError or IncompatibleError unless x is (B, C, H, W) with something in it, float32 or float64."""
    if not isinstance(x, Tensor):
        raise IncompatibleError(f"{what} must be a tensor (B, C, H, W), got {type(x).__name__}")
    if x.dim() != 4 or not x.numel():
        raise ConfigError(f"{what} must have the shape (B, C, H, W) with something in it, got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise ConfigError(f"{what} must be float32 or float64, got {x.dtype}: pass {what}.float()")


def per_image(gamma: float | Tensor, z: Tensor) -> Tensor:
    """gamma as float64 of shape (B, 1, ..., 1) on z's device; a number is given to every image.

    Errors: ConfigError for a number that is negative or not finite, and a tensor that is not (B,), (1,) or ().
    """
    B = z.shape[0]
    wide = torch.float32 if z.device.type == "mps" else torch.float64  # that device has no float64
    if isinstance(gamma, Tensor):
        if gamma.shape not in ((), (1,), (B,)):
            raise ConfigError(f"gamma must be a number or one per image, ({B},), got the shape {tuple(gamma.shape)}")
        gamma = gamma.to(z.device, wide)
    else:
        if isinstance(gamma, bool) or not (math.isfinite(gamma) and gamma >= 0.0):
            raise ConfigError(f"gamma must be a finite number from 0, got {gamma!r}")
        gamma = torch.tensor(float(gamma), dtype=wide, device=z.device)
    return gamma.expand(B).view(-1, *(1,) * (z.dim() - 1))


def constant(make: Callable[[], T]) -> T:
    """make() on the CPU and outside of inference mode: tensors made there could not be used with gradients later."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        return make()


def check_fraction(value: Any, name: str, low: float, high: float) -> None:
    """ConfigError unless low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")


def check_whole(value: Any, name: str, low: int, high: int | None = None) -> None:
    """ConfigError unless value is a whole number from low, and up to high if that is given."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        expected = f"from {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} must be a whole number {expected}, got {value!r}")


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    """ConfigError unless value is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
