r"""The exponential-integrator functions of the data-prediction form.

With h = lambda_t - lambda_s the exact solution for a polynomial x0 in lambda needs, besides
q1 = e^{-h} - 1,

    q2(h) = q1 / h + 1,        q3(h) = q2 / h - 1/2.

Near h = 0 the closed forms cancel, so a Taylor series takes over. Each accepts a float or a 0-d tensor, and
h = +inf has the limits q1 = -1, q2 = 1, q3 = -1/2.

Source: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
arXiv:2211.01095, appendix; the names q1, q2, q3 are ours.
"""

from __future__ import annotations

from .scalars import Scalar, expm1

_SERIES_BELOW = 0.5  # the closed form of q3 loses 1e-16 / h^2: 3e-12 at h = 0.01, 1e-15 here
_TERMS = 16  # 0.5^16 / 18! is far below the last bit


def q1(h: Scalar) -> Scalar:
    return expm1(-h)


def q2(h: Scalar) -> Scalar:
    return _series(h, 2) if abs(float(h)) < _SERIES_BELOW else expm1(-h) / h + 1.0


def q3(h: Scalar) -> Scalar:
    return _series(h, 3) if abs(float(h)) < _SERIES_BELOW else q2(h) / h - 0.5


def _series(h: Scalar, k: int) -> Scalar:
    """sum_{n>=1} (-h)^n / (n + k - 1)! times (-1)^(k-1), the tail of e^{-h} that q_k is."""
    term: Scalar = 1.0
    for n in range(1, k):
        term = term / n
    total: Scalar = 0.0
    for n in range(1, _TERMS):
        term = term * (-h) / (n + k - 1)
        total = total + term
    return -total if k == 2 else total
