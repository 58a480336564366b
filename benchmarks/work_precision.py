"""Error and prompt accuracy over network evaluations: every solver on every grid, beside diffusers' best.

    python -m fewstep.benchmarks.work_precision [--problem mixture|mixture-flow|tiny-sd|tiny-sd-cfg2|tiny-sd-cfg5|all]
        [--minutes 25] [--solvers 2m unipc-3 ...] [--grids lambda ...] [--nfe 5 8 10] [--images N] [--out DIR]

Everybody starts from the same noise, calls the same network in the same process and ends at sigma = 0. The error of an
image is |x - x_ref| / |x_ref| in latent space, against a converged run. A budget is a number of evaluations an image
and branch; a method takes as many steps as fit. Rows are appended to DIR/work_precision.csv as they are measured, and
rows that are there are not measured again; what does not fit into the minutes is left for the next call and said so.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..samplers import SOLVERS
from .harness import machine, versions
from .work_precision_adaptive import adaptive_rows
from .work_precision_methods import Method, grids_of, ours
from .work_precision_peers import gate, peers
from .work_precision_problems import IMAGES, PROBLEMS, Problem
from .work_precision_report import best, markdown, rankings, worth
from .work_precision_rows import Row, append, key_of, read_rows

BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30)
FIRST = (10, 8, 12, 6)  # measured first: a default is chosen by them
RACE = {"tiny-sd": 1.5, "tiny-sd-cfg2": 1.5, "tiny-sd-cfg5": 1.5}  # see `in_race`
NAME = "work_precision"
KEPT_LINES = 40  # of a ranking, in the JSON
KEPT = 64  # errors of single images are kept up to so many of them, for intervals of ratios


def measure(problem: Problem, method: Method, budget: int, reference: Tensor, record: float) -> Row | None:
    """One row; None where the method has no run within the budget.

    Judging pictures costs as much as making them, so only those that may get into a table are: of methods that draw
    noise all, of the others those whose error is below `record`, the smallest yet of this method and budget.
    """
    began = time.perf_counter()
    found = method.run(problem, budget)
    seconds = time.perf_counter() - began
    if found is None:
        return None
    errors = () if method.noisy else relative_errors(found.x, reference)
    error, half = mean_and_half(errors)
    score = problem.score(found.x) if error is None or error < record else None
    return Row(
        problem.name, method.implementation, method.name, method.grid, budget, problem.images, found.steps, found.ticks,
        found.nfe, error, half, problem.metric, score, round(seconds, 3),
        errors if len(errors) <= KEPT else (),
    )  # fmt: skip


def relative_errors(x: Tensor, reference: Tensor) -> tuple[float, ...]:
    """|x - ref| / |ref| of every image."""
    a, b = x.double().flatten(1), reference.flatten(1)
    return tuple(((a - b).norm(dim=1) / b.norm(dim=1)).tolist())


def mean_and_half(errors: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean and half the width of its 95 % interval (normal approximation); None for no errors."""
    if not errors:
        return None, None
    values = torch.tensor(errors, dtype=torch.float64)
    return float(values.mean()), 1.96 * float(values.std()) / len(errors) ** 0.5 if len(errors) > 1 else None


def mean_error(x: Tensor, reference: Tensor) -> float:
    return sum(errors := relative_errors(x, reference)) / len(errors)


def work(problem: Problem, options: argparse.Namespace) -> Iterator[tuple[Method, int]]:
    """What is to be measured: the budgets that decide first, ours and the peers' in turns."""
    methods = ours(problem.schedule, options.solvers or SOLVERS)
    known = grids_of(problem.schedule)
    wanted = [name for name in options.grids or known if name in known]
    methods = [method for method in methods if method.grid in wanted]
    others = [peer for peer in peers(problem) if options.peers is None or peer.name in options.peers]
    methods = [*others, *methods]
    for budget in [b for b in FIRST if b in options.nfe] + [b for b in options.nfe if b not in FIRST]:
        yield from ((method, budget) for method in methods)


@torch.no_grad()
def run(problem: Problem, options: argparse.Namespace, path: Path, deadline: float) -> dict[str, Any]:
    """Measure what is missing and fits; returns the facts of the problem: reference, what was left out."""
    found = gate(problem)
    if found is not None:
        raise ConfigError(f"{problem.name}: no numbers, because the gate failed: {found}")
    rows = [row for row in read_rows(path) if (row.problem, row.images) == (problem.name, problem.images)]
    done, records = {key_of(row) for row in rows}, {key: worth(row) for key, row in best(rows).items()}
    tasks = list(work(problem, options))
    missing = [(m, b) for m, b in tasks if (problem.name, *label(m), b, problem.images) not in done]
    facts: dict[str, Any] = {"name": problem.name, "title": problem.title, "images": problem.images, "failed": []}
    facts["command"], facts["race"] = command(problem, options), RACE.get(problem.name)
    facts["reference"] = reference_facts(problem, options.cache)
    reference, left = load_reference(problem, options.cache), 0
    for method, budget in missing:
        if not in_race(rows, method, budget, RACE.get(problem.name, math.inf)):
            continue
        if time.perf_counter() > deadline:
            left += 1
            continue
        try:
            case = (method.implementation, method.name, budget)
            row = measure(problem, method, budget, reference, records.get(case, math.inf))
        except Exception as error:  # one method that does not work must not cost the others their rows; it is named
            facts["failed"].append(f"{' '.join(label(method))}, {budget} evaluations: {type(error).__name__}: {error}")
            continue
        if row is not None:
            append(path, row)
            rows.append(row)
            records[case] = min(records.get(case, math.inf), worth(row))
    facts["left_out"] = left
    if options.adaptive:
        facts["adaptive"] = adaptive_rows(problem, reference, mean_error)
    print(f"{problem.name}: {len(rows)} rows, {left} left out", file=sys.stderr)
    return facts


