"""The settings of a restoration, and of each of its pictures: checked, frozen, enough to know a picture again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ConfigError, IncompatibleError
from . import checks
from .console import printable
from .init_image import InitImage
from .model_ref import ModelRef, channels_of, is_of_pixels, size_multiple
from .operator_ref import MethodRef, OperatorRef
from .output import Target
from .plan import resolve_device
from .settings import Item

MAX_STEM = 80  # bytes of a picture's name that the name of what it became begins with
MAX_SAMPLES = 999


@dataclass(frozen=True)
class RestoreSettings:
    """What determines the restored pictures. Sample j of every picture has seed + j.

    simulate: pictures are clean, and degraded first, with noise of noise_seed and the picture.
    height, width: of the restored picture, where they were given.
    checkpoint: less memory for the same numbers.       metadata: written into the PNGs.
    """

    model: ModelRef
    operator: OperatorRef
    method: MethodRef
    noise_std: float
    prompt: str = ""
    simulate: bool = False
    noise_seed: int = 0
    samples: int = 1
    seed: int = 0
    batch_size: int = 1
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    device: str = "auto"
    checkpoint: bool = False
    metadata: bool = True

    def check(self) -> RestoreSettings:
        """Itself, or ConfigError."""
        if not 0.0 <= self.noise_std <= 10.0:  # false for NaN
            raise ConfigError("--noise-std is the standard deviation of the noise where pixels are from 0 to 1, so a "
                              f"number from 0 to 10, got {self.noise_std:g}; 0.05 is 12.75 of 255")  # fmt: skip
        checks.whole("--samples", self.samples, 1, MAX_SAMPLES)
        checks.whole("--batch-size", self.batch_size, 1, checks.MAX_BATCH)
        checks.whole("--noise-seed", self.noise_seed, 0, checks.MAX_SEED)
        if self.noise_seed and not self.simulate:
            raise ConfigError(f"--noise-seed {self.noise_seed} is of the noise that --simulate adds, and there is no "
                              "--simulate: add it if INPUT is a clean picture, or leave --noise-seed out")  # fmt: skip
        checks.whole("--seed", self.seed, 0, checks.MAX_SEED - self.samples + 1)
        for option, side in (("--height", self.height), ("--width", self.width)):
            if side is not None:
                checks.whole(option, side, 1, checks.MAX_SIDE)
        checks.one_of("--dtype", self.dtype, checks.DTYPES)
        checks.device(self.device)
        checks.text(self.prompt, "prompt")
        if is_of_pixels(self.model):
            self._check_of_pixels()
        elif self.method.method.pixels_only and size_multiple(self.model) is not None:
            raise IncompatibleError(f"--method {self.method.name} needs a model whose states are pixels, and "
                                    f"{self.model.name} has an autoencoder: take ldps or stsl")  # fmt: skip
        if self.model.kind == "embedded":
            checks.embedded_words(self.model.name, [self.prompt])
        return self

    def _check_of_pixels(self) -> None:
        """What a model without autoencoder and text cannot do. The loaded model has the last word."""
        name, method = self.model.name, self.method.method
        if self.prompt:
            raise ConfigError(f"{name} was trained without text and cannot follow a --prompt: leave it out")
        if method.guidance_scale != 1.0:
            raise ConfigError(f"{name} was trained without text, so there is nothing to guide with: leave the guidance "
                              "scale out")  # fmt: skip
        if method.needs_text:
            raise IncompatibleError(f"--method {self.method.name} tunes the prompt's embedding, and {name} was trained "
                                    "without text: take dps or pigdm")  # fmt: skip
        if (channels := channels_of(self.model)) is not None:
            check_colours(channels, name)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a picture's name depends on, beside the picture that came in and the seed."""
        found: dict[str, Any] = {
            "model": self.model.identity(),
            "operator": self.operator.identity(),
            "method": self.method.identity(),
            "noise_std": self.noise_std,
            "prompt": self.prompt,
            "dtype": self.dtype,
        }
        found["simulate"] = {"noise_seed": self.noise_seed} if self.simulate else None
        asked = {"height": self.height, "width": self.width}
        asked = {key: value for key, value in asked.items() if value is not None}
        return found | ({"asked": asked} if asked else {})


