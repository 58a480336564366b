"""The peers of `work_precision`: diffusers' deterministic schedulers on every grid that they offer, and the gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..guidance.cfg import CFG
from ..samplers import DPMpp2M, Level, Levels, Outputs, Table, advance, start, trace
from .overhead_peers import PEER, STABLE_DIFFUSION
from .work_precision_methods import FLOW_SHIFTS, Method, Sample
from .work_precision_problems import Problem


def run_peer(problem: Problem, budget: int, *, build: Callable[[], Any], flow_sigmas: bool = False) -> Sample | None:
    """A pipeline's loop in float32: the network is told the scheduler's own timestep, rounded as it is."""
    parts, ticks = [], 0
    branches = ("cond",) if problem.guidance is None else ("uncond", "cond")
    for network, x, _ in problem.batches():
        scheduler = build()
        if flow_sigmas:
            scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1.0 / budget, budget).tolist())
        else:
            scheduler.set_timesteps(budget)
        latents, ticks = x * float(getattr(scheduler, "init_noise_sigma", 1.0)), len(scheduler.timesteps)
        for t in scheduler.timesteps:
            fed = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
            outputs = network(fed, problem.schedule.level(float(t)), branches)
            out = guided(outputs, problem.guidance)
            latents = scheduler.step(out, t, latents, return_dict=False)[0]
        parts.append(latents)
    return Sample(torch.cat(parts), budget, ticks, ticks * len(branches))


def guided(outputs: tuple[Tensor, ...], guidance: CFG | None) -> Tensor:
    """What pipelines do with (uncond, cond), or (cond,) without guidance."""
    if guidance is None:
        return outputs[0]
    (uncond, cond), scale = outputs, guidance.scale
    assert isinstance(scale, float)
    return uncond + scale * (cond - uncond)


SPACINGS = {name: {"timestep_spacing": name} for name in ("linspace", "leading", "trailing")}
SIGMAS = {
    name: {f"use_{name}_sigmas": True}
    for name in ("karras", "exponential", "beta")
    if name != "beta" or find_spec("scipy")  # diffusers' beta grid needs it; without it that grid is left out
}
LU = {"lu": {"use_lu_lambdas": True}}


def peers(problem: Problem) -> list[Method]:
    """diffusers' deterministic schedulers, each on every grid that it offers."""
    return flow_peers() if problem.is_flow else vp_peers(problem.parametrisation.name)


def vp_peers(prediction: str) -> list[Method]:
    from diffusers import (
        DDIMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    )

    common = {
        **STABLE_DIFFUSION,
        "steps_offset": 1,
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[prediction],
    }
    every = {**SPACINGS, **SIGMAS}
    table: list[tuple[str, Any, dict[str, Any], dict[str, dict[str, Any]]]] = [
        ("DPM-Solver++ 2M", DPMSolverMultistepScheduler, {"solver_order": 2}, {**every, **LU}),
        ("DPM-Solver++ 3M", DPMSolverMultistepScheduler, {"solver_order": 3}, {**every, **LU}),
        ("UniPC-2", UniPCMultistepScheduler, {"solver_order": 2}, every),
        ("UniPC-3", UniPCMultistepScheduler, {"solver_order": 3}, every),
        ("DEIS-2", DEISMultistepScheduler, {"solver_order": 2}, every),
        ("DEIS-3", DEISMultistepScheduler, {"solver_order": 3}, every),
        ("DDIM", DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}, SPACINGS),
    ]
    return [
        Method(PEER, name, grid, partial(run_peer, build=partial(kind, **{**common, **options, **chosen})))
        for name, kind, options, grids in table
        for grid, chosen in grids.items()
    ]


def flow_peers() -> list[Method]:
    from diffusers import (
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    common = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    table: list[tuple[str, Any, int]] = [
        ("DPM-Solver++ 2M", DPMSolverMultistepScheduler, 2),
        ("DPM-Solver++ 3M", DPMSolverMultistepScheduler, 3),
        ("UniPC-2", UniPCMultistepScheduler, 2),
        ("UniPC-3", UniPCMultistepScheduler, 3),
        ("DEIS-2", DEISMultistepScheduler, 2),
    ]
    found = []
    for shift in FLOW_SHIFTS:
        for name, kind, order in table:
            build = partial(kind, **common, solver_order=order, flow_shift=shift)
            found.append(Method(PEER, name, f"shift-{shift:g}", partial(run_peer, build=build)))
        euler: Any = partial(FlowMatchEulerDiscreteScheduler, shift=shift)
        run = partial(run_peer, build=euler, flow_sigmas=True)
        found.append(Method(PEER, "Euler", f"shift-{shift:g}", run))
    return found


# --- the gate -------------------------------------------------------------------------------------------------------


def gate(problem: Problem, steps: int = 10, tolerance: float = 1e-5) -> str | None:
    """None if our DPMpp2M on the very levels and labels of diffusers' 2M gives its images; else how far they are."""
    from diffusers import DPMSolverMultistepScheduler

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    build = partial(DPMSolverMultistepScheduler, **(flow if problem.is_flow else STABLE_DIFFUSION), solver_order=2)
    theirs = run_peer(problem, steps, build=build)
    scheduler = build()
    scheduler.set_timesteps(steps)
    levels = peer_levels(scheduler, flow=problem.is_flow)
    table = trace(DPMpp2M(), levels, problem.schedule)
    parts = [_run_at_labels(table, problem, network, x) for network, x, _ in problem.batches()]
    assert theirs is not None
    difference = float((torch.cat(parts) - theirs.x).abs().max() / theirs.x.abs().max())
    if difference <= tolerance:
        return None
    return f"DPMpp2M differs from diffusers' DPMSolverMultistepScheduler by {difference:.1e}, allowed {tolerance:.0e}"


def peer_levels(scheduler: Any, *, flow: bool) -> Levels:
    """The levels that a diffusers scheduler integrates over, with the labels that it feeds the network."""
    labels = [*scheduler.timesteps.tolist(), 0]
    levels = []
    for label, ratio in zip(labels, scheduler.sigmas.double().tolist(), strict=True):
        # Elsewhere sigma / alpha; with flow sigmas sigma itself, and alpha = 1 - sigma.
        alpha = 1.0 - ratio if flow else (1.0 + ratio * ratio) ** -0.5
        levels.append(Level(float(label), alpha, ratio if flow else ratio * alpha))
    return tuple(levels)


def _run_at_labels(table: Table, problem: Problem, network: Any, x: Tensor) -> Tensor:
    branches = ("cond",) if problem.guidance is None else ("uncond", "cond")
    state = start(table, x)
    for node in table.plan.nodes:
        outputs = network(state.x, problem.schedule.level(float(node.time)), branches)
        out = guided(outputs, problem.guidance)
        state = advance(table, state, Outputs(state.x, node, (out,), problem.parametrisation))
    return state.x
