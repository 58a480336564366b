r"""What a network's output means.

A parametrisation maps a level to four numbers (a, b, c, d), so that the predicted clean image and noise are

    x0  = a x + b out,        eps = c x + d out.

Both come straight from (x, out), never one from the other: at sigma = 0 x0 = x, so eps could not be recovered from x0.
A row that does not exist at a level (x0 from an eps network at alpha = 0) is refused by name, and only when asked for.
The network is called with the state x itself; scaling its input (EDM's c_in) is the network's own business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import NumericsError
from .form import LinearForm
from .levels import Level
from .scalars import Scalar, hypot, sqrt

Vector = Tensor | LinearForm
Pair = tuple[Scalar, Scalar]


class Prediction(NamedTuple):
    """The predicted clean image and the predicted noise, both of x's shape."""

    x0: Any  # Vector; Any keeps the solvers' arithmetic free of casts
    eps: Any


@dataclass(frozen=True)
class Parametrisation:
    """A name and two functions, level -> (a, b) and level -> (c, d). `level -> (a, b, c, d)` is calling it."""

    name: str
    x0_row: Callable[[Level], Pair]
    eps_row: Callable[[Level], Pair]

    def __call__(self, level: Level) -> tuple[Scalar, Scalar, Scalar, Scalar]:
        return (*self.x0_row(level), *self.eps_row(level))

    def __repr__(self) -> str:
        return f"Parametrisation({self.name})"


def _divisor(value: Scalar, what: str, level: Level) -> Scalar:
    if float(value) == 0.0:
        raise NumericsError(f"{what} does not exist at time {float(level.time):g} (alpha {float(level.alpha):g}, "
                            f"sigma {float(level.sigma):g}); start at a level where it does")  # fmt: skip
    return value


def _eps_x0(level: Level) -> Pair:
    alpha = _divisor(level.alpha, "x0 from a noise prediction", level)
    return 1.0 / alpha, -level.sigma / alpha


def _is_out(level: Level) -> Pair:
    return 0.0, 1.0


def _x0_eps(level: Level) -> Pair:
    sigma = _divisor(level.sigma, "eps from an x0 prediction", level)
    return 1.0 / sigma, -level.alpha / sigma


def _v_x0(level: Level) -> Pair:
    n = hypot(level.alpha, level.sigma)
    return level.alpha / (n * n), -level.sigma / n


def _v_eps(level: Level) -> Pair:
    n = hypot(level.alpha, level.sigma)
    return level.sigma / (n * n), level.alpha / n


def _flow_x0(level: Level) -> Pair:
    total = level.alpha + level.sigma
    return 1.0 / total, -level.sigma / total


def _flow_eps(level: Level) -> Pair:
    total = level.alpha + level.sigma
    return 1.0 / total, level.alpha / total


EPS = Parametrisation("eps", _eps_x0, _is_out)
"""out = eps (Ho et al. 2020, arXiv:2006.11239)."""

X0 = Parametrisation("x0", _is_out, _x0_eps)
"""out = x0."""

V = Parametrisation("v", _v_x0, _v_eps)
"""out = (alpha eps - sigma x0) / n with n = hypot(alpha, sigma) (Salimans and Ho 2022, arXiv:2202.00512)."""

FLOW = Parametrisation("flow", _flow_x0, _flow_eps)
"""out = eps - x0, the velocity of x = (1 - t) x0 + t eps (Liu et al. 2022, arXiv:2209.03003)."""


@lru_cache
def edm(sigma_data: float = 0.5) -> Parametrisation:
    """out = F of x0 = c_skip x + c_out F with alpha = 1 (Karras et al. 2022, arXiv:2206.00364, equation 7)."""

    def x0_row(level: Level) -> Pair:
        s2 = level.sigma * level.sigma + sigma_data**2
        return sigma_data**2 / s2, level.sigma * sigma_data / sqrt(s2)

    def eps_row(level: Level) -> Pair:
        s2 = level.sigma * level.sigma + sigma_data**2
        return level.sigma / s2, -sigma_data / sqrt(s2)

    return Parametrisation(f"edm(sigma_data={sigma_data:g})", x0_row, eps_row)


PARAMETRISATIONS: dict[str, Parametrisation] = {"eps": EPS, "x0": X0, "v": V, "flow": FLOW, "edm": edm()}


def predict(parametrisation: Parametrisation, level: Level, x: Vector, out: Vector) -> Prediction:
    """`Prediction(x0, eps)` from the state and the network's output, of x's shape and dtype."""
    a, b, c, d = parametrisation(level)
    return Prediction(a * x + b * out, c * x + d * out)  # type: ignore[operator]
