"""Noise levels, solvers, the table that a run is, its engine, and gradients through it."""

from collections.abc import Callable
from functools import partial

from .adaptive import AdaptiveDPM, AdaptiveDPMpp, AdaptiveReport
from .ancestral import DPM2Ancestral, DPMpp2SAncestral
from .brownian import BrownianTape
from .ddim import DDIM
from .defaults import default_grid, default_solver
from .deis import DEIS
from .dpm_fast import DPMFast, DPMppFast
from .dpm_multistep import DPM2M, DPM3M, DPMpp2M, DPMpp3M, DPMpp3MAsReleased
from .dpm_singlestep import DPM2S, DPM3S, DPMpp2S, DPMpp3S
from .dpm_v3 import DPMv3, DPMv3Corrected, solve_v3
from .dpm_v3_estimate import estimate_statistics
from .dpm_v3_statistics import EmpiricalStatistics
from .dpmpp_sde import DPMppSDE
from .engine import (
    BatchedNetwork,
    Network,
    Outputs,
    Report,
    Result,
    State,
    TickRecord,
    advance,
    edit,
    solve,
    start,
)
from .euler import Euler
from .grids import (
    GRIDS,
    Levels,
    ays_sd,
    ays_sdxl,
    ays_svd,
    beta,
    check_levels,
    flow,
    from_times,
    karras,
    leading,
    linspace,
    polyexponential,
    quadratic,
    trailing,
    uniform_lambda,
    uniform_time,
)
from .heun import Heun
from .kdiffusion import KDiffusionNetwork
from .levels import EDM, DiscreteVP, Level, NoiseSchedule, RectifiedFlow, level_at
from .levels_continuous import CosineVP, LinearVP
from .noise import GeneratorTape, NoiseTape, Tape, initial_noise
from .policy import Images, Line, Memory, Policy, Run, Statistics, Weight
from .prediction import EPS, FLOW, PARAMETRISATIONS, X0, Parametrisation, Prediction, V, edm, predict
from .renoise import renoise
from .sde import SDEDPMpp1, SDEDPMpp2M, SDEDPMpp3M
from .shift import dynamic_mu, shift_levels, shift_of_mu, stretch_to_terminal
from .solver import Plan, Solver
from .table import Table, fold, trace, trace_tick
from .unipc import UniPC
from .whole_times import whole_times

SOLVERS: dict[str, Callable[[], Solver]] = {
    "2m": DPMpp2M,
    "3m": DPMpp3M,
    "3m-as-released": DPMpp3MAsReleased,
    "2s": DPMpp2S,
    "3s": DPMpp3S,
    "fast++": DPMppFast,
    "unipc-2": partial(UniPC, 2),
    "unipc-3": partial(UniPC, 3),
    "unipc-4": partial(UniPC, 4),
    "deis-2": partial(DEIS, 2),
    "deis-3": partial(DEIS, 3),
    "dpm-2m": DPM2M,
    "dpm-3m": DPM3M,
    "dpm-2s": DPM2S,
    "dpm-3s": DPM3S,
    "fast": DPMFast,
    "heun": Heun,
    "euler": Euler,
    "ddim": DDIM,
    "ddpm": partial(DDIM, eta=1.0),
    "sde-1": SDEDPMpp1,
    "sde-2m": SDEDPMpp2M,
    "sde-3m": SDEDPMpp3M,
    "dpmpp-sde": DPMppSDE,
    "dpm2-a": DPM2Ancestral,
    "2s-a": DPMpp2SAncestral,
}
"""The command line's names."""

ADAPTIVE: dict[str, Callable[[], AdaptiveDPM]] = {
    "adaptive-12": partial(AdaptiveDPM, 2),
    "adaptive-23": partial(AdaptiveDPM, 3),
    "adaptive++-12": partial(AdaptiveDPMpp, 2),
    "adaptive++-23": partial(AdaptiveDPMpp, 3),
}
"""Solvers that choose their steps while they run; they have no table, and `solve` takes them in its place."""

__all__ = [
    "ADAPTIVE",
    "DDIM",
    "DEIS",
    "DPM2M",
    "DPM2S",
    "DPM3M",
    "DPM3S",
    "EDM",
    "EPS",
    "FLOW",
    "GRIDS",
    "PARAMETRISATIONS",
    "SOLVERS",
    "X0",
    "AdaptiveDPM",
    "AdaptiveDPMpp",
    "AdaptiveReport",
    "BatchedNetwork",
    "BrownianTape",
    "CosineVP",
    "DPM2Ancestral",
    "DPMFast",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp2SAncestral",
    "DPMpp3M",
    "DPMpp3MAsReleased",
    "DPMpp3S",
    "DPMppFast",
    "DPMppSDE",
    "DPMv3",
    "DPMv3Corrected",
    "DiscreteVP",
    "EmpiricalStatistics",
    "Euler",
    "GeneratorTape",
    "Heun",
    "Images",
    "KDiffusionNetwork",
    "Level",
    "Levels",
    "Line",
    "LinearVP",
    "Memory",
    "Network",
    "NoiseSchedule",
    "NoiseTape",
    "Outputs",
    "Parametrisation",
    "Plan",
    "Policy",
    "Prediction",
    "RectifiedFlow",
    "Report",
    "Result",
    "Run",
    "SDEDPMpp1",
    "SDEDPMpp2M",
    "SDEDPMpp3M",
    "Solver",
    "State",
    "Statistics",
    "Table",
    "Tape",
    "TickRecord",
    "UniPC",
    "V",
    "Weight",
    "advance",
    "ays_sd",
    "ays_sdxl",
    "ays_svd",
    "beta",
    "check_levels",
    "default_grid",
    "default_solver",
    "dynamic_mu",
    "edit",
    "edm",
    "estimate_statistics",
    "flow",
    "fold",
    "from_times",
    "initial_noise",
    "karras",
    "leading",
    "level_at",
    "linspace",
    "polyexponential",
    "predict",
    "quadratic",
    "renoise",
    "shift_levels",
    "shift_of_mu",
    "solve",
    "solve_v3",
    "start",
    "stretch_to_terminal",
    "trace",
    "trace_tick",
    "trailing",
    "uniform_lambda",
    "uniform_time",
    "whole_times",
]  # fmt: skip
