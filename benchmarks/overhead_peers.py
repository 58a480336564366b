"""diffusers' schedulers in the loop that a pipeline runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..guidance.cfg import CFG

PEER = "diffusers"
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True, eq=False)
class Peer:
    """A scheduler, how many ticks a step of `set_timesteps` has, and what `step` is given besides."""

    scheduler: Any
    ticks_a_step: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def prepare(self, ticks: int) -> None:
        """What a pipeline does before its loop, with the search for the first index avoided."""
        self.scheduler.set_timesteps(ticks // self.ticks_a_step)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)

    def run(
        self, network: Any, x: Tensor, guidance: CFG | None, on_tick: Callable[..., Any], ticks: int
    ) -> Callable[[], Tensor]:
        """A run, ready to be called once: the loop of a pipeline without its progress bar."""
        self.prepare(ticks)
        scheduler, options = self.scheduler, self.options
        scale = guidance.scale if guidance is not None else 1.0
        branches = ("cond",) if guidance is None else ("uncond", "cond")

        @torch.no_grad()
        def loop() -> Tensor:
            latents = x
            for i, t in enumerate(scheduler.timesteps):
                outputs = network(scheduler.scale_model_input(latents, t), t, branches)
                if len(outputs) == 2:
                    uncond, cond = outputs
                    noise_pred = uncond + scale * (cond - uncond)
                else:
                    noise_pred = outputs[0]
                latents = scheduler.step(noise_pred, t, latents, **options, return_dict=False)[0]
                on_tick(i, latents, noise_pred)
            return latents

        return loop


@cache
def peers() -> dict[str, Peer]:
    """Our name -> the scheduler that diffusers has for it. diffusers' 3M lacks a factor 2: same work, other formula."""
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    sd = STABLE_DIFFUSION
    ddim = {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    return {
        "2m": Peer(DPMSolverMultistepScheduler(**sd, solver_order=2)),
        "3m": Peer(DPMSolverMultistepScheduler(**sd, solver_order=3)),
        "2s": Peer(DPMSolverSinglestepScheduler(**sd, solver_order=2)),
        "unipc-2": Peer(UniPCMultistepScheduler(**sd, solver_order=2)),
        "unipc-3": Peer(UniPCMultistepScheduler(**sd, solver_order=3)),
        "heun": Peer(HeunDiscreteScheduler(**sd), ticks_a_step=2),
        "euler": Peer(EulerDiscreteScheduler(**sd)),
        "ddim": Peer(DDIMScheduler(**sd, **ddim)),
        "ddpm": Peer(DDIMScheduler(**sd, **ddim), options={"eta": 1.0}),
        "sde-2m": Peer(DPMSolverMultistepScheduler(**sd, solver_order=2, algorithm_type="sde-dpmsolver++")),
    }
