"""From settings to a loaded model and the table that it will run. What needs no weights is checked first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .console import Console
from .guidance_ref import check_loaded, nothing_to_save
from .model_ref import ModelRef
from .plan import broken, budget_line, check_device_of, evaluations_of, is_table, plan
from .settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from ..samplers import AdaptiveDPM, Policy, Table
    from ..samplers.backbones import Backbone


@dataclass(frozen=True)
class Model:
    """A loaded model and what it makes of the settings.

    plan: the table, or a solver that makes none.       steps: of the grid, which a solver may join to longer ones.
    policy: of guidance, with its scale; None for plain CFG.
    pixels: (1, 3, height, width) of the picture to start from, if the run begins with one.
    """

    backbone: Backbone
    plan: Table | AdaptiveDPM
    steps: int | None
    height: int
    width: int
    scale: float
    policy: Policy | None
    pixels: Tensor | None
    commit: str | None


def load(settings: Settings, console: Console) -> Model:
    """The model, after every check that needs no weights."""
    ref = settings.model
    hub = " (from the hub where it is not in the cache; --verbose shows the download)" if ref.kind == "hub" else ""
    check_device_of(settings)
    console.note(f"loading {ref.name} ...{hub}")
    from ..samplers.backbones import load_backbone

    planned = plan(settings)
    device, how, guiding = planned.device, planned.how, planned.guiding
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
    scale = settings.guidance_scale if guiding is None else guiding.scale
    if scale is None:
        scale = ref.default_scale if ref.default_scale is not None else backbone.default_guidance_scale
    if guiding is not None:
        guiding = guiding.with_scale(float(scale))
        check_loaded(settings, guiding, backbone)
    if (note := nothing_to_save(settings, scale, guiding, evaluations_of(how))) is not None:
        console.note(note)
    warn_of_long_prompts([*settings.prompts, settings.negative_prompt or ""], backbone, console)
    console.detail(
        f"{backbone.family} on {backbone.device}, {settings.dtype}, {width}x{height}, guidance scale {scale:g}, "
        + (f"{evaluations_of(how)} evaluations a picture: {how.solver}" if is_table(how) else repr(how))
    )
    policy = None if guiding is None else guiding.policy
    return Model(backbone, how, planned.steps, height, width, float(scale), policy, pixels, commit_of(ref))


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


def commit_of(ref: ModelRef) -> str | None:
    """Which commit of a hub model was loaded: a branch moves, a commit does not."""
    if ref.kind != "hub":
        return None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(ref.location, "model_index.json", revision=ref.revision)
    name = Path(path).parent.name if isinstance(path, str) else ""
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else None


def warn_of_long_prompts(prompts: Sequence[str], backbone: Any, console: Console) -> None:
    """Text encoders cut a prompt that is too long, silently."""
    tokenizer = getattr(getattr(backbone, "pipe", None), "tokenizer", None)
    limit = getattr(tokenizer, "model_max_length", None)
    if tokenizer is None or not isinstance(limit, int) or limit > 100_000:
        return
    for prompt in dict.fromkeys(prompts):
        tokens = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        if tokens > limit:
            short = prompt if len(prompt) <= 50 else prompt[:47] + "..."
            console.warn(f"{short!r} has {tokens} tokens and this model reads {limit}: the rest is ignored")
