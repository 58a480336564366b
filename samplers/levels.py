r"""Noise levels and the schedules that produce them.

Everywhere in fewstep the noisy state is

    x = alpha x0 + sigma eps,    eps ~ N(0, I),    lam = log(alpha / sigma),

and a solver sees only `Level`s: never a timestep index, never a beta. A schedule answers two questions, "which
level is it at this model time?" and "at which model time is lam?". Times are real numbers, exactly what the network
is fed; nothing here rounds or truncates them.
"""

from __future__ import annotations

import hashlib
import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from ..errors import ConfigError
from . import betas
from .scalars import Scalar, log


class Level(NamedTuple):
    """One noise level.

    time: what the network is fed (its unit is the schedule's: 0..999 for discrete models, sigma for EDM, ...).
    alpha, sigma: signal and noise scale; floats (float64), or 0-d tensors when levels are learned.
    """

    time: Scalar
    alpha: Scalar
    sigma: Scalar

    @property
    def lam(self) -> Scalar:
        """log(alpha / sigma), half the log signal-to-noise ratio; +inf at sigma = 0 and -inf at alpha = 0."""
        if float(self.sigma) == 0.0:
            return math.inf
        return log(self.alpha) - log(self.sigma)


@runtime_checkable
class NoiseSchedule(Protocol):
    """What a schedule offers. Implementations are frozen dataclasses: equal parameters, equal schedule."""

    @property
    def noisiest(self) -> Level:
        """The level that generation starts from."""
        ...

    @property
    def cleanest(self) -> Level:
        """The least noisy level the network was trained at (sigma > 0)."""
        ...

    @property
    def clean(self) -> Level:
        """sigma = 0, with the time nearest to it that the network knows."""
        ...

    def level(self, time: float) -> Level: ...

    def time_of(self, lam: float) -> float: ...

    def describe(self) -> dict[str, float | int | str]:
        """The schedule's identity as JSON-able values; equal exactly when the schedules are."""
        ...


def level_at(schedule: NoiseSchedule, lam: float) -> Level:
    """The level of `schedule` with the given lam = log(alpha / sigma)."""
    return schedule.level(schedule.time_of(lam))


def vp_level(time: float, lam: float) -> Level:
    """alpha^2 + sigma^2 = 1 with the given lam, without cancellation at either end."""
    if lam == math.inf:
        return Level(time, 1.0, 0.0)
    if lam == -math.inf:
        return Level(time, 0.0, 1.0)
    decay = math.exp(-2.0 * abs(lam))
    large, small = math.sqrt(1.0 / (1.0 + decay)), math.sqrt(decay / (1.0 + decay))
    return Level(time, large, small) if lam >= 0 else Level(time, small, large)


def refuse_time(time: float, low: float, high: float) -> None:
    """ConfigError for a model time that is not a number in [low, high]."""
    if not (math.isfinite(time) and low <= time <= high):
        raise ConfigError(f"time {time!r} is outside the schedule: expected a number in [{low:g}, {high:g}]")


