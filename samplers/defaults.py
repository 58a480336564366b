"""What is recommended where nobody chose, from benchmarks/results/work_precision.md (8, 10 and 12 evaluations).

Noise and v prediction: DPM2M on "karras".       Flow: UniPC(2) on "flow".
"""

from __future__ import annotations

from typing import Any

from ..names import DEFAULT_GRID, LAMBDA_GRID
from .dpm_multistep import DPM2M, DPMpp2M, DPMpp3M
from .exponential import DATA
from .prediction import FLOW, Parametrisation
from .sde import SDEDPMpp1, SDEDPMpp2M, SDEDPMpp3M
from .solver import Solver
from .unipc import UniPC

_EVEN_IN_LAM = (DPMpp2M, DPMpp3M, UniPC, SDEDPMpp1, SDEDPMpp2M, SDEDPMpp3M)


def default_solver(parametrisation: Parametrisation) -> Solver:
    """The recommended solver for a network of this parametrisation."""
    return UniPC(2) if parametrisation == FLOW else DPM2M()


def default_grid(solver: Any, parametrisation: Parametrisation) -> str:
    """The name of the grid that suits `solver` best.

    Flow: "flow" (the scheduler then applies the model's shift).       Else "lambda" for the multistep solvers in data
    prediction, and "karras" for all others.
    """
    if parametrisation == FLOW:
        return "flow"
    even = isinstance(solver, _EVEN_IN_LAM) and getattr(solver, "space", DATA) is DATA
    return LAMBDA_GRID if even else DEFAULT_GRID
