"""Runs of small pipelines with our scheduler, recorded so that our own loop can repeat them."""

from __future__ import annotations

import torch

from fewstep.samplers import (
    DDIM,
    DPMpp2M,
    DPMpp2S,
    DPMpp2SAncestral,
    DPMpp3M,
    DPMpp3S,
    DPMppSDE,
    Euler,
    GeneratorTape,
    Heun,
    SDEDPMpp2M,
    UniPC,
    trace,
    uniform_lambda,
)
from fewstep.samplers import scheduler as scheduler_module
from fewstep.samplers.scheduler import FewstepScheduler

from .tiny import LATENT_SHAPE

TICKS = 7  # odd: solvers with two ticks a step and one in the last reach it too
SOLVERS = [
    DDIM(),
    DDIM(eta=1.0),
    Euler(),
    Heun(),
    DPMpp2M(),
    DPMpp2M("taylor"),
    DPMpp3M(),
    DPMpp2S(),
    DPMpp3S(),
    UniPC(2),
    UniPC(3),
    SDEDPMpp2M(),
    DPMppSDE(),
    DPMpp2SAncestral(),
]
FORGETFUL = [UniPC(2), UniPC(3), DPMpp2S(), DPMpp3S(), Heun()]  # those that would discard an edit


def with_solver(pipe, solver):
    pipe.scheduler = FewstepScheduler.from_config(pipe.scheduler.config, solver=solver)
    return pipe


def table_of(solver, schedule):
    """Traced here, not taken from the scheduler: TICKS ticks on the lambda grid."""
    two_ticks = isinstance(solver, Heun | DPMpp2S | DPMppSDE | DPMpp2SAncestral)
    steps = (TICKS + 1) // 2 if two_ticks else (TICKS + 2) // 3 if isinstance(solver, DPMpp3S) else TICKS
    return trace(solver, uniform_lambda(schedule, steps), schedule)


def run(pipe, seed=0, guidance_scale=1.0, **kwargs):
    """(final latents, the UNet's calls) of a pipeline run; a call is (sample, timestep, keywords)."""
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda m, args, kw: calls.append((*args, kw)), with_kwargs=True)
    settings = {"num_inference_steps": TICKS, "generator": torch.Generator().manual_seed(seed), **kwargs}
    try:
        latents = pipe("a red dog", guidance_scale=guidance_scale, output_type="latent", **settings).images
    finally:
        hook.remove()
    return latents, calls


class RecordedNetwork:
    """The UNet, called with the keywords that a pipeline called it with."""

    def __init__(self, pipe, calls):
        self.unet, self.keywords = pipe.unet, calls[0][-1]
        self.schedule, self.parametrisation = pipe.scheduler.schedule, pipe.scheduler.parametrisation

    def __call__(self, x, level, branches, rows=None):
        time = torch.tensor(level.time, dtype=torch.float32)
        x = torch.cat([x] * len(branches)).to(self.unet.dtype)
        return self.unet(x, time, **self.keywords)[0].chunk(len(branches))


def noise_and_tape(seed=0, batch=1):
    """What a pipeline draws first, and the tape that goes on with the same generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *LATENT_SHAPE), generator=generator), GeneratorTape(generator)


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def without_edits(monkeypatch):
    """What a scheduler does that does not know about edits: it goes on from its own state."""
    monkeypatch.setattr(scheduler_module, "edit", lambda table, state, x: state)


class Numbered:
    """Noise that depends on the tick alone, whatever a pipeline drew from its generator before."""

    def __init__(self, generator=None):
        pass

    def normal(self, i, s, t, x):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).to(x)


def numbered(monkeypatch):
    """The scheduler's in-loop noise is `Numbered` now; the same for a native run."""
    monkeypatch.setattr(scheduler_module, "GeneratorTape", Numbered)
    return Numbered()
