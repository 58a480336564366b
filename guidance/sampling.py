"""`sample`: prompts to pictures with a pipeline's own parts, in fewstep's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..samplers import (
    AdaptiveDPM,
    Level,
    Levels,
    NoiseTape,
    Policy,
    Report,
    Solver,
    Table,
    initial_noise,
    renoise,
    solve,
)
from ..samplers.backbones import backbone_of
from ..samplers.defaults import default_grid, default_solver
from ..samplers.engine import OnTick
from ..samplers.noise import check_seeds
from ..samplers.solver_config import adaptive_of, solver_and_grid
from ..samplers.table import check_same_schedule
from .cfg import CFG
from .fingerprint import of_pipeline
from .layout import DEFAULT_STEPS, check_begins_in_noise, check_strength, shortened, table_of
from .made_for import EMPTY, GIVEN, MadeFor, check
from .named import policy_of
from .pictures import batch_of_images
from .scale import own_scale, owns_scale, with_scale

if TYPE_CHECKING:
    from torch import Tensor

    from ..samplers.backbones import Backbone

__all__ = ["DEFAULT_STEPS", "DEFAULT_STRENGTH", "Sampled", "sample"]

DEFAULT_STRENGTH = 0.8


class Sampled(NamedTuple):
    """images: (B, 3, H, W) float32 in [0, 1] on the CPU; what they cost; the table that made them.

    After an adaptive solver the report is an AdaptiveReport, and there is no table.
    """

    images: Tensor
    report: Report
    table: Table | None


def sample(
    model: Any,
    prompts: str | Sequence[str],
    *,
    negative_prompts: str | Sequence[str] | None = None,
    solver: Solver | AdaptiveDPM | str | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str | Levels | None = None,
    table: Table | None = None,
    init_images: Any = None,
    strength: float | None = None,
    guidance_scale: float | None = None,
    guidance: Policy | str | PathLike[str] | None = None,
    seeds: Sequence[int] | None = None,
    height: int | None = None,
    width: int | None = None,
    on_tick: OnTick | None = None,
    graph: bool = False,
) -> Sampled:
    """Sample one image per prompt.

    model: a diffusers pipeline of a supported family, or a Backbone (see samplers.backbones).
    negative_prompts: None for the model's own empty condition, or one, or one per prompt.
    solver: one, or a name ("unipc-3", "DPM++ 2M Karras"); default: samplers.defaults.default_solver. An adaptive one
    (AdaptiveDPM()) finds its steps itself: grid, steps, nfe, on_tick and graph do not go with it.
    grid: a name of samplers.GRIDS, or explicit levels; default: what the solver's name implies, else what suits the
    solver (samplers.defaults.default_grid).
    steps: default 10.       nfe: in its place, a budget of network rows per image (two a tick with guidance); the
    largest number of steps within it is taken.       table: in place of solver, grid, steps and nfe.
    init_images: begin with these and not with noise alone; see pictures.batch_of_images. They are encoded to the mean
    of the autoencoder's distribution and noised to the first level of the run.
    strength: in (0, 1], default 0.8, the part of the noise schedule that is run (see layout.shortened); all steps run,
    and at 1 nothing of the images stays. A table and explicit levels have their own first level and no strength;
    without init_images they must begin in noise (layout.check_begins_in_noise).
    guidance_scale: None for the model's default; 1 evaluates one branch a tick instead of two.
    guidance: a policy, such as AdaptiveGuidance(), a name ("adaptive:threshold=0.998") or a file of fewstep calibrate;
    default CFG. One without a scale takes guidance_scale; a budget nfe counts two rows a tick whatever it saves.
    seeds: one per image; image k depends on seeds[k] alone. Default 0, 1, 2, ...
    height, width: pixels; default: those of init_images, else what the model was trained at.
    graph: replay network and sampler from CUDA graphs (see samplers.solve), captured anew for every call, which takes
    as long as four ticks; on_tick must then be None.
    Errors: ConfigError for values that cannot work, IncompatibleError for an unsupported pipeline, a table of another
    schedule, or the file of a policy that was calibrated for something else.
    """
    backbone: Backbone = model if hasattr(model, "latent_shape") else backbone_of(model)
    prompts, negative_prompts, seeds = _per_image(prompts, negative_prompts, seeds)
    policy, made_for = policy_of(CFG() if guidance is None else guidance)
    policy = with_scale(policy, guidance_scale)
    if not owns_scale(policy):
        policy = with_scale(policy, backbone.default_guidance_scale)
    named = table is None and (grid is None or isinstance(grid, str))
    share = _share(strength, init_images is not None, named)
    adaptive = adaptive_of(solver)
    if adaptive is not None:
        _check_adaptive(adaptive, steps=steps, nfe=nfe, grid=grid, table=table, on_tick=on_tick, graph=graph or None)
        first = shortened(backbone.schedule, share).noisiest
    else:
        if table is None:
            table = _table(backbone, policy, solver, steps, nfe, grid, share)
        else:
            _check_table(table, backbone, solver=solver, steps=steps, nfe=nfe, grid=grid)
        first = table.plan.nodes[0]
        if not named and init_images is None:
            check_begins_in_noise(first, table.plan.step[-1] + 1, backbone.schedule)
    if made_for is not None:
        check(policy, made_for, here_of(backbone, table, negative_prompts is not None))
    pixels = None
    if init_images is not None:
        pixels = batch_of_images(init_images, len(prompts), height, width, backbone.size_multiple)
        height, width = pixels.shape[2:]
        pixels = None if named and share == 1.0 else pixels
    default_height, default_width = backbone.default_size
    height, width = default_height if height is None else height, default_width if width is None else width

    noise = initial_noise(seeds, backbone.latent_shape(height, width)).to(backbone.device)
    network = backbone.encode(prompts, negative_prompts, height=height, width=width)
    x = _first_state(backbone, first, noise, pixels)
    if table is None:
        result = adaptive.run(network, x, guidance=policy, begin=first)  # type: ignore[union-attr]
    else:
        result = solve(table, network, x, guidance=policy, tape=NoiseTape(seeds), on_tick=on_tick, graph=graph)
    return Sampled(backbone.decode(result.x), result.report, table)


def here_of(backbone: Backbone, table: Table | None, negative: bool) -> MadeFor:
    """What a run is, for the check of a saved policy.       negative: whether negative prompts were given."""
    others = {
        "weights": of_pipeline(getattr(backbone, "pipe", None)),
        "prediction": backbone.parametrisation.name,
        "negative": GIVEN if negative else EMPTY,
    }
    return MadeFor(**others) if table is None else MadeFor.of_table(table, **others)


def _per_image(
    prompts: str | Sequence[str], negative_prompts: str | Sequence[str] | None, seeds: Sequence[int] | None
) -> tuple[list[str], list[str] | None, tuple[int, ...]]:
    """Prompts, negative prompts and seeds, one per image."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ConfigError("there is no prompt to sample")
    if isinstance(negative_prompts, str):
        negative_prompts = [negative_prompts] * len(prompts)
    negative_prompts = None if negative_prompts is None else list(negative_prompts)
    seeds = check_seeds(range(len(prompts)) if seeds is None else seeds)
    for name, values in (("seeds", seeds), ("negative prompts", negative_prompts)):
        if values is not None and len(values) != len(prompts):
            raise ConfigError(f"{len(values)} {name} for {len(prompts)} prompts: give one per prompt")
    return prompts, negative_prompts, seeds