@dataclass(frozen=True, repr=False)
class DiscreteVP:
    """Variance preserving, trained at integer times 0..N-1 (DDPM, Stable Diffusion 1.x, 2.x, SDXL).

    alphas_cumprod: alpha_i^2 for i = 0..N-1, strictly decreasing, in (0, 1) (the last may be 0: "zero terminal SNR").
    Between integer times lam is interpolated linearly, so `level` and `time_of` are exact inverses of each other;
    at integer times the level is the trained one.
    Source: Ho, Jain, Abbeel 2020, arXiv:2006.11239.
    """

    alphas_cumprod: tuple[float, ...]
    _lams: tuple[float, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        falling = all(p > q for p, q in zip(a, a[1:], strict=False))
        if len(a) < 2 or not falling or not (a[0] < 1.0 and a[-1] >= 0.0):
            raise ConfigError("alphas_cumprod must be 2 or more numbers in (0, 1), strictly decreasing (0 at the end)")
        lams = tuple(0.5 * (math.log(q) - math.log1p(-q)) if q > 0 else -math.inf for q in a)
        object.__setattr__(self, "_lams", lams)

    @classmethod
    def from_betas(cls, variances: Sequence[float], zero_terminal_snr: bool = False) -> DiscreteVP:
        """From the per-step noise variances beta_i; optionally rescaled to zero terminal SNR (Lin et al. 2023,
        arXiv:2305.08891, algorithm 1)."""
        abar, out = 1.0, []
        for beta in variances:
            abar *= 1.0 - float(beta)
            out.append(abar)
        if zero_terminal_snr:
            roots = [math.sqrt(v) for v in out]
            first, last = roots[0], roots[-1]
            out = [((r - last) * first / (first - last)) ** 2 for r in roots]
        return cls(tuple(out))

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, n: int = 1000) -> DiscreteVP:
        """Stable Diffusion's schedule: sqrt(beta) is linear in the index."""
        return cls.from_betas(betas.scaled_linear(beta_start, beta_end, n))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, n: int = 1000) -> DiscreteVP:
        """DDPM's schedule: beta is linear in the index."""
        return cls.from_betas(betas.linear(beta_start, beta_end, n))

    @classmethod
    def cosine(cls, n: int = 1000, *, max_beta: float = 0.999) -> DiscreteVP:
        """Improved DDPM's schedule ("squaredcos_cap_v2"), see betas.cosine.

        Its top is extreme, lam = -9.9 at n = 1000: give grids ``lam_min=-5.1`` (see there).
        """
        return cls.from_betas(betas.cosine(n, max_beta))

    @property
    def noisiest(self) -> Level:
        return self.level(len(self.alphas_cumprod) - 1)

    @property
    def cleanest(self) -> Level:
        return self.level(0)

    @property
    def clean(self) -> Level:
        return Level(0.0, 1.0, 0.0)

    def level(self, time: float) -> Level:
        n = len(self._lams)
        refuse_time(time, 0, n - 1)
        i = min(int(time), n - 2)
        f = time - i
        if f == 0.0 or f == 1.0:
            return vp_level(float(time), self._lams[i + int(f)])
        if self._lams[i + 1] == -math.inf:  # the last interval of a zero-terminal-SNR schedule: alpha is linear in it
            alpha = (1.0 - f) * math.sqrt(self.alphas_cumprod[i])
            return Level(float(time), alpha, math.sqrt(1.0 - alpha * alpha))
        return vp_level(float(time), (1.0 - f) * self._lams[i] + f * self._lams[i + 1])

    def time_of(self, lam: float) -> float:
        low, high = self._lams[-1], self._lams[0]
        lam = min(max(lam, low), high) if low - 1e-9 <= lam <= high + 1e-9 else lam
        if not low <= lam <= high:
            raise ConfigError(f"lam {lam:g} is outside the trained range [{low:g}, {high:g}]")
        n = len(self._lams)
        i = min(max(bisect_right(self._lams, -lam, key=lambda v: -v) - 1, 0), n - 2)
        a, b = self._lams[i], self._lams[i + 1]
        if b == -math.inf and lam < a:
            alpha, top = vp_level(0.0, lam).alpha, math.sqrt(self.alphas_cumprod[i])
            return i + 1.0 - float(alpha) / top
        return i + (a - lam) / (a - b) if a != lam else float(i)

    def describe(self) -> dict[str, float | int | str]:
        packed = struct.pack(f"<{len(self.alphas_cumprod)}d", *self.alphas_cumprod)
        return {"kind": "DiscreteVP", "n": len(self.alphas_cumprod), "sha256": hashlib.sha256(packed).hexdigest()}

    def __repr__(self) -> str:
        a = self.alphas_cumprod
        return f"DiscreteVP(alphas_cumprod={len(a)} values, {a[0]:.6g} .. {a[-1]:.6g})"


@dataclass(frozen=True)
class EDM:
    """Variance exploding with alpha = 1 and time = sigma (Karras et al. 2022, arXiv:2206.00364)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(f"expected 0 < sigma_min < sigma_max, got {self}")

    @property
    def noisiest(self) -> Level:
        return self.level(self.sigma_max)

    @property
    def cleanest(self) -> Level:
        return self.level(self.sigma_min)

    @property
    def clean(self) -> Level:
        return Level(0.0, 1.0, 0.0)

    def level(self, time: float) -> Level:
        refuse_time(time, 0.0, math.inf)
        return Level(float(time), 1.0, float(time))

    def time_of(self, lam: float) -> float:
        return math.exp(-lam)

    def describe(self) -> dict[str, float | int | str]:
        return {"kind": "EDM", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}


@dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - t, sigma = t, from t = 1 (pure noise, alpha = 0) to t = 0; the network is fed time_scale * t.

    time_scale: 1000 for SD3-style networks, 1 for networks fed t itself.
    t_eps: where lam-based grids begin and end, since lam is infinite at t = 0 and t = 1.
    Source: Liu, Gong, Liu 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.
    """

    time_scale: float = 1.0
    t_eps: float = 1e-3

    def __post_init__(self) -> None:
        if not (0.0 < self.time_scale < math.inf and 0.0 < self.t_eps < 0.5):
            raise ConfigError(f"expected time_scale > 0 and 0 < t_eps < 0.5, got {self}")

    @property
    def noisiest(self) -> Level:
        return self.level(self.time_scale)

    @property
    def cleanest(self) -> Level:
        return self.level(self.time_scale * self.t_eps)

    @property
    def clean(self) -> Level:
        return self.level(0.0)

    def level(self, time: float) -> Level:
        refuse_time(time, 0.0, self.time_scale)
        t = time / self.time_scale
        return Level(float(time), 1.0 - t, t)

    def time_of(self, lam: float) -> float:
        return self.time_scale * (1.0 / (1.0 + math.exp(lam)) if lam < 700 else 0.0)

    def describe(self) -> dict[str, float | int | str]:
        return {"kind": "RectifiedFlow", "time_scale": self.time_scale, "t_eps": self.t_eps}