@dataclass(frozen=True)
class Job:
    """One picture to restore, `samples` times."""

    settings: RestoreSettings
    source: InitImage

    @property
    def name(self) -> str:
        """The file's name, for people."""
        return printable(Path(self.source.location).name)

    @property
    def metadata(self) -> bool:
        return self.settings.metadata

    @cached_property
    def run(self) -> str:
        """Names what is done to this picture, on which kind of device, and with more than one sample in a batch also
        where batches begin: last bits depend on it."""
        s = self.settings
        device = resolve_device(s.device).partition(":")[0]
        own: dict[str, Any] = {"command": "restore", "input": self.source.sha256, "device": device}
        if s.batch_size > 1:
            own["batches"] = [s.seed, s.batch_size]
        text = json.dumps({**s.identity, **own}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @cached_property
    def items(self) -> tuple[Item, ...]:
        s = self.settings
        return tuple(Item(j, s.prompt, s.seed + j) for j in range(s.samples))

    @property
    def batches(self) -> tuple[tuple[Item, ...], ...]:
        """Fixed ranges: a run that goes on after an interruption computes the same batches."""
        n = self.settings.batch_size
        return tuple(self.items[k : k + n] for k in range(0, len(self.items), n))

    def together(self, item: Item) -> dict[str, Any]:
        """The batch of a sample: last bits can depend on how many are computed together."""
        n, row = self.settings.batch_size, item.index % self.settings.batch_size
        size = min(n, self.settings.samples - item.index + row)
        return {"size": size, "row": row} | ({"seed": item.seed - row} if size > 1 else {})

    def expected(self, item: Item) -> dict[str, Any]:
        """What the metadata of a sample says, as far as it is known before the model is loaded."""
        return {
            "command": "restore",
            "run": self.run,
            "input": self.source.identity(),
            **self.settings.identity,
            "seed": item.seed,
        }

    @property
    def measurement_seed(self) -> int:
        """Of the simulated noise: of --noise-seed and the picture. Not --seed itself, whose noise the run may use."""
        text = f"measurement {self.settings.noise_seed} {self.source.sha256}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1

    def target(self, whole: Target) -> JobTarget:
        """Where its pictures go."""
        return JobTarget(whole.folder, whole.file, self.run, _stem(self.source.location), self.items)


@dataclass(frozen=True)
class JobTarget(Target):
    """In a folder a picture is called STEM-RUN-seedSEED.png, after the file that was restored."""

    stem: str
    items: tuple[Item, ...]

    def path(self, item: Item) -> Path:
        return self.file or self.folder / f"{self.stem}-{self.run}-seed{item.seed}.png"

    def beside(self, kind: str) -> Path:
        """Of a picture made from all samples."""
        if self.file is not None:
            return self.file.with_name(f"{self.file.stem}-{kind}.png")
        first, last = self.items[0].seed, self.items[-1].seed
        seeds = f"seed{first}" if first == last else f"seeds{first}-{last}"
        return self.folder / f"{self.stem}-{self.run}-{seeds}-{kind}.png"


def check_colours(channels: Any, name: str) -> None:
    """Of a model of pixels."""
    if channels != 3:
        raise IncompatibleError(f"{name} makes pictures of {channels} channel(s), and fewstep restore has those of 3: "
                                "use fewstep.restore in Python")  # fmt: skip


def jobs_of(settings: RestoreSettings, sources: Sequence[InitImage]) -> tuple[Job, ...]:
    """A job per picture; what has the same contents and the same name once."""
    jobs = [Job(settings, source) for source in sources]
    found = tuple({(_stem(job.source.location), job.run): job for job in jobs}.values())
    total = len(found) * settings.samples
    if total > checks.MAX_IMAGES:
        raise ConfigError(f"{len(found):,} pictures with --samples {settings.samples:,} are {total:,}: at most "
                          f"{checks.MAX_IMAGES:,} in one run")  # fmt: skip
    return found


def run_of(jobs: Sequence[Job]) -> str:
    """Names all of it together."""
    return hashlib.sha256(" ".join(job.run for job in jobs).encode()).hexdigest()[:8]


def _stem(location: str) -> str:
    """The part of a file's name that a new name may begin with, on any system."""
    plain = "".join(c if c.isprintable() and c not in '<>:"/\\|?* ' else "_" for c in Path(location).stem)
    return plain.encode("utf-8", "replace")[:MAX_STEM].decode("utf-8", "ignore").strip(".-_ ") or "picture"
