"""How often `fewstep.sample` paints what the prompt says: pictures of tiny-sd, read back by the judge.

    python -m fewstep.benchmarks.prompt_accuracy [--prompts 500] [--solver dpm-2m] [--steps 10] [--output FILE.json]

Prompt k of a kind, never used in training, is sampled with seed k. diffusers' DPM-Solver++ 2M on its default grid is a
row of the same run, same prompts, same seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..guidance.sampling import sample
from ..models import DEFAULT_SCALE, embedded
from ..models.evaluate import KINDS, Sampler, accuracy
from ..models.evaluate import sample as diffusers_sample
from ..names import DEFAULT_GRID, DEFAULT_SOLVER
from ..samplers import SOLVERS
from ..samplers.backbones import Backbone, load_backbone
from .harness import machine, versions

HEADS = {"one": "one object", "two": "two objects and their relation", "heldout": "combinations never trained on"}


def fewstep_sampler(backbone: Backbone, solver: str, grid: str) -> Sampler:
    """(texts, seeds, scale, steps) -> (N, 64, 64, 3) in [0, 1], by our own loop."""

    def run(texts: list[str], seeds: list[int], scale: float, steps: int) -> NDArray[np.float32]:
        result = sample(
            backbone, texts, solver=SOLVERS[solver](), steps=steps, grid=grid, guidance_scale=scale, seeds=seeds
        )
        return result.images.permute(0, 2, 3, 1).numpy()

    return run


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per implementation, scale and kind."""
    backbone = load_backbone(str(embedded("tiny-sd")))
    name = f"fewstep {arguments.solver}, {arguments.schedule}"
    samplers: dict[str, Sampler] = {name: fewstep_sampler(backbone, arguments.solver, arguments.schedule)}
    samplers["diffusers DPM-Solver++ 2M"] = partial(diffusers_sample, getattr(backbone, "pipe"))  # noqa: B009
    rows = []
    for scale in arguments.scales:
        for label, sampler in samplers.items():
            for kind in KINDS:
                row = asdict(accuracy(sampler, kind, arguments.prompts, scale, arguments.steps))
                rows.append({"implementation": label, **row})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line per implementation and scale, a column per kind."""
    lines = ["| sampler | steps | guidance scale | " + " | ".join(HEADS.values()) + " |", "|---|---|---|---|---|---|"]
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
    parser.add_argument("--solver", choices=list(SOLVERS), default=DEFAULT_SOLVER, help=f"default: {DEFAULT_SOLVER}")
    parser.add_argument("--schedule", default=DEFAULT_GRID, help=f"default: {DEFAULT_GRID}")
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
