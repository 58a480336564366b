"""Noise levels, solvers, the table that a run is, its engine, and gradients through it."""

from collections.abc import Callable
from functools import partial

from .ddim import DDIM
from .dpm_multistep import DPMpp2M, DPMpp3M
from .dpm_singlestep import DPMpp2S
from .engine import Guidance, Network, Outputs, Report, Result, State, TickRecord, advance, edit, solve, start
from .euler import Euler
from .grids import (
    GRIDS,
    Levels,
    check_levels,
    from_times,
    karras,
    leading,
    linspace,
    trailing,
    uniform_lambda,
    uniform_time,
)
from .heun import Heun
from .levels import EDM, DiscreteVP, Level, LinearVP, NoiseSchedule, RectifiedFlow, level_at
from .noise import GeneratorTape, NoiseTape, Tape, initial_noise
from .prediction import EPS, FLOW, PARAMETRISATIONS, X0, Parametrisation, Prediction, V, edm, predict
from .renoise import renoise
from .sde import SDEDPMpp2M
from .solver import Plan, Solver
from .table import Table, fold, trace, trace_tick
from .unipc import UniPC

SOLVERS: dict[str, Callable[[], Solver]] = {
    "2m": DPMpp2M,
    "3m": DPMpp3M,
    "2s": DPMpp2S,
    "unipc-2": partial(UniPC, 2),
    "unipc-3": partial(UniPC, 3),
    "heun": Heun,
    "euler": Euler,
    "ddim": DDIM,
    "ddpm": partial(DDIM, eta=1.0),
    "sde-2m": SDEDPMpp2M,
}
"""The command line's names."""

__all__ = [
    "DDIM",
    "EDM",
    "EPS",
    "FLOW",
    "GRIDS",
    "PARAMETRISATIONS",
    "SOLVERS",
    "X0",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "DiscreteVP",
    "Euler",
    "GeneratorTape",
    "Guidance",
    "Heun",
    "Level",
    "Levels",
    "LinearVP",
    "Network",
    "NoiseSchedule",
    "NoiseTape",
    "Outputs",
    "Parametrisation",
    "Plan",
    "Prediction",
    "RectifiedFlow",
    "Report",
    "Result",
    "SDEDPMpp2M",
    "Solver",
    "State",
    "Table",
    "Tape",
    "TickRecord",
    "UniPC",
    "V",
    "advance",
    "check_levels",
    "edit",
    "edm",
    "fold",
    "from_times",
    "initial_noise",
    "karras",
    "leading",
    "level_at",
    "linspace",
    "predict",
    "renoise",
    "solve",
    "start",
    "trace",
    "trace_tick",
    "trailing",
    "uniform_lambda",
    "uniform_time",
]  # fmt: skip
