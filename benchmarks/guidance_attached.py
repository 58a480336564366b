"""The same policies in diffusers' StableDiffusionPipeline, by `attach`, and in the native loop: cost and time.

    python -m fewstep.benchmarks.guidance_attached [--pairs 20] [--batch 1] [--cache FOLDER] [--out FOLDER]

One thread. For every pair (or batch of pairs) all policies run one after the other in random order, in both loops;
a time ratio is CFG's time over the row's, of the same loop and pair, and the median of those. In the pipeline times
include encoding the prompt, not decoding the picture; both begin with the same noise.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..guidance.attach import attach
from ..models import DEFAULT_SCALE, embedded
from ..samplers import initial_noise
from ..samplers.backbones import Backbone, load_backbone
from .guidance_choose import chosen_rows
from .guidance_pairs import SIZE, STEPS, Pair, Row, solved, test_pairs
from .guidance_rows import rows_of
from .harness import machine, quantile, versions, write
from .markdown import table

NAMES = ("cfg", "ag-calibrated", "ag-0.999", "first-9", "delta-9", "linear-spread", "linear-10", "searched", "none")
FIRST_PAIR = 2000  # behind those of the accuracy


class Timed(NamedTuple):
    """One run: seconds, network rows, last latents."""

    seconds: float
    nfe: int
    x: Tensor


def native(backbone: Backbone, row: Row, pairs: Sequence[Pair]) -> Timed:
    began = time.perf_counter()
    result = solved(backbone, row, pairs)
    return Timed(time.perf_counter() - began, result.report.nfe, result.x)


def attached(backbone: Backbone, row: Row, pairs: Sequence[Pair]) -> Timed:
    """The pipeline as it is, but for what `attach` does for the length of the call."""
    pipe: Any = getattr(backbone, "pipe")  # noqa: B009
    noise = initial_noise([p.seed for p in pairs], backbone.latent_shape(SIZE, SIZE))
    scale = {"guidance_scale": DEFAULT_SCALE} if hasattr(row.policy, "scale") and row.scale is not None else {}
    counted: list[int] = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: counted.append(len(args[0])))
    try:
        with attach(pipe, solver=row.solver, guidance=row.policy):
            began = time.perf_counter()
            x = pipe(
                [p.prompt for p in pairs], num_inference_steps=row.steps, latents=noise, output_type="latent", **scale
            )
            return Timed(time.perf_counter() - began, sum(counted), x.images)
    finally:
        hook.remove()


LOOPS: dict[str, Callable[[Backbone, Row, Sequence[Pair]], Timed]] = {"native": native, "attached": attached}


def measure(backbone: Backbone, rows: Sequence[Row], count: int, batch: int) -> list[dict[str, Any]]:
    """One line per row: NFE and time ratios in both loops, and how far the pipeline's latents are from the native."""
    order = random.Random(0)
    found: dict[tuple[str, str], list[Timed]] = {(row.name, loop): [] for row in rows for loop in LOOPS}
    calls = [(row, loop) for row in rows for loop in LOOPS]
    for first in range(0, count, batch):
        pairs = test_pairs(FIRST_PAIR + first, min(batch, count - first))
        for row, loop in order.sample(calls, len(calls)):
            if not found[row.name, loop]:
                LOOPS[loop](backbone, row, pairs)  # once more for the first, which warms up
            found[row.name, loop].append(LOOPS[loop](backbone, row, pairs))
    return [line_of(row, found, count) for row in rows]


def line_of(row: Row, found: dict[tuple[str, str], list[Timed]], count: int) -> dict[str, Any]:
    line: dict[str, Any] = {"row": row.name, "label": row.label}
    for loop in LOOPS:
        mine, full = found[row.name, loop], found["cfg", loop]
        ratios = [a.seconds / b.seconds for a, b in zip(full, mine, strict=True)]
        line[loop] = {"nfe": sum(t.nfe for t in mine) / count, "ratio": [quantile(ratios, q) for q in (0.5, 0.2, 0.8)]}
    pairs = zip(found[row.name, "attached"], found[row.name, "native"], strict=True)
    line["largest_difference"] = max(float((a.x - b.x).abs().max() / b.x.abs().max()) for a, b in pairs)
    return line


def markdown(report: dict[str, Any]) -> str:
    """The page."""
    head = (
        "row",
        "NFE native",
        "NFE attached",
        "times as fast, native",
        "times as fast, attached",
        "largest difference",
    )

    def ratio(line: dict[str, Any], loop: str) -> str:
        return "{:.2f} [{:.2f}, {:.2f}]".format(*line[loop]["ratio"])

    body = [(line["label"], f"{line['native']['nfe']:.2f}", f"{line['attached']['nfe']:.2f}", ratio(line, "native"),
             ratio(line, "attached"), f"{line['largest_difference']:.1e}") for line in report["rows"]]  # fmt: skip
    found, versions_ = report["machine"], ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    lines = ["# Guidance policies in a pipeline of diffusers", "", f"`{report['command']}`", ""]
    lines += [f"{report['pairs']} pairs in batches of {report['batch']}, {STEPS} steps of 2M, guidance scale 2, one "
              "thread. NFE: rows that the network got, an image. Times as fast: CFG's time over the row's in the same "
              "loop, median [20 %, 80 %] of neighbouring runs. Largest difference: of the latents in the two loops, "
              "relative to the largest of them.", ""]  # fmt: skip
    lines += [f"Machine: {found['processor']}, {found['cores']} cores, load per core before {found['load']}. Versions: "
              f"{versions_}.", ""]  # fmt: skip
    return "\n".join([*lines, *table(head, body)]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="default: 20")
    parser.add_argument("--batch", type=int, default=1, help="pairs in one call (default: 1)")
    parser.add_argument("--rows", nargs="+", default=None, metavar="ROW", help="these alone; cfg is always there")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fewstep-guidance", help="folder")
    parser.add_argument("--out", type=Path, default=None, help="write guidance_attached.json and .md here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    before = machine()
    backbone = load_backbone(str(embedded("tiny-sd")))
    getattr(backbone, "pipe").set_progress_bar_config(disable=True)  # noqa: B009
    chosen = chosen_rows(options.cache, backbone, options.rows or NAMES)
    names = NAMES if options.rows is None else ("cfg", *(name for name in options.rows if name != "cfg"))
    rows = rows_of(chosen, [name for name in names if options.rows or name != "searched" or name in chosen])
    lines = measure(backbone, rows, options.pairs, options.batch)
    command = f"python -m fewstep.benchmarks.guidance_attached --pairs {options.pairs} --batch {options.batch}"
    report = {"schema": 1, "benchmark": "guidance_attached", "command": command, "machine": before,
              "versions": versions(), "pairs": options.pairs, "batch": options.batch, "rows": lines}  # fmt: skip
    if options.out is not None:
        write(report, options.out / "guidance_attached", markdown)
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
