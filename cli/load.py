"""From settings to a loaded model and the table that it will run. What needs no weights is checked first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from ..errors import ConfigError, FewstepError, IncompatibleError
from .console import Console
from .model_ref import ModelRef
from .settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from ..samplers import AdaptiveDPM, NoiseSchedule, Table
    from ..samplers.backbones import Backbone
    from .table_ref import TableRef


@dataclass(frozen=True)
class Model:
    """A loaded model and what it makes of the settings.

    plan: the table, or a solver that makes none.       steps: of the grid, which a solver may join to longer ones.
    pixels: (1, 3, height, width) of the picture to start from, if the run begins with one.
    """

    backbone: Backbone
    plan: Table | AdaptiveDPM
    steps: int | None
    height: int
    width: int
    scale: float
    pixels: Tensor | None
    commit: str | None


class Plan(NamedTuple):
    """What will run, and where.       steps: None for a solver that chooses them."""

    device: str
    how: Table | AdaptiveDPM
    steps: int | None


def load(settings: Settings, console: Console) -> Model:
    """The model, after every check that needs no weights."""
    ref = settings.model
    hub = " (from the hub where it is not in the cache; --verbose shows the download)" if ref.kind == "hub" else ""
    console.note(f"loading {ref.name} ...{hub}")
    from ..samplers.backbones import load_backbone

    device, how, steps = planned = plan(settings)
    if settings.nfe is not None:
        console.note(budget_line(settings, planned))
    console.hush_loaded()
    with broken(ref):
        backbone = load_backbone(
            ref.location,
            dtype=settings.dtype,
            device=device,
            variant=ref.variant,
            revision=ref.revision,
            loras=[(lora.location, lora.weight) for lora in settings.loras],
            offload=settings.offload,
        )
        height, width = _size(settings, backbone, console)
        pixels = _pixels(settings, height, width)
    scale = settings.guidance_scale
    if scale is None:
        scale = ref.default_scale if ref.default_scale is not None else backbone.default_guidance_scale
    _warn_of_long_prompts(settings, backbone, console)
    console.detail(
        f"{backbone.family} on {backbone.device}, {settings.dtype}, {width}x{height}, guidance scale {scale:g}, "
        + (f"{evaluations_of(how)} evaluations a picture: {how.solver}" if is_table(how) else repr(how))
    )
    return Model(backbone, how, steps, height, width, float(scale), pixels, _commit(ref))


def is_table(how: Table | AdaptiveDPM) -> TypeGuard[Table]:
    from ..samplers import Table

    return isinstance(how, Table)


def evaluations_of(how: Table | AdaptiveDPM) -> int | None:
    """Of a picture, if that is known before the run."""
    return how.evaluations if is_table(how) else None


def plan(settings: Settings) -> Plan:
    """Every check that needs torch, or a hub's scheduler config, but no weights."""
    import torch

    from ..kernels import choice
    from ..samplers.backbones import check_device, check_model
    from ..samplers.backbones.placement import check_offload

    device = resolve_device(settings.device)
    check_offload(settings.offload, check_device(device).type)
    choice.use_triton(torch.device(device))  # raises where FEWSTEP_KERNELS asks for what cannot be
    check_model(settings.model.location)
    if settings.table is not None:
        return Plan(device, saved_table(settings.model, settings.table), settings.steps)
    if settings.schedule == "adaptive":
        return Plan(device, _adaptive(settings), None)
    steps = settings.steps if settings.nfe is None else _steps_for(settings)
    table = trace_of(settings.model, settings.solver, settings.schedule, steps, strength=settings.share)
    return Plan(device, table, steps)


def _steps_for(settings: Settings) -> int:
    """What the budget pays for."""
    from ..guidance.layout import steps_for
    from ..samplers.solver_config import solver_of

    assert settings.nfe is not None
    noise, _ = schedule_of(settings.model)
    with broken(settings.model):
        return steps_for(
            settings.nfe, noise, solver_of(settings.solver),
            grid=settings.schedule, branches=settings.branches, strength=settings.share,
        )  # fmt: skip


def _adaptive(settings: Settings) -> AdaptiveDPM:
    from ..guidance.layout import shortened
    from ..samplers.solver_config import adaptive_of

    noise, _ = schedule_of(settings.model)
    shortened(noise, settings.share)  # refuses a strength that leaves nothing to do
    found = adaptive_of(settings.solver)
    assert found is not None, settings.solver
    return found


