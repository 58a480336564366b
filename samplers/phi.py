r"""The functions of the exponential integrators, in the letters of UniPC.

    g_0(z) = e^z - 1,        g_n(z) = g_{n-1}(z) / z - 1/n!        that is        g_n(z) = sum_{j >= 1} z^j / (n + j)!

With z = -h for data prediction and z = h for noise prediction, h = lam_t - lam_s, every method of the family is a
combination of g_0, g_1, g_2, ...; z^n g_n(z) is the integral of e^{z - u} u^n / n! over u from 0 to z. Near z = 0 the
recursion cancels, so the series takes over. z is a float or a 0-d tensor; the limits at z = -inf are -1/n!.

Source: Zhao et al. 2023, "UniPC", arXiv:2302.04867, appendix; g_n is the phi_{n+1} of exponential integrators times z,
less 1/n!.
"""

from __future__ import annotations

import math

from .scalars import Scalar, expm1

_SERIES_BELOW = 2.0  # the recursion loses 1e-16 / z^n
_TERMS = 32  # 2^32 / 32! = 2e-26


def g(n: int, z: Scalar) -> Scalar:
    if abs(float(z)) >= _SERIES_BELOW:
        value = expm1(z)
        for k in range(1, n + 1):
            value = value / z - 1.0 / math.factorial(k)
        return value
    if n == 0:
        return expm1(z)
    total: Scalar = 0.0
    power: Scalar = 1.0
    for j in range(1, _TERMS):
        power = power * z
        total = total + power / math.factorial(n + j)
    return total
