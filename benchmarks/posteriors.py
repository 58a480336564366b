"""Posterior samplers against posteriors that are known exactly: how far from them, and why.

    python -m fewstep.benchmarks.posteriors [--minutes N] [--seeds 6] [--samples 300] [--problems NAME ...]
        [--part 1/2] [--cache FOLDER] [--out FOLDER]

Every problem has a Gaussian mixture for a prior and one measurement per seed (posteriors_problems; P1 has one for all);
all samples of it are one batch through the classes that restore images, on the mixture's own network in place of a
trained one. Beside them run the posterior's own exact network through `solve` (the oracle: what the steps cost), and
exact draws (the floor: what a finite number of samples costs).

Results are kept in the cache, one file per problem, seed and row. What does not fit into the minutes is left for the
next call, and said; --minutes 0 writes the tables from what is there. Several processes may work on one cache (--part).
The cache knows a row by its name: delete it after changing how a method computes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..inverse.dps import DPSGaussian
from ..inverse.pigdm import PiGDM
from ..inverse.tmpd import TMPD
from ..samplers import DDIM
from .harness import Gate, machine, part_of, passed, versions, write
from .posteriors_ablation import PROBLEM, compared, settings
from .posteriors_affine import Unguided, aligned, propagate
from .posteriors_methods import ROWS, SAMPLES, Row, applies, measured, restored
from .posteriors_metrics import gaussian_w2, metrics
from .posteriors_problems import PROBLEMS, Posed
from .posteriors_report import estimate, markdown, summaries

NAME = "posteriors"
FLOORS = 8
NOTES = (
    "Samples of each problem and seed are compared with the exact posterior; numbers are means over the seeds with "
    "Student's 95 % interval. sw1, sw2: sliced Wasserstein distances. tv: total variation of how often each mode is "
    "visited. mean, cov: errors inside the modes, relative. variance: inside the modes, over the exact one (1 is "
    "right). chi2: mean of |y - A(x)|^2 / (m sigma_y^2) (the floor's is right). cover: how much of the posterior lies "
    "in the samples' central 90 % intervals (0.9 is right). w2: Wasserstein distance of the moments. Definitions: "
    "benchmarks/posteriors_metrics.py; problems: benchmarks/posteriors_problems.py.",
    "NFE and backward: network rows for each sample. Step sizes were not tuned on these problems. Residuals of a norm "
    "are in the problem's own units, which are not those of pixels, so a published zeta is no more than a number here.",
    "The intervals are over the seeds, which draw a measurement each, but on P1: there all have the same one, and the "
    "intervals are of the sampling alone. (of n): the number exists for n of the seeds only.",
    "P2L needs a prompt to tune and is left out. The oracle of P3 is a mixture of the grid's cells.",
)
AFFINE_NOTE = (
    "Mean and covariance of what each sampler returns, carried through its own steps exactly "
    "(benchmarks/posteriors_affine.py, d = 8, four axes measured). DPS's own limit is what DPS with the likelihood's "
    "weight converges to, in closed form; it is not the posterior."
)
ABLATION_NOTE = (
    "Every line is compared with another by the same random numbers; differences are paired over seeds, with 95 % "
    "intervals. zeta is 0.5 / K, so that K changes how often the loss is looked at and not how far its gradient goes. "
    "The published trace weight is constant; fewstep's default, variance, is eta sigma_t^2."
)


def gates() -> list[Gate]:
    """What must hold before any number."""
    return [
        Gate("the posterior is Bayes' rule", _is_bayes),
        Gate("the network is the gradient of the log density", _is_score),
        Gate("oracle within 1.5 x floor + 0.1 at 1,000 ancestral steps", _oracle_is_near),
    ]


def _is_bayes() -> str | None:
    posed = PROBLEMS["P4 linear decoder"](0)
    z, prior = posed.backbone.prior.sample(50, 1), posed.backbone.prior
    r = posed.measurement.images(50).residual(posed.backbone.to_pixels(z.reshape(50, 1, 1, -1))).flatten(1)
    expected = prior.log_density(z) - r.square().sum(1) / (2.0 * posed.measurement.sigma_y**2)
    spread = float((posed.exact.log_density(z) - expected).std())
    return None if spread < 1e-8 else f"log posterior - log prior - log likelihood varies by {spread:g}"


def _is_score() -> str | None:
    posed = PROBLEMS["P1 four modes"](0)
    level = posed.backbone.schedule.level(300)
    x = torch.linspace(-4.0, 4.0, 40, dtype=torch.float64).reshape(20, 2).requires_grad_()
    (score,) = torch.autograd.grad(posed.exact.log_density(x, level).sum(), x)
    apart = float((posed.exact.prediction(x.detach(), level).eps + float(level.sigma) * score).abs().max())
    return None if apart < 1e-10 else f"they differ by {apart:g}"


def _oracle_is_near() -> str | None:
    posed, row = PROBLEMS["P1 four modes"](0), next(row for row in ROWS if row.name == "oracle-1000")
    z, _ = measured(row, posed, SAMPLES)
    assert z is not None
    found, floor = metrics(posed, z)["sw1"], floor_of(posed, SAMPLES, 0)["sw1"]
    return None if found <= 1.5 * floor + 0.1 else f"sw1 {found:.3f}, floor {floor:.3f}"


def jobs(problems: Sequence[str], seeds: int) -> list[tuple[str, Row, int]]:
    """Seed by seed, so that little time gives few seeds of everything."""
    parts = [Row(s.name, "", restored(s.posterior), s.posterior.steps) for s in settings()]
    small = [name for name in problems if "80" not in name]
    found = []
    for seed in range(seeds):
        found += [(name, row, seed) for name in small for row in ROWS]
        found += [(PROBLEM, row, seed) for row in parts if PROBLEM in problems]
    return found + [(name, row, s) for s in range(seeds) for name in problems if name not in small for row in ROWS]


def floor_of(posed: Posed, samples: int, seed: int) -> dict[str, float]:
    """Mean metrics of FLOORS sets of exact draws."""
    each = [metrics(posed, posed.exact.sample(samples, 30_000 + FLOORS * seed + k), seed) for k in range(FLOORS)]
    return {key: sum(found[key] for found in each) / FLOORS for key in each[0]}


@lru_cache(maxsize=4)
def posed_of(name: str, seed: int) -> Posed:
    return PROBLEMS[name](seed)


def work(folder: Path, todo: Sequence[tuple[str, Row, int]], samples: int, seconds: float) -> dict[str, int]:
    """Measure what is missing; how many runs of each problem are left."""
    end, left = time.monotonic() + seconds, dict[str, int]()
    for name, row, seed in todo:
        path = _path(folder, name, row.name, seed, samples)
        if path.exists() or not applies(row, posed_of(name, seed)):
            continue
        if time.monotonic() > end:
            left[name] = left.get(name, 0) + 1
            continue
        z, cost = measured(row, posed_of(name, seed), samples)
        if row.name == "floor":
            found = floor_of(posed_of(name, seed), samples, seed)
        else:
            found = {**cost, **({} if z is None else metrics(posed_of(name, seed), z, seed))}
        _keep(path, found)
        what = f"sw1 {found['sw1']:.3f}" if "sw1" in found else found.get("diverged", "")
        print(f"{name}, seed {seed}, {row.name}: {what}", file=sys.stderr, flush=True)
    return left


def affine(folder: Path, compute: bool = True) -> list[dict[str, Any]]:
    """The section on one Gaussian: from the cache, and what is not there if `compute`."""
    found = []
    for unit in (True, False):
        of = aligned(unit=unit)
        exact = of.backbone.network(of.posterior)
        for steps in (250, 500, 1000):
            samplers = {"oracle": Unguided(steps=steps), "oracle, DDIM": Unguided(steps=steps, solver=DDIM()),
                        "PiGDM": PiGDM(steps=steps), "DPSGaussian": DPSGaussian(steps=steps)}  # fmt: skip
            samplers["TMPD"] = TMPD(steps=steps, iterations=4)
            for name, posterior in samplers.items():
                prior = "unit" if unit else "anisotropic"
                path = _path(folder, f"affine {prior}", name, steps, len(of.variances))
                if not path.exists() and compute:
                    end = propagate(posterior, of.backbone, of.measurement, exact if "oracle" in name else None)
                    _keep(path, {"prior": prior, "steps": steps, "sampler": name,
                                 "exact": gaussian_w2(end, of.exact), "dps": gaussian_w2(end, of.dps)})  # fmt: skip
                if path.exists():
                    found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def report_of(
    folder: Path, problems: Sequence[str], seeds: int, samples: int, left: dict[str, int], command: str
) -> Any:
    """Everything that is printed, from the cache."""
    found = {}
    for name, row, seed in jobs(problems, seeds):
        path = _path(folder, name, row.name, seed, samples)
        if path.exists():
            found[name, row.name, seed] = json.loads(path.read_text(encoding="utf-8"))
    parts = {(row, seed): of for (name, row, seed), of in found.items() if name == PROBLEM}
    return {
        "schema": 1, "benchmark": NAME, "title": "Posterior samplers against exact posteriors", "notes": list(NOTES),
        "command": command, "machine": machine(busy=False), "versions": versions(),
        "gates": [gate.name for gate in gates()], "samples": samples, "left": left,
        "affine_note": AFFINE_NOTE, "affine": affine(folder, compute=False),
        "rows": summaries(problems, ROWS, found, seeds), "ablation_note": ABLATION_NOTE, "ablation_problem": PROBLEM,
        "ablation": compared(parts, seeds, estimate),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: 0, or 1 where a gate failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if not passed(NAME, gates()):
        return 1
    part, parts = part_of(options.part)
    todo = jobs(options.problems, options.seeds)[part::parts]
    left = work(options.cache, todo, options.samples, 60 * options.minutes)
    if options.minutes and part == 0:
        affine(options.cache)
    command = shlex.join(["python", "-m", f"fewstep.benchmarks.{NAME}", "--seeds", str(options.seeds),
                          "--samples", str(options.samples)])  # fmt: skip
    report = report_of(options.cache, options.problems, options.seeds, options.samples, left, command)
    if options.out is not None:
        write(report, options.out / NAME, markdown)
    print(markdown(report))
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--minutes", type=float, default=240.0, help="time to measure for (default: 240)")
    found.add_argument("--seeds", type=int, default=6, help="measurements of each problem (default: 6)")
    found.add_argument("--samples", type=int, default=SAMPLES, help=f"of each measurement (default: {SAMPLES})")
    found.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS), metavar="NAME",
                       help="these alone: " + ", ".join(PROBLEMS))  # fmt: skip
    found.add_argument("--part", default="1/1", metavar="K/N", help="of N processes on one cache this is the K-th")
    found.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fewstep-posteriors", help="folder")
    found.add_argument(
        "--out", type=Path, default=None, help="write posteriors.json and posteriors.md into this folder"
    )
    found.add_argument("--threads", type=int, default=None, help="torch's threads")
    return found


def _keep(path: Path, found: dict[str, Any]) -> None:
    """Into the cache, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(f".{os.getpid()}").write_text(json.dumps(found), encoding="utf-8")
    os.replace(path.with_suffix(f".{os.getpid()}"), path)


def _path(folder: Path, problem: str, row: str, seed: int, samples: int) -> Path:
    name = re.sub(r"[^a-z0-9.-]+", "_", f"{problem} {row} {seed} {samples}".lower())
    return folder / f"{name}.json"


if __name__ == "__main__":
    sys.exit(main())
