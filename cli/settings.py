"""The settings of a run: checked, frozen, and enough to say which picture has which prompt and seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from ..errors import ConfigError
from ..names import DEFAULT_GRID, DEFAULT_SOLVER
from . import checks
from .guidance_ref import GuidanceRef, check_scales
from .init_image import InitImage
from .lora_ref import LoraRef
from .model_ref import ModelRef, check_size, default_size, least_side, size_multiple
from .table_ref import TableRef

DEFAULT_STRENGTH = 0.8


@dataclass(frozen=True)
class Item:
    """One picture: its place in the run, its prompt and its seed."""

    index: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class Settings:
    """What determines the pictures of a run. Picture k is of prompt k // num_images, with seed + k.

    steps: None for a budget, `nfe`, which finds them.       table: of its own solver and steps; schedule is "table".
    """

    model: ModelRef
    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    solver: str = DEFAULT_SOLVER
    schedule: str = DEFAULT_GRID
    steps: int | None = 10
    guidance_scale: float | None = None
    seed: int = 0
    num_images: int = 1
    batch_size: int = 1
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    device: str = "auto"
    metadata: bool = True
    nfe: int | None = None
    table: TableRef | None = None
    init_image: InitImage | None = None
    strength: float | None = None
    loras: tuple[LoraRef, ...] = ()
    offload: str | None = None
    guidance: GuidanceRef | None = None

    def check(self) -> Settings:
        """Itself, or ConfigError."""
        checks.scale(self.guidance_scale)
        check_scales(self.guidance, self.guidance_scale)
        self._check_strength()
        checks.whole("--num-images", self.num_images, 1, checks.MAX_IMAGES)
        checks.whole("--batch-size", self.batch_size, 1, checks.MAX_BATCH)
        if self.total > checks.MAX_IMAGES:
            raise ConfigError(
                f"{len(self.prompts):,} prompts with --num-images {self.num_images:,} are {self.total:,} pictures: "
                f"at most {checks.MAX_IMAGES:,} in one run"
            )
        checks.whole("--seed", self.seed, 0, checks.MAX_SEED)
        if self.seed + self.total - 1 > checks.MAX_SEED:
            raise ConfigError(f"the seeds would go beyond 2^63 - 1: {self.total:,} pictures from --seed {self.seed}")
        checks.side("--height", self.height)
        checks.side("--width", self.width)
        check_size(self.model, self.height, self.width)
        self._check_size_of_image()
        checks.one_of("--dtype", self.dtype, checks.DTYPES)
        checks.device(self.device)
        if self.offload is not None:
            checks.one_of("--offload", self.offload, checks.OFFLOADS)
            if self.device == "cpu":
                raise ConfigError("--offload model keeps parts of a model off the GPU; with --device cpu leave it out")
        together = max(sum(len(item.prompt) for item in batch) for batch in self.batches)
        if together > checks.MAX_BATCH_TEXT:
            raise ConfigError(
                f"the prompts of one batch have {together:,} characters: at most {checks.MAX_BATCH_TEXT:,}; "
                "use a smaller --batch-size"
            )
        if self.negative_prompt is not None:
            checks.text(self.negative_prompt, "negative prompt")
        if self.model.kind == "embedded":
            checks.embedded_words(self.model.name, [*self.prompts, self.negative_prompt or ""])
        return self

    def _check_strength(self) -> None:
        checks.strength(self.strength)
        if self.strength is not None and self.init_image is None:
            raise ConfigError("--strength belongs to --init-image, and there is none")
        if self.strength is not None and self.table is not None:
            raise ConfigError("--strength chooses the first noise level, and a table has its own: leave one of the two "
                              "out (fewstep table --strength S --save FILE makes a table for it)")  # fmt: skip

    def _check_size_of_image(self) -> None:
        """As far as a local model's configs tell; the loaded model has the last word."""
        multiple = size_multiple(self.model)
        if self.init_image is None or multiple is None:
            return
        from ..guidance.pictures import fitting_size

        height, width = fitting_size(self.init_image.size, self.height, self.width, multiple)
        least = least_side(self.model) or multiple
        if min(height, width) < least:
            got = "x".join(map(str, self.init_image.size))
            raise ConfigError(
                f"--init-image of {got} pixels would become {width}x{height}, and {self.model.name} makes no side "
                f"below {least}: give -H {max(height, least)} -W {max(width, least)}"
            )

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), as far as the options and a local model's configs tell."""
        if self.init_image is not None:
            from ..guidance.pictures import fitting_size

            multiple = size_multiple(self.model)
            if multiple is None:
                return None
            return fitting_size(self.init_image.size, self.height, self.width, multiple)
        trained = default_size(self.model)
        if trained is None and (self.height is None or self.width is None):
            return None
        height, width = trained or (0, 0)
        return self.height or height, self.width or width

    @property
    def share(self) -> float:
        """The part of the noise schedule that is run; a table has its own levels."""
        if self.init_image is None or self.table is not None:
            return 1.0
        return DEFAULT_STRENGTH if self.strength is None else self.strength

    @property
    def branches(self) -> int:
        """Network rows that an evaluation takes for each picture, as far as is known before the model is."""
        own = None if self.guidance is None else self.guidance.scale
        scale = next((s for s in (self.guidance_scale, own, self.model.default_scale) if s is not None), None)
        return 1 if scale in (0.0, 1.0) else 2

    @property
    def total(self) -> int:
        return len(self.prompts) * self.num_images

    @cached_property
    def items(self) -> tuple[Item, ...]:
        return tuple(Item(k, self.prompts[k // self.num_images], self.seed + k) for k in range(self.total))

    @property
    def batches(self) -> tuple[tuple[Item, ...], ...]:
        """Fixed index ranges: a run that goes on after an interruption computes the same batches."""
        n = self.batch_size
        return tuple(self.items[k : k + n] for k in range(0, self.total, n))

    @cached_property
    def run(self) -> str:
        """Names the run: equal for equal settings, whatever machine or version."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _APART}
        text = json.dumps({**plain, **self.extras(), "model": self.model.identity()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def extras(self) -> dict[str, Any]:
        """The settings that few runs have, for the metadata; a run without them is called as it always was."""
        found = {
            "budget": self.nfe,
            "table": self.table and self.table.identity(),
            "init_image": self.init_image and self.init_image.identity(),
            "strength": self.share if self.init_image and not self.table else None,
            "loras": [lora.identity() for lora in self.loras] or None,
            "offload": self.offload,
            "guidance": self.guidance and self.guidance.identity(),
        }
        return {key: value for key, value in found.items() if value is not None}

    def expected(self, item: Item) -> dict[str, Any]:
        """What the metadata of a picture of this run says, as far as it is known before the model is loaded."""
        fields = {
            "run": self.run,
            "index": item.index,
            "model": self.model.identity(),
            "prompt": item.prompt,
            "negative_prompt": self.negative_prompt,
            "solver": self.solver,
            "schedule": self.schedule,
            "seed": item.seed,
            "dtype": self.dtype,
            **self.extras(),
        }
        known = {
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
        }
        return fields | {key: value for key, value in known.items() if value is not None}


# What `extras` says, and the model.
_APART = ("model", "nfe", "table", "init_image", "strength", "loras", "offload", "guidance")
