"""Guidance policies on tiny-sd: evaluations saved, prompt accuracy and distance to full guidance, pair by pair.

    python -m fewstep.benchmarks.guidance [--minutes N] [--pairs 2000] [--rows cfg ag ...] [--part 1/2]
        [--cache FOLDER] [--out FOLDER]

20 steps of DPM-Solver++ 2M, guidance scale 2. Pair k is test prompt k (one object, two, combinations never trained on,
in turn) with the noise of seed k, for every policy. Thresholds, plans and coefficients come from captions of the
training set (`guidance_choose`). A prompt counts as right if the judge finds everything it says in the picture; the
latent error of a pair is |x - x_ref| / |x_ref|, x_ref from full guidance.

Results are kept in the cache in chunks of 50 pairs: what does not fit into the minutes is left for the next call, and
said; --minutes 0 writes the tables and plots from what is there. Several processes may work on one cache (--part). The
cache knows a policy by the options that were given; delete it after changing how a policy or the network computes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..guidance.adaptive import AdaptiveGuidance
from ..guidance.sampling import sample
from ..models import DEFAULT_SCALE, embedded
from ..samplers import SOLVERS
from ..samplers.backbones import Backbone, load_backbone
from .guidance_choose import chosen_rows
from .guidance_pairs import STEPS, Row, chunks_of, collected, run_chunk, solved, test_pairs
from .guidance_report import markdown, summaries, verdicts
from .guidance_rows import BLOCKS, CHOSEN, rows_of
from .harness import Gate, machine, part_of, passed, versions, write

NAME = "guidance"
GATED = 2  # pairs that the gates run
NOTES = (
    "Every row runs the same pairs of a prompt and a seed; differences are of pairs. NFE: network rows an image, CFG "
    "2 a step. Saved: of the NFE of the block's CFG. Difference: of accuracy, in points of a hundred, with its 95 % "
    "interval (Tango's score interval of matched proportions, benchmarks/guidance_statistics.py); "
    "lost: pairs that CFG alone got right, gained: those that the row alone did. Latent error: mean of "
    "|x - x_ref| / |x_ref| with its 95 % interval, x_ref the picture of CFG in 20 steps.",
    "Near to the CFG picture is not the same as good: a policy is judged by its accuracy first.",
)


def gates(backbone: Backbone) -> list[Gate]:
    """What must hold before any number."""
    return [
        Gate("a threshold of 2 is CFG, bit by bit", lambda: _is_cfg(backbone)),
        Gate("the network's own count of rows is the report's, CFG 40 and AG 20 + K", lambda: _counts(backbone)),
        Gate("the runs are those of fewstep.sample", lambda: _is_sample(backbone)),
    ]


def _is_cfg(backbone: Backbone) -> str | None:
    cfg, pairs = rows_of({}, ["cfg"])[0], test_pairs(0, GATED)
    x = solved(backbone, cfg, pairs).x
    other = solved(backbone, replace(cfg, policy=AdaptiveGuidance(2.0)), pairs).x
    return None if torch.equal(x, other) else f"they differ by {float((x - other).abs().max()):g}"


def _counts(backbone: Backbone) -> str | None:
    counted: list[int] = []
    hook = getattr(backbone, "pipe").unet.register_forward_pre_hook(  # noqa: B009
        lambda module, args, kwargs: counted.append(len(args[0] if args else kwargs["sample"])), with_kwargs=True
    )
    try:
        for row in rows_of({}, ["cfg", "ag-0.999"]):
            counted.clear()
            report = solved(backbone, row, test_pairs(0, GATED)).report
            steps = [20 if tick is None else tick for tick in report.switched]
            expected = sum(STEPS + k for k in steps)
            if not sum(counted) == report.nfe == expected:
                return f"{row.label}: the network saw {sum(counted)} rows, reported {report.nfe}, expected {expected}"
    finally:
        hook.remove()
    return None


def _is_sample(backbone: Backbone) -> str | None:
    cfg, pairs = rows_of({}, ["cfg"])[0], test_pairs(0, GATED)
    ours = backbone.decode(solved(backbone, cfg, pairs).x)
    prompts, seeds = [p.prompt for p in pairs], [p.seed for p in pairs]
    theirs = sample(backbone, prompts, solver=SOLVERS["2m"](), steps=STEPS, guidance_scale=DEFAULT_SCALE, seeds=seeds)
    return None if torch.equal(ours, theirs.images) else "their pictures differ"


def work(folder: Path, backbone: Backbone, rows: Sequence[Row], seconds: float, part: int, parts: int) -> list[str]:
    """Measure what is missing, row after row; the rows that are left."""
    end, left = time.monotonic() + seconds, []
    for row in rows:
        began, done = time.monotonic(), 0
        for chunk in chunks_of(row)[part::parts]:
            if time.monotonic() > end:
                left.append(row.name)
                break
            done += run_chunk(folder, backbone, row, chunk)
        if done:
            print(f"{row.name}: {done} chunks in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return left


def report_of(rows: Sequence[Row], folder: Path, backbone: Backbone, command: str) -> dict[str, Any]:
    """Everything that is printed, from the cache."""
    found = {row.name: measured for row in rows if (measured := collected(folder, row)) is not None}
    lines = summaries(rows, found)
    by_name = {line["row"]: line for line in lines}
    shown = [[by_name[name] for name in block.names if name in by_name] for block in BLOCKS]
    blocks = [{"title": block.title, "notes": list(block.notes), "rows": of}
              for block, of in zip(BLOCKS, shown, strict=True)]  # fmt: skip
    return {
        "schema": 1, "benchmark": NAME, "title": "Guidance policies on tiny-sd: what is saved, and what it costs",
        "notes": list(NOTES), "command": command, "machine": machine(busy=False), "versions": versions(),
        "gates": [gate.name for gate in gates(backbone)], "goals": verdicts(lines, CHOSEN),
        "blocks": [block for block in blocks if block["rows"]],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: 0, or 1 where a gate failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    backbone = load_backbone(str(embedded("tiny-sd")))
    if not passed(NAME, gates(backbone)):
        return 1
    chosen = chosen_rows(options.cache, backbone, options.rows)
    rows = [replace(row, pairs=min(row.pairs, options.pairs)) for row in rows_of(chosen, options.rows)]
    part, parts = part_of(options.part)
    left = work(options.cache, backbone, rows, 60 * options.minutes, part, parts)
    if left:
        print(f"left for the next call: {', '.join(left)}", file=sys.stderr)
    command = shlex.join(["python", "-m", f"fewstep.benchmarks.{NAME}", "--pairs", str(options.pairs)])
    report = report_of(rows, options.cache, backbone, command)
    if options.out is not None:
        write(report, options.out / NAME, markdown)
    print(markdown(report))
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--minutes", type=float, default=240.0, help="time to measure for (default: 240)")
    found.add_argument("--pairs", type=int, default=2000, help="at most so many pairs a row (default: 2000)")
    found.add_argument("--rows", nargs="+", default=None, metavar="ROW", help="these alone, in this order")
    found.add_argument("--part", default="1/1", metavar="K/N", help="of N processes on one cache this is the K-th")
    found.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fewstep-guidance", help="folder")
    found.add_argument("--out", type=Path, default=None, help="write guidance.json and guidance.md into this folder")
    found.add_argument("--threads", type=int, default=None, help="torch's threads")
    return found


if __name__ == "__main__":
    sys.exit(main())
