r"""DPM-Solver-2, -3 (noise prediction) and DPM-Solver++ 2S, 3S (data prediction): one step at a time, inner nodes.

The formulas are in `singlestep`. DPM-Solver-1 is DDIM.
Source: Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2; arXiv:2211.01095, algorithm 1 and appendix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from .exponential import DATA, NOISE, SolverType, Space, check_solver_type
from .grids import Levels
from .levels import NoiseSchedule
from .singlestep import THIRDS, Singlestep, blocks_plan
from .solver import Plan


@dataclass(frozen=True)
class DPMpp2S(Singlestep):
    """Second order, two evaluations a step (one where the step touches alpha = 0 or sigma = 0), in data prediction.

    r1: where the inner node lies, 0 < r1 < 1.        solver_type: "midpoint" or "taylor" (exact for m linear in lam).
    """

    r1: float = 0.5
    solver_type: SolverType = "midpoint"
    space: ClassVar[Space] = DATA

    def __post_init__(self) -> None:
        check_solver_type(self.solver_type)
        if not 0.0 < self.r1 < 1.0:
            raise ConfigError(f"r1 must lie between 0 and 1, got {self.r1!r}")

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return blocks_plan(levels, [2] * (len(levels) - 1), schedule, {2: (self.r1,)})


@dataclass(frozen=True)
class DPMpp3S(Singlestep):
    """Third order, three evaluations a step (one where the step touches alpha = 0 or sigma = 0), in data prediction.

    r1: where the first inner node lies, 0 < r1 < 2/3. The second lies at 2/3, as third order asks for in both forms:
    the prediction at the first node errs by h^2, and only there does it weigh little enough.
    solver_type: "midpoint" (the papers' form) or "taylor" (exact for m quadratic in lam).
    """

    r1: float = THIRDS[0]
    solver_type: SolverType = "midpoint"
    space: ClassVar[Space] = DATA

    def __post_init__(self) -> None:
        check_solver_type(self.solver_type)
        if not 0.0 < self.r1 < THIRDS[1]:
            raise ConfigError(f"r1 must lie between 0 and 2/3, got {self.r1!r}")

    def plan(self, levels: Levels, schedule: NoiseSchedule) -> Plan:
        return blocks_plan(levels, [3] * (len(levels) - 1), schedule, {3: (self.r1, THIRDS[1])})


@dataclass(frozen=True)
class DPM2S(DPMpp2S):
    """DPM-Solver-2: DPMpp2S's rule in noise prediction. With r1 = 1/2, Karras et al.'s "DPM2" is this map."""

    space: ClassVar[Space] = NOISE


@dataclass(frozen=True)
class DPM3S(DPMpp3S):
    """DPM-Solver-3: DPMpp3S's rule in noise prediction."""

    space: ClassVar[Space] = NOISE
