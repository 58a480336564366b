"""Linear forms over named registers: what a solver's `step` computes when it is traced instead of run."""

from __future__ import annotations

from collections.abc import Mapping

from .scalars import Scalar


class LinearForm:
    """A linear combination {register name: coefficient}; supports + - * / as a tensor would, exact zeros vanish.

    Coefficients are floats, or 0-d tensors when levels are learned. Products of two forms and adding a number
    raise TypeError: a solver that needs them is not linear and cannot become a table.
    """

    __slots__ = ("terms",)
    __array_ufunc__ = None  # numpy scalars must defer to __rmul__ here, not try to broadcast over us

    def __init__(self, terms: Mapping[str, Scalar]) -> None:
        self.terms: dict[str, Scalar] = {k: v for k, v in terms.items() if not _is_zero(v)}

    @classmethod
    def register(cls, name: str) -> LinearForm:
        return cls({name: 1.0})

    def __add__(self, other: LinearForm) -> LinearForm:
        if not isinstance(other, LinearForm):
            return NotImplemented
        terms = dict(self.terms)
        for name, value in other.terms.items():
            terms[name] = terms[name] + value if name in terms else value
        return LinearForm(terms)

    def __sub__(self, other: LinearForm) -> LinearForm:
        return self + (-1.0) * other if isinstance(other, LinearForm) else NotImplemented

    def __mul__(self, scale: Scalar) -> LinearForm:
        if isinstance(scale, LinearForm):
            return NotImplemented
        if _is_zero(scale):
            return LinearForm({})
        return LinearForm({name: scale * value for name, value in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, scale: Scalar) -> LinearForm:
        if isinstance(scale, LinearForm):
            return NotImplemented
        return LinearForm({name: value / scale for name, value in self.terms.items()})

    def __neg__(self) -> LinearForm:
        return -1.0 * self

    def __repr__(self) -> str:
        return " + ".join(f"{float(v):+.6g} {k}" for k, v in self.terms.items()) or "0"


def _is_zero(value: Scalar) -> bool:
    return isinstance(value, int | float) and value == 0
