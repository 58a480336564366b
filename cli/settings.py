"""The settings of a run: checked, frozen, and enough to say which picture has which prompt and seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from ..errors import ConfigError
from ..names import GRID_NAMES, SOLVER_NAMES
from . import checks
from .model_ref import ModelRef, check_size


@dataclass(frozen=True)
class Item:
    """One picture: its place in the run, its prompt and its seed."""

    index: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class Settings:
    """What determines the pictures of a run. Picture k is of prompt k // num_images, with seed + k."""

    model: ModelRef
    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    solver: str = "2m"
    schedule: str = "lambda"
    steps: int = 10
    guidance_scale: float | None = None
    seed: int = 0
    num_images: int = 1
    batch_size: int = 1
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    device: str = "auto"
    metadata: bool = True

    def check(self) -> Settings:
        """Itself, or ConfigError."""
        checks.one_of("--solver", self.solver, SOLVER_NAMES)
        checks.one_of("--schedule", self.schedule, GRID_NAMES)
        checks.whole("--steps", self.steps, 1, checks.MAX_STEPS)
        checks.scale(self.guidance_scale)
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
        checks.one_of("--dtype", self.dtype, checks.DTYPES)
        checks.device(self.device)
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
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        text = json.dumps({**plain, "model": self.model.identity()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

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
            "steps": self.steps,
            "seed": item.seed,
            "dtype": self.dtype,
        }
        known = {"guidance_scale": self.guidance_scale, "height": self.height, "width": self.width}
        return fields | {key: value for key, value in known.items() if value is not None}
