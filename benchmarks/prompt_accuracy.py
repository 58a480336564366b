"""How often `fewstep.sample` paints what the prompt says: pictures of tiny-sd, read back by the judge.

    python -m fewstep.benchmarks.prompt_accuracy [--prompts 500] [--solver 2m] [--steps 10] [--output FILE.json]

Prompt k of a kind, never used in training, is sampled with seed k. diffusers' DPM-Solver++ 2M on its default grid is a
row of the same run, same prompts, same seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..guidance.sampling import sample
from ..models import DEFAULT_SCALE, embedded
from ..models.captions import prompts
from ..models.judge import judge
from ..samplers import SOLVERS
from ..samplers.backbones import Backbone, load_backbone
from .harness import machine, versions

KINDS = {"one": "one object", "two": "two objects and their relation", "heldout": "combinations never trained on"}
BATCH = 50
Sampler = Callable[[list[str], list[int], float, int], NDArray[np.float32]]


def fewstep_sampler(backbone: Backbone, solver: str, grid: str) -> Sampler:
    """(texts, seeds, scale, steps) -> (N, 64, 64, 3) in [0, 1], by our own loop."""

    def run(texts: list[str], seeds: list[int], scale: float, steps: int) -> NDArray[np.float32]:
        result = sample(
            backbone, texts, solver=SOLVERS[solver](), steps=steps, grid=grid, guidance_scale=scale, seeds=seeds
        )
        return result.images.permute(0, 2, 3, 1).numpy()

    return run


def diffusers_sampler(pipe: Any) -> Sampler:
    """The same by diffusers' pipeline with its DPMSolverMultistepScheduler."""
    import torch
    from diffusers import DPMSolverMultistepScheduler

    def run(texts: list[str], seeds: list[int], scale: float, steps: int) -> NDArray[np.float32]:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=2)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "np"}
        return pipe(texts, generator=generators, **options).images

    return run


def accepted(sampler: Sampler, kind: str, count: int, scale: float, steps: int) -> int:
    """How many of `count` pictures the judge accepts: every attribute right and nothing else in the picture."""
    texts, right = prompts(kind, count), 0
    for first in range(0, count, BATCH):
        chunk = texts[first : first + BATCH]
        images = sampler(chunk, list(range(first, first + len(chunk))), scale, steps)
        right += sum(judge(image, text).accepted for image, text in zip(images, chunk, strict=True))
    return right


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per implementation, scale and kind."""
    backbone = load_backbone(str(embedded("tiny-sd")))
    name = f"fewstep {arguments.solver}, {arguments.schedule}"
    samplers = {name: fewstep_sampler(backbone, arguments.solver, arguments.schedule)}
    samplers["diffusers DPM-Solver++ 2M"] = diffusers_sampler(getattr(backbone, "pipe"))  # noqa: B009
    rows = []
    for scale in arguments.scales:
        for label, sampler in samplers.items():
            for kind in KINDS:
                right = accepted(sampler, kind, arguments.prompts, scale, arguments.steps)
                rows.append(
                    {"implementation": label, "kind": kind, "scale": scale, "steps": arguments.steps,
                     "images": arguments.prompts, "accepted": right}
                )  # fmt: skip
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line per implementation and scale, a column per kind."""
    lines = ["| sampler | steps | guidance scale | " + " | ".join(KINDS.values()) + " |", "|---|---|---|---|---|---|"]
    for row in rows[:: len(KINDS)]:
        same = [r for r in rows if (r["implementation"], r["scale"]) == (row["implementation"], row["scale"])]
        cells = " | ".join(f"{100 * r['accepted'] / r['images']:.1f} %" for r in same)
        lines.append(f"| {row['implementation']} | {row['steps']} | {row['scale']:g} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500, help="test prompts of each kind (default: 500)")
    parser.add_argument("--scales", type=float, nargs="+", default=[DEFAULT_SCALE, 1.0], help="guidance scales")
    parser.add_argument("--steps", type=int, default=10, help="default: 10")
    parser.add_argument("--solver", choices=list(SOLVERS), default="2m", help="default: 2m")
    parser.add_argument("--schedule", default="lambda", help="default: lambda")
    parser.add_argument("--output", type=Path, default=None, help="also write JSON here")
    arguments = parser.parse_args()
    rows = measure(arguments)
    print(markdown(rows))
    if arguments.output is not None:
        given = [a for a in sys.argv[1:] if a not in ("--output", str(arguments.output))]
        command = " ".join(["python -m fewstep.benchmarks.prompt_accuracy", *given])
        data = {"command": command, "machine": machine(), "versions": versions(), "rows": rows}
        arguments.output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
