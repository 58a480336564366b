"""What docs/names.md says of diffusers' schedulers: driven on the same levels with the same outputs, they agree."""

from __future__ import annotations

import importlib
import math
import sys
from types import ModuleType

import diffusers
import pytest
import torch

from fewstep.aliases import DIFFUSERS, GRID_DIFFERS, SAME, TRUE_ORDER
from fewstep.names import parse_options
from fewstep.samplers import (
    DPM3M,
    DPMpp3MAsReleased,
    Level,
    LinearVP,
    RectifiedFlow,
    advance,
    start,
    trace,
)
from fewstep.samplers.prediction import EPS, FLOW, predict
from fewstep.samplers.solver_config import solver_of

from .problems import Mixture

TOLERANCE = 1e-5  # relative, over the whole trajectory of schedulers that cast to float32
STEPS = 10
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENTS = torch.randn((1, 4, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
DRAWS = torch.randn((40, 1, 4, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(8))
OPTIONS = {  # beside those that the table names
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "algorithm_type=dpmsolver": {"final_sigmas_type": "sigma_min"},
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FLOAT64 = {
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
}  # compute in what they are given


def claims(steps: int):
    """The rows that claim the same rule of this many steps."""
    for alias in DIFFUSERS:
        if alias.exact == SAME and (steps < 15 or "15 steps" not in alias.note):
            yield alias, steps
        elif alias.exact == TRUE_ORDER and steps < 15:  # beyond, theirs keeps its order to the last step but one
            yield alias, steps


class ReleasedHeun3M(DPMpp3MAsReleased):
    """Their third order with solver_type="heun": steps of order 2 in the taylor form."""

    second_order_form = "taylor"


class ReleasedNoise3M(DPMpp3MAsReleased):
    space = DPM3M.space


AS_RELEASED = {
    "DPMSolverMultistepScheduler:solver_order=3": DPMpp3MAsReleased(),
    "DPMSolverMultistepScheduler:solver_order=3,solver_type=heun": ReleasedHeun3M(),
    "DPMSolverMultistepScheduler:algorithm_type=dpmsolver,solver_order=3": ReleasedNoise3M(),
}


def peer_of(theirs: str, steps: int = STEPS):
    """The scheduler of a row of the table, with its timesteps set."""
    name, _, options = theirs.partition(":")
    texts = parse_options(options) if options else {}
    given: dict = {key: int(value) if value.isdigit() else value for key, value in texts.items()}
    given |= OPTIONS.get(name, {}) | OPTIONS.get(options.partition(",")[0], {})
    given |= {} if name.startswith("Flow") else BETAS
    peer = getattr(_torchsde_module() if name == "DPMSolverSDEScheduler" else diffusers, name)(**given)
    peer.set_timesteps(steps)
    for key, value in vars(peer).items():  # in float32 the coefficients of DEIS of order 3 cancel to 1e-5
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            setattr(peer, key, value.double())
    return peer


def _torchsde_module():
    """That scheduler's module without torchsde, which only its noise needs."""
    if "torchsde" not in sys.modules:
        sys.modules["torchsde"] = ModuleType("torchsde")
        importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
        del sys.modules["torchsde"]
    return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")


def levels_of(peer) -> tuple[Level, ...]:
    """The levels at which the peer's steps begin and end."""
    if hasattr(peer, "sigmas"):
        sbars = [float(s) for s in peer.sigmas]
        sbars = [s for i, s in enumerate(sbars) if not i or s != sbars[i - 1]]  # Heun's and DPM2's are there twice
    else:
        sbars = [math.sqrt(1.0 / float(peer.alphas_cumprod[t]) - 1.0) for t in peer.timesteps] + [0.0]
    if "Flow" in type(peer).__name__:
        return tuple(Level(1000.0 * s, 1.0 - s, s) for s in sbars)
    return tuple(Level(float(-i), 1.0 / math.hypot(1.0, s), s / math.hypot(1.0, s)) for i, s in enumerate(sbars))


def run_ours(solver, levels, schedule, network):
    table = trace(solver, levels, schedule)
    state, states, parametrisation = start(table, LATENTS), [], FLOW if isinstance(schedule, RectifiedFlow) else EPS
    for k, node in enumerate(table.plan.nodes):
        p = predict(parametrisation, node, state.x, network(state.x, k))
        state = advance(table, state, p, DRAWS[k] if table.noisy[k] else None)
        states.append(state.x)
    return states


def run_theirs(peer, plan, network, monkeypatch):
    """In our variable x: schedulers that begin with latents scaled by sigma keep x / alpha."""
    unscaled = float(getattr(peer, "init_noise_sigma", 1.0)) != 1.0
    x, states, tick = LATENTS / plan.nodes[0].alpha if unscaled else LATENTS, [], [0]
    module = sys.modules[type(peer).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: DRAWS[tick[0]])
    if type(peer).__name__ == "DPMSolverSDEScheduler":
        peer.noise_sampler = _path(plan)
    for k, t in enumerate(peer.timesteps):
        tick[0] = k
        fed = peer.scale_model_input(x, t) if hasattr(peer, "scale_model_input") else x
        x = peer.step(network(fed, k), t, x, return_dict=False)[0]
        states.append(x * plan.targets[k].alpha if unscaled else x)
    return states


def _path(plan):
    """The normalised increments of the Brownian path whose pieces between our ticks are DRAWS."""
    knots, values = [plan.nodes[0].sigma / plan.nodes[0].alpha], [torch.zeros_like(LATENTS)]
    for k, t in enumerate(plan.targets):
        s = t.sigma / t.alpha
        if s != knots[-1]:
            values.append(values[-1] + math.sqrt(abs(knots[-1] - s)) * DRAWS[k])
            knots.append(s)

    def at(sbar):
        i = min(range(len(knots)), key=lambda j: abs(knots[j] - float(sbar)))
        assert math.isclose(knots[i], float(sbar), rel_tol=1e-4)
        return values[i], knots[i]

    def sample(s, t):
        (a, u), (b, v) = at(s), at(t)
        return (b - a) / math.sqrt(abs(u - v))

    return sample


def difference(peer, solver, levels, monkeypatch) -> float:
    """Greatest relative difference over the trajectory."""
    flow = "Flow" in type(peer).__name__
    schedule = RectifiedFlow(1000.0) if flow else LinearVP()  # any: its levels follow from lam
    plan = trace(solver, levels, schedule).plan
    problem = Mixture(schedule, FLOW if flow else EPS)

    def network(x, k):
        return problem(x, plan.nodes[k], ("cond",))[0]

    assert len(peer.timesteps) == len(plan)
    ours = run_ours(solver, levels, schedule, network)
    theirs = run_theirs(peer, plan, network, monkeypatch)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("alias", "steps"), [*claims(10), *claims(20)], ids=lambda v: getattr(v, "theirs", v))
def test_the_same(alias, steps, monkeypatch):
    peer = peer_of(alias.theirs, steps)
    solver = AS_RELEASED[alias.theirs] if alias.exact == TRUE_ORDER else solver_of(alias.ours)
    value = difference(peer, solver, levels_of(peer), monkeypatch)
    print(f"{alias.theirs}, {steps} steps: {value:.1e}")
    assert value <= (1e-12 if type(peer).__name__ in FLOAT64 else TOLERANCE)


@pytest.mark.parametrize("alias", [alias for alias in DIFFUSERS if alias.exact == GRID_DIFFERS], ids=lambda a: a.theirs)
def test_the_same_on_our_nodes(alias, monkeypatch):
    peer, solver = peer_of(alias.theirs, 9), solver_of(alias.ours)
    levels = levels_of(peer)[::2] + levels_of(peer)[-1:]
    nodes = trace(solver, levels, LinearVP()).plan.nodes
    apart = max(abs(float(s) / (v.sigma / v.alpha) - 1.0) for s, v in zip(peer.sigmas, nodes, strict=False))
    assert apart > 0.01  # its grid is another one
    peer.sigmas = torch.tensor([v.sigma / v.alpha for v in nodes] + [0.0], dtype=torch.float64)
    value = difference(peer, solver, levels, monkeypatch)
    print(f"{alias.theirs}: {value:.1e}")
    assert value <= (1e-12 if type(peer).__name__ in FLOAT64 else TOLERANCE)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("DPMSolverMultistepScheduler:solver_order=3,solver_type=heun", "3m"),
        ("DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++,solver_order=3", "sde-3m"),
        ("DPMSolverMultistepScheduler", "2m:solver_type=taylor"),
        ("UniPCMultistepScheduler", "unipc-3"),
    ],
)
def test_what_is_not_the_same_is_told_apart(theirs, ours, monkeypatch):
    peer = peer_of(theirs)
    assert difference(peer, solver_of(ours), levels_of(peer), monkeypatch) > 50 * TOLERANCE


def test_every_class_of_the_table_is_one_of_diffusers():
    for alias in DIFFUSERS:
        assert hasattr(diffusers, alias.theirs.partition(":")[0]), alias