def in_race(rows: Sequence[Row], method: Method, budget: int, factor: float) -> bool:
    """Whether this grid is still in question for this method.

    It is not if its error with 10 evaluations is more than `factor` times that of the method's best grid there: a
    network costs too much to run what cannot be in a table.
    """
    first = [
        r for r in rows if (r.implementation, r.method, r.budget) == (method.implementation, method.name, FIRST[0])
    ]
    mine = [worth(r) for r in first if r.grid == method.grid]
    if budget == FIRST[0] or method.noisy or not mine:
        return True
    return mine[0] <= factor * min(map(worth, first))


def label(method: Method) -> tuple[str, str, str]:
    return method.implementation, method.name, method.grid


# --- the reference --------------------------------------------------------------------------------------------------


def load_reference(problem: Problem, cache: Path) -> Tensor:
    """The images at sigma = 0 of a converged run, float64, kept in `cache`."""
    return _kept(problem, cache, problem.steps)


def reference_facts(problem: Problem, cache: Path) -> dict[str, Any]:
    """steps, and how far the run of half as many steps is from it: its own convergence."""
    full, half = (_kept(problem, cache, n) for n in (problem.steps, problem.steps // 2))
    return {
        "steps": problem.steps,
        "half_steps_error": mean_error(half, full),
        problem.metric: problem.score(full),
    }


def _kept(problem: Problem, cache: Path, steps: int) -> Tensor:
    import numpy as np

    file = cache / f"{problem.name}-{problem.images}-{steps}.npy"
    if not file.is_file():
        x = problem.integrate(steps).double()
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, x.numpy())
    return torch.from_numpy(np.load(file, allow_pickle=False))


# --- command line ---------------------------------------------------------------------------------------------------


def write(out: Path, facts: Sequence[dict[str, Any]]) -> str:
    """JSON and Markdown beside the CSV; returns the Markdown.

    The facts of problems that an earlier call measured are taken from the JSON that is there.
    """
    path = out / f"{NAME}.json"
    old = json.loads(path.read_text(encoding="utf-8"))["problems"] if path.is_file() else []
    kept = {fact["name"]: {"adaptive": fact["adaptive"]} for fact in old if "adaptive" in fact}
    of = {fact["name"]: kept.get(fact["name"], {}) | fact for fact in [*old, *facts]}
    rows = [r for r in read_rows(out / f"{NAME}.csv") if r.problem in of and r.images == of[r.problem]["images"]]
    report = {
        "schema": 1,
        "benchmark": NAME,
        "machine": machine(),
        "versions": versions(),
        "gates": ["DPMpp2M on the levels of diffusers' DPMSolverMultistepScheduler gives its images to 1e-5"],
        "problems": [of[name] for name in PROBLEMS if name in of],
    }
    ranked = rankings(rows)
    text = markdown(report, rows, ranked)
    (out / f"{NAME}.md").write_text(text, encoding="utf-8")
    heads = {problem: lines[:KEPT_LINES] for problem, lines in ranked.items()}
    path.write_text(json.dumps({**report, "rankings": heads}, indent=1) + "\n", encoding="utf-8")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where a gate failed; 2 for a solver that does not exist."""
    options = parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    unknown = [name for name in options.solvers or () if name not in SOLVERS]
    if unknown:
        print(f"unknown solver {unknown[0]!r}: expected some of {', '.join(SOLVERS)}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    names = list(PROBLEMS) if options.problem == "all" else [options.problem]
    began, facts = time.perf_counter(), []
    for k, name in enumerate(names):  # every problem gets an equal share of what is left
        share = (60.0 * options.minutes - (time.perf_counter() - began)) / (len(names) - k)
        deadline = time.perf_counter() + share
        try:
            problem = PROBLEMS[name](options.images or IMAGES[name])
            facts.append(run(problem, options, options.out / f"{NAME}.csv", deadline))
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 1
    print(write(options.out, facts))
    if options.plot:
        from .work_precision_plot import plot

        plot(read_rows(options.out / f"{NAME}.csv"), options.plot)
    return 0


def command(problem: Problem, options: argparse.Namespace) -> str:
    """What to type to repeat it."""
    words = ["python -m fewstep.benchmarks.work_precision --problem", problem.name, "--images", str(problem.images)]
    for name in ("grids", "solvers", "peers"):
        chosen = getattr(options, name)
        words += [f"--{name}", *(shlex.quote(word) for word in chosen)] if chosen is not None else []
    words += ["--nfe", *map(str, options.nfe)] if tuple(options.nfe) != BUDGETS else []
    return " ".join(words)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=[*PROBLEMS, "all"], default="all", help="default: all")
    parser.add_argument("--minutes", type=float, default=25.0, help="time for new rows; 0 writes the tables alone")
    parser.add_argument("--solvers", nargs="+", metavar="NAME", help="of samplers.SOLVERS (default: all)")
    parser.add_argument("--grids", nargs="+", metavar="NAME", help="our grids (default: all)")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="diffusers' methods (default: all; none: no names)")
    parser.add_argument("--adaptive", action="store_true", help="also the adaptive solvers, over tolerances")
    parser.add_argument("--nfe", type=int, nargs="+", default=list(BUDGETS), metavar="N", help="evaluations a branch")
    parser.add_argument("--images", type=int, help="default: 256 latents, or 32 prompts")
    parser.add_argument("--threads", type=int, help="torch's number of CPU threads (default: torch's own choice)")
    parser.add_argument("--out", type=Path, default=Path("outputs/work_precision"), help="where results are and go")
    parser.add_argument("--cache", type=Path, default=Path("outputs/work_precision/cache"), help="where references are")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw all rows")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
