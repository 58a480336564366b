r"""The quantile function of the beta distribution, in float64, for one grid; scipy is no runtime dependency.

The regularised incomplete beta function is evaluated by a series whose terms are all positive,

    I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) * sum_{k>=0} (a+b)_k / (a+1)_k x^k        (DLMF 8.17.8),

and only for x <= 1/2, where it converges like 2^-k; the other half follows from I_x(a, b) = 1 - I_{1-x}(b, a).
"""

from __future__ import annotations

import math

from ..errors import ConfigError

_NEWTON_STEPS = 100  # a handful are used


def beta_quantile(u: float, a: float, b: float) -> float:
    """x in [0, 1] with I_x(a, b) = u, for u in [0, 1] and a, b in (0, 100].

    Error: below 1e-12 of min(x, 1 - x) where that is representable (tested against scipy).
    Errors: ConfigError for arguments outside these ranges.
    """
    if not (0.0 <= u <= 1.0 and 0.0 < a <= 100.0 and 0.0 < b <= 100.0):
        raise ConfigError(f"expected u in [0, 1] and a, b in (0, 100], got u={u!r}, a={a!r}, b={b!r}")
    if u in (0.0, 1.0):
        return u
    middle = math.exp(_log_lower(math.log(0.5), a, b))
    return _lower_half(u, a, b) if u <= middle else 1.0 - _lower_half(1.0 - u, b, a)


def _lower_half(u: float, a: float, b: float) -> float:
    """The quantile where it is at most 1/2: safeguarded Newton steps on log I over y = log x."""
    target = math.log(u)
    low, high = -math.inf, math.log(0.5)
    y = min(high, (target + math.log(a) + _log_beta(a, b)) / a)  # exact as x -> 0
    for _ in range(_NEWTON_STEPS):
        value = _log_lower(y, a, b)
        low, high = (y, high) if value < target else (low, y)
        slope = math.exp(a * y + (b - 1.0) * math.log1p(-math.exp(y)) - _log_beta(a, b) - value)  # x pdf(x) / I_x
        after = y - (value - target) / slope
        if not low <= after <= high:
            after = high - 1.0 if low == -math.inf else 0.5 * (low + high)
        if abs(after - y) <= 1e-15 * max(1.0, abs(y)):
            return math.exp(after)
        y = after
    return math.exp(y)


def _log_lower(y: float, a: float, b: float) -> float:
    """log I_x(a, b) at x = e^y <= 1/2."""
    x, term, total, k = math.exp(y), 1.0, 1.0, 0
    while term > 1e-17 * total:
        term *= x * (a + b + k) / (a + 1.0 + k)
        total += term
        k += 1
    return a * y + b * math.log1p(-x) - math.log(a) - _log_beta(a, b) + math.log(total)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
