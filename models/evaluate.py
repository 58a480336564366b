"""How often a pipeline paints what the prompt says: the share of pictures the judge accepts.

    python -m fewstep.models.evaluate --prompts 500 [--model FOLDER] [--scales 1 2.5] [--steps 10] [--json FILE]

Image k of a kind uses test prompt k (never used in training) and seed k, so every run judges the same pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import DEFAULT_SCALE, embedded
from .captions import prompts
from .judge import judge

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

KINDS = ("one", "two", "heldout")
Sampler = Callable[[list[str], list[int], float, int], NDArray[np.float32]]
"""(texts, seeds, guidance scale, steps) -> pictures (N, 64, 64, 3) in [0, 1]; ``partial(sample, pipe)`` is one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ``accepted`` of ``images`` pictures of one kind at one guidance scale."""

    kind: str
    scale: float
    steps: int
    images: int
    accepted: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Accepted part, 0 to 1."""
        return self.accepted / self.images


def sample(
    pipe: StableDiffusionPipeline, texts: list[str], seeds: list[int], scale: float, steps: int
) -> NDArray[np.float32]:
    """Pictures (N, 64, 64, 3) in [0, 1], one for each text and seed, by DPM-Solver++ (2M) in ``steps`` steps."""
    import torch
    from diffusers import DPMSolverMultistepScheduler

    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=2)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "np"}
    result: Any = pipe(texts, generator=generators, **options)
    return result.images


def accuracy(sampler: Sampler, kind: str, count: int, scale: float, steps: int = 10, batch: int = 50) -> Row:
    """Sample ``count`` test prompts of a kind, prompt k with seed k, and judge them. sampler: see `Sampler`."""
    start, accepted = time.perf_counter(), 0
    texts = prompts(kind, count)
    for first in range(0, count, batch):
        chunk = texts[first : first + batch]
        images = sampler(chunk, list(range(first, first + len(chunk))), scale, steps)
        accepted += sum(judge(image, text).accepted for image, text in zip(images, chunk, strict=True))
    return Row(kind, scale, steps, count, accepted, time.perf_counter() - start)


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| prompts | scale | steps | images | all attributes right | s |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r.kind} | {r.scale:g} | {r.steps} | {r.images} | {100 * r.accuracy:.1f} % | {r.seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="a diffusers folder (default: tiny-sd)")
    parser.add_argument("--prompts", type=int, default=500, help="test prompts of each kind (default: 500)")
    parser.add_argument("--scales", type=float, nargs="+", default=[DEFAULT_SCALE, 1.0], help="guidance scales")
    parser.add_argument("--steps", type=int, default=10, help="steps of the sampler (default: 10)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, default=None, help="also write the rows to this file")
    args = parser.parse_args()
    from diffusers import StableDiffusionPipeline

    folder = args.model or embedded("tiny-sd")
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe = pipe.to(args.device)
    pipe.set_progress_bar_config(disable=True)
    rows = [
        accuracy(partial(sample, pipe), kind, args.prompts, scale, args.steps)
        for scale in args.scales
        for kind in KINDS
    ]
    print(markdown(rows))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
