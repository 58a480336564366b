r"""The empirical model statistics of DPM-Solver-v3.

For each lam there are three coefficients, one for all elements of x or one for each:

    l: the linear part of the noise prediction, N = sigma eps - l x;       s, b: df/dlam ~ s f + b for f = N / alpha.

They are given at knots and interpolated by cubic Hermite polynomials whose slopes are five-point differences, so they
are continuously differentiable at any lam and no level is moved to a knot. (The interpolation is ours: released code
moves every time to the nearest knot.)

Source: Zheng, Lu, Chen, Zhu 2023, "DPM-Solver-v3", arXiv:2310.13268, section 3.1, appendix C.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from .levels import NoiseSchedule

MAX_KNOTS = 10_000


@dataclass(frozen=True, eq=False, repr=False)
class EmpiricalStatistics:
    """Statistics at knots; compared by identity.

    lam: (n,) increasing, n >= 3.       l, s, b: (n,) or (n, *shape of one image); all float64 on the CPU, finite.
    schedule: `describe()` of the schedule of the model they belong to, or None for any.
    biased: whether b is anything but 0; its step then adds a constant to x.
    Errors: ConfigError for values that are none of this.
    """

    lam: Tensor
    l: Tensor  # noqa: E741 - the paper's letter
    s: Tensor
    b: Tensor
    schedule: Mapping[str, Any] | None = None
    biased: bool = field(init=False)
    _memo: dict[Any, Any] = field(default_factory=dict, init=False)
    _slopes: Slopes = field(init=False)

    def __post_init__(self) -> None:
        for name, value in (("lam", self.lam), ("l", self.l), ("s", self.s), ("b", self.b)):
            if value.dtype != torch.float64 or value.device.type != "cpu" or not bool(value.isfinite().all()):
                raise ConfigError(f"{name} must be finite float64 on the CPU, got {value.dtype} on {value.device}; "
                                  "EmpiricalStatistics.of(lam, l, s, b) converts")  # fmt: skip
        n = self.lam.numel()
        if self.lam.dim() != 1 or not 3 <= n <= MAX_KNOTS or not bool((self.lam.diff() > 0).all()):
            raise ConfigError(f"lam must be 3 to {MAX_KNOTS} increasing numbers, got shape {tuple(self.lam.shape)}")
        shapes = [tuple(v.shape) for v in (self.l, self.s, self.b)]
        if len(set(shapes)) != 1 or shapes[0][:1] != (n,):
            raise ConfigError(f"l, s and b must all have the shape ({n},) or ({n}, *image shape), got {shapes}")
        object.__setattr__(self, "biased", bool((self.b != 0).any()))
        object.__setattr__(self, "lam", self.lam.contiguous())  # searched in
        object.__setattr__(self, "_slopes", Slopes.of(self.lam))

    @classmethod
    def of(cls, lam: Any, l: Any, s: Any, b: Any, schedule: NoiseSchedule | None = None) -> EmpiricalStatistics:  # noqa: E741
        """From tensors, numpy arrays or lists of any dtype.

        lam of the statistics that the authors publish: uniform from the noisiest to the cleanest level they name.
        """
        copies = [torch.as_tensor(v).detach().to("cpu", torch.float64, copy=True) for v in (lam, l, s, b)]
        return cls(
            copies[0], copies[1], copies[2], copies[3], schedule=None if schedule is None else schedule.describe()
        )

    @classmethod
    def constant(cls, l: float, s: float, b: float = 0.0, reach: float = 30.0) -> EmpiricalStatistics:  # noqa: E741
        """The same statistics at every lam in [-reach, reach].

        l = 1, s = 0 is data prediction, l = 0, s = -1 is noise prediction (appendix A.2).
        """
        lam = torch.tensor([-reach, 0.0, reach], dtype=torch.float64)
        return cls(lam, torch.full_like(lam, l), torch.full_like(lam, s), torch.full_like(lam, b))

    @property
    def shape(self) -> tuple[int, ...]:
        """() for one number a lam, else the shape of one image."""
        return tuple(self.l.shape[1:])

    def without_bias(self) -> EmpiricalStatistics:
        """The same with b = 0. (`estimate_statistics(..., bias=False)` also fits the s that belongs to b = 0.)"""
        return EmpiricalStatistics(self.lam, self.l, self.s, torch.zeros_like(self.b), self.schedule)

    def mean(self) -> EmpiricalStatistics:
        """One number a lam: the means over all elements."""
        l, s, b = (v.reshape(len(v), -1).mean(1) for v in (self.l, self.s, self.b))  # noqa: E741
        return EmpiricalStatistics(self.lam, l, s, b, self.schedule)

    def at(self, lam: float) -> tuple[Tensor, Tensor, Tensor]:
        """l, s, b at lam, each of `shape`."""
        self.check_lam(lam)
        nodes = torch.tensor([[lam]], dtype=torch.float64)
        l, s, b = (value[0, 0] for value in self.on(self.cells(nodes[0]), nodes))  # noqa: E741
        return l, s, b

    def cells(self, lam: Tensor) -> Tensor:
        """For each lam (p,) the number of the knot below."""
        return (torch.searchsorted(self.lam, lam, right=True) - 1).clamp(0, len(self.lam) - 2)

    def on(self, cells: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """l, s, b at nodes (p, m), those of row p in cell p, each (p, m, *shape)."""
        knots, weights = hermite(self.lam, self._slopes, cells, nodes)
        flat = (torch.bmm(weights, v[knots].reshape(*knots.shape, -1))
                for v in (self.l, self.s, self.b))  # fmt: skip
        l, s, b = (v.reshape(*nodes.shape, *self.shape) for v in flat)  # noqa: E741
        return l, s, b

    def check(self, schedule: NoiseSchedule) -> None:
        """IncompatibleError when they were made for another schedule."""
        if self.schedule is not None and dict(self.schedule) != schedule.describe():
            raise IncompatibleError(
                f"these statistics were made for another noise schedule: they have {dict(self.schedule)}, the model "
                f"has {schedule.describe()}; estimate them for this model with estimate_statistics"
            )

    def check_lam(self, lam: float) -> None:
        """ConfigError for a lam that no knots enclose."""
        low, high = float(self.lam[0]), float(self.lam[-1])
        if not low - 1e-9 <= lam <= high + 1e-9:
            raise ConfigError(f"the statistics reach from lam {low:g} to {high:g} and the run needs lam {lam:g}; "
                              "use levels inside, or estimate them over a wider range")  # fmt: skip

    def save(self, path: str | PathLike[str]) -> None:
        """Write them (safetensors, float64, JSON header). The file is replaced atomically."""
        from .dpm_v3_file import save

        save(self, path)

    @staticmethod
    def load(path: str | PathLike[str], schedule: NoiseSchedule | None = None) -> EmpiricalStatistics:
        """Read them back, bit for bit; with `schedule`, refuse those of another one."""
        from .dpm_v3_file import load

        return load(path, schedule)

    def __repr__(self) -> str:
        digest = hashlib.sha256()
        for value in (self.lam, self.l, self.s, self.b):
            digest.update(value.contiguous().numpy().tobytes())
        shape = f", shape={self.shape}" if self.shape else ""
        return f"EmpiricalStatistics(n={len(self.lam)}{shape}, sha256={digest.hexdigest()[:12]})"


class Slopes(NamedTuple):
    """Derivatives at knots: at knot k the sum over j of weights[k, j] values[first[k] + j]."""

    first: Tensor
    weights: Tensor

    @classmethod
    def of(cls, lam: Tensor) -> Slopes:
        """Those of the polynomials through the nearest min(n, 5) knots. lam: (n,) increasing."""
        n, count = len(lam), min(len(lam), 5)
        first = (torch.arange(n) - count // 2).clamp(0, n - count)
        distances = lam[first.unsqueeze(1) + torch.arange(count)] - lam.unsqueeze(1)
        scale = distances.abs().amax(1, keepdim=True)
        powers = torch.stack([(distances / scale) ** k for k in range(count)], dim=1)
        linear = torch.zeros(count, 1, dtype=lam.dtype)
        linear[1] = 1.0
        return cls(first, torch.linalg.solve(powers, linear.expand(n, count, 1)).squeeze(-1) / scale)

    def at(self, values: Tensor, knots: Tensor) -> Tensor:
        """values: (n, *shape).       knots: (k,) indices.       Returns (k, *shape)."""
        near = values[self.first[knots].unsqueeze(1) + torch.arange(self.weights.shape[1])]
        return torch.einsum("kj,kj...->k...", self.weights[knots], near)


def hermite(lam: Tensor, slopes: Slopes, cells: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The cubic Hermite interpolation as a sum over nearby knots.

    cells: (p,).       nodes: (p, m), those of row p in cell p.       Returns knots (p, k), weights (p, m, k): the value
    at node (p, m) is the sum over k of weights[p, m, k] values[knots[p, k]].
    """
    width = (lam[cells + 1] - lam[cells]).unsqueeze(1)
    u = (nodes - lam[cells].unsqueeze(1)) / width
    v = 1.0 - u
    first, count = slopes.first[cells], slopes.weights.shape[1]
    weights = torch.zeros(*nodes.shape, count + 1, dtype=lam.dtype)

    def add(knots: Tensor, basis: Tensor, parts: Tensor) -> None:
        """basis (p, m) times parts (p, j) at the knots (p, j)."""
        at = (knots - first.unsqueeze(1)).unsqueeze(1).expand(*nodes.shape, -1)
        weights.scatter_add_(2, at, basis.unsqueeze(2) * parts.unsqueeze(1))

    one = torch.ones(len(cells), 1, dtype=lam.dtype)
    steps = torch.arange(count)
    add(cells.unsqueeze(1), (1 + 2 * u) * v * v, one)
    add(cells.unsqueeze(1) + 1, (1 + 2 * v) * u * u, one)
    add(first.unsqueeze(1) + steps, width * u * v * v, slopes.weights[cells])
    add(slopes.first[cells + 1].unsqueeze(1) + steps, -width * u * u * v, slopes.weights[cells + 1])
    return (first.unsqueeze(1) + torch.arange(count + 1)).clamp(max=len(lam) - 1), weights