def budget_line(settings: Settings, plan: Plan) -> str:
    """What a budget was found to pay for."""
    cost = (evaluations_of(plan.how) or 0) * settings.branches
    steps = "1 step" if plan.steps == 1 else f"{plan.steps} steps"
    return f"--nfe {settings.nfe}: {steps} of {settings.solver}, which cost {cost} a picture"


def trace_of(ref: ModelRef, solver: str, schedule: str, steps: int | None, *, strength: float = 1.0) -> Table:
    """The table of a run, from the model's scheduler config."""
    from ..guidance.layout import table_of
    from ..samplers.solver_config import solver_of

    noise, _ = schedule_of(ref)
    with broken(ref):
        rule = solver_of(solver)
        return table_of(noise, rule, grid=schedule, steps=steps, strength=strength)


def schedule_of(ref: ModelRef) -> tuple[NoiseSchedule, str]:
    """(noise schedule, name of the parametrisation) of a model."""
    from ..samplers.backbones import read_schedule

    with broken(ref):
        noise, parametrisation = read_schedule(ref.location, revision=ref.revision)
        return noise, parametrisation.name


def saved_table(ref: ModelRef, table: TableRef) -> Table:
    """The table of a file, if it was made for this model's noise levels and its kind of prediction."""
    from ..samplers import Table

    noise, parametrisation = schedule_of(ref)
    if table.parametrisation not in (None, parametrisation):
        raise IncompatibleError(
            f"--table {table.name!r} was saved for a model that predicts {table.parametrisation}, and {ref.name} "
            f"predicts {parametrisation}: make it again with fewstep table --save, with the same --model as here"
        )
    try:
        return Table.load(table.location, noise)
    except FewstepError as error:
        raise type(error)(f"--table: {error}") from None


@contextmanager
def broken(ref: ModelRef) -> Iterator[None]:
    """What a config with wrong values makes Python raise is bad input; torch's RuntimeError is a failure."""
    try:
        yield
    except FewstepError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"the model {ref.name} cannot be used, as if a config of it is wrong: {what[:300]}"
        ) from error


def _size(settings: Settings, backbone: Backbone, console: Console) -> tuple[int, int]:
    """(height, width): as asked for, else the picture's to start from, else what the model was trained at."""
    default = backbone.default_size
    if settings.init_image is None:
        height, width = settings.height or default[0], settings.width or default[1]
        backbone.check_size(height, width)
        return height, width
    from ..guidance.pictures import fitting_size

    got = settings.init_image.size
    height, width = fitting_size(got, settings.height, settings.width, backbone.size_multiple)
    try:
        backbone.check_size(height, width)
    except ConfigError as error:
        raise ConfigError(
            f"--init-image of {got[0]}x{got[1]} pixels would become {width}x{height}: {error}; --height and --width "
            "choose another size"
        ) from None
    if (width, height) != got:
        console.note(f"the picture to start from is resized from {got[0]}x{got[1]} to {width}x{height} pixels")
    if height * width > 4 * default[0] * default[1] and settings.height is None and settings.width is None:
        console.warn(f"{width}x{height} is far larger than the {default[1]}x{default[0]} that this model was trained "
                     "at: slow, and seldom good; --height and --width choose another size")  # fmt: skip
    return height, width


def _pixels(settings: Settings, height: int, width: int) -> Tensor | None:
    """The picture to start from; none where nothing of it would stay."""
    if settings.init_image is None or (settings.share == 1.0 and settings.table is None):
        return None
    from ..guidance.pictures import fitted, pixels_of

    return pixels_of(fitted(settings.init_image.open(), height, width))[None]


def _commit(ref: ModelRef) -> str | None:
    """Which commit of a hub model was loaded: a branch moves, a commit does not."""
    if ref.kind != "hub":
        return None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(ref.location, "model_index.json", revision=ref.revision)
    name = Path(path).parent.name if isinstance(path, str) else ""
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else None


def resolve_device(device: str) -> str:
    """The device that "auto" means: the first CUDA device where there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _warn_of_long_prompts(settings: Settings, backbone: Any, console: Console) -> None:
    """Text encoders cut a prompt that is too long, silently."""
    tokenizer = getattr(getattr(backbone, "pipe", None), "tokenizer", None)
    limit = getattr(tokenizer, "model_max_length", None)
    if tokenizer is None or not isinstance(limit, int) or limit > 100_000:
        return
    for prompt in dict.fromkeys([*settings.prompts, settings.negative_prompt or ""]):
        tokens = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        if tokens > limit:
            short = prompt if len(prompt) <= 50 else prompt[:47] + "..."
            console.warn(f"{short!r} has {tokens} tokens and this model reads {limit}: the rest is ignored")