def _share(strength: float | None, from_images: bool, named: bool) -> float:
    """The part of the schedule to run; 1 where the levels are explicit, which are used as they are."""
    if strength is None:
        return DEFAULT_STRENGTH if from_images and named else 1.0
    check_strength(strength)
    if not from_images:
        raise ConfigError(f"strength={strength} belongs to init_images, and there are none")
    if not named:
        raise ConfigError(f"strength={strength} places the levels, and a table or explicit levels have theirs: leave "
                          "strength out, the images are noised to the first of them")  # fmt: skip
    return strength


def _table(
    backbone: Backbone, guidance: Policy, solver: Any, steps: int | None, nfe: int | None, grid: Any, share: float
) -> Table:
    kind = backbone.parametrisation
    rule, implied = solver_and_grid(default_solver(kind) if solver is None else solver)
    grid = (implied or default_grid(rule, kind)) if grid is None else grid
    branches = 1 if own_scale(guidance) in (0.0, 1.0) else 2
    return table_of(backbone.schedule, rule, grid=grid, steps=steps, nfe=nfe, branches=branches, strength=share)


def _check_table(table: Table, backbone: Backbone, **others: Any) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(f"{given[0]}={others[given[0]]!r} and a table were both given: the table holds solver, grid "
                          "and steps already, leave one of the two out")  # fmt: skip
    check_same_schedule(table.schedule, backbone.schedule)


def _check_adaptive(solver: AdaptiveDPM, **others: Any) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(f"{given[0]}={others[given[0]]!r} does not go with {type(solver).__name__}, which chooses "
                          "its steps while it runs: leave it out")  # fmt: skip


def _first_state(backbone: Backbone, first: Level, noise: Tensor, pixels: Tensor | None) -> Tensor:
    """x at the first level: noise alone, or the pictures' latents with as much noise as belongs there."""
    if pixels is None:
        return noise if backbone.schedule.noisiest.sigma <= 1.0 else noise * float(first.sigma)
    return renoise(backbone.encode_image(pixels).to(noise), noise, first)
