"""`sample`: prompts to pictures with a pipeline's own parts, in fewstep's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..samplers import GRIDS, DPMpp2M, Levels, NoiseTape, Report, Solver, Table, initial_noise, solve, trace
from ..samplers.backbones import backbone_of
from ..samplers.engine import OnTick
from ..samplers.noise import check_seed
from .cfg import CFG

if TYPE_CHECKING:
    from torch import Tensor

    from ..samplers.backbones import Backbone

DEFAULT_STEPS = 10
DEFAULT_GRID = "lambda"


class Sampled(NamedTuple):
    """images: (B, 3, H, W) float32 in [0, 1] on the CPU; what they cost; the table that made them."""

    images: Tensor
    report: Report
    table: Table


def sample(
    model: Any,
    prompts: str | Sequence[str],
    *,
    negative_prompts: str | Sequence[str] | None = None,
    solver: Solver | None = None,
    steps: int = DEFAULT_STEPS,
    grid: str | Levels = DEFAULT_GRID,
    guidance_scale: float | None = None,
    seeds: Sequence[int] | None = None,
    height: int | None = None,
    width: int | None = None,
    on_tick: OnTick | None = None,
    graph: bool = False,
) -> Sampled:
    """Sample one image per prompt.

    model: a diffusers pipeline of a supported family, or a Backbone (see samplers.backbones).
    negative_prompts: None for the model's own empty condition, or one, or one per prompt.
    solver: default DPMpp2M().       grid: a name of samplers.GRIDS, or explicit levels (then `steps` is not used).
    guidance_scale: None for the model's default; 1 evaluates one branch a tick instead of two.
    seeds: one per image; image k depends on seeds[k] alone. Default 0, 1, 2, ...
    height, width: pixels; default: what the model was trained at.
    graph: replay network and sampler from CUDA graphs (see samplers.solve), captured anew for every call, which takes
    as long as four ticks; on_tick must then be None.
    Errors: ConfigError for values that cannot work, IncompatibleError for an unsupported pipeline.
    """
    backbone: Backbone = model if hasattr(model, "latent_shape") else backbone_of(model)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ConfigError("there is no prompt to sample")
    if isinstance(negative_prompts, str):
        negative_prompts = [negative_prompts] * len(prompts)
    seeds = tuple(check_seed(s) for s in (range(len(prompts)) if seeds is None else seeds))
    for name, values in (("seeds", seeds), ("negative prompts", negative_prompts)):
        if values is not None and len(values) != len(prompts):
            raise ConfigError(f"{len(values)} {name} for {len(prompts)} prompts: give one per prompt")
    default_height, default_width = backbone.default_size
    height, width = default_height if height is None else height, default_width if width is None else width
    shape = backbone.latent_shape(height, width)

    table = trace(solver or DPMpp2M(), levels_of(grid, steps, backbone.schedule), backbone.schedule)
    guidance = CFG(backbone.default_guidance_scale if guidance_scale is None else guidance_scale)
    network = backbone.encode(prompts, negative_prompts, height=height, width=width)
    first = table.plan.nodes[0]
    noise = initial_noise(seeds, shape).to(backbone.device)
    x = noise if backbone.schedule.noisiest.sigma <= 1.0 else noise * float(first.sigma)
    result = solve(table, network, x, guidance=guidance, tape=NoiseTape(seeds), on_tick=on_tick, graph=graph)
    return Sampled(backbone.decode(result.x), result.report, table)


def levels_of(grid: str | Levels, steps: int, schedule: Any) -> Levels:
    """The levels of a named grid, or the explicit ones as they are."""
    if not isinstance(grid, str):
        return grid
    if grid not in GRIDS:
        raise ConfigError(f"unknown schedule {grid!r}: expected one of {', '.join(GRIDS)}")
    return GRIDS[grid](schedule, steps)
