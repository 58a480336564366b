r"""The space in which two predictions are compared.

For the same two predictions d_eps = -(alpha / sigma) d_x0 and d_v = -(1 / sigma) d_x0 (alpha^2 + sigma^2 = 1), so to
first order 1 - cos in eps is the signal-to-noise ratio times |d_x0|^2 / 2 |eps|^2: near 0 where a run begins,
whatever the two say. A threshold means nothing without the name of its space.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from ..errors import ConfigError
from ..samplers.policy import Run

Space = Literal["x0", "raw", "eps", "v"]
SPACES: tuple[str, ...] = get_args(Space)


def check_space(space: str) -> str:
    if space not in SPACES:
        raise ConfigError(f"the space of a similarity must be one of {', '.join(SPACES)}, got {space!r}")
    return space


def in_space(space: str, branch: str, i: int, run: Run) -> dict[str, float]:
    """The prediction of `branch` at tick i in `space`, as a line over "x" and the branch's raw output.

    raw: what the network returns.       v = (alpha eps - sigma x0) / hypot(alpha, sigma), of flow models eps - x0.
    """
    if space == "raw":
        return {branch: 1.0}
    level, kind = run.nodes[i], run.parametrisation
    if space == "x0":
        of_x, of_out = kind.x0_row(level)
    elif space == "eps":
        of_x, of_out = kind.eps_row(level)
    elif kind.name.lstrip("-") in ("v", "flow"):  # with a sign where the model's output has the other one
        return {branch: (-1.0) ** kind.name.count("-")}
    else:
        (a, b), (c, d) = kind.x0_row(level), kind.eps_row(level)
        alpha, sigma = float(level.alpha), float(level.sigma)
        n = math.hypot(alpha, sigma)
        of_x, of_out = (alpha * c - sigma * a) / n, (alpha * d - sigma * b) / n
    return {name: float(value) for name, value in (("x", of_x), (branch, of_out)) if float(value) != 0.0}
