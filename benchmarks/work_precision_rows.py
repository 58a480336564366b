"""The rows of `work_precision` and their CSV file, which a run appends to and a later run resumes from."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One method within one budget.

    budget: evaluations an image and branch that were allowed.       steps, ticks: intervals and evaluations of the run.
    nfe: image rows x branches evaluated, an image (with guidance two a tick).
    error, half: mean relative latent error and half the width of its 95 % interval over images; None for methods that
    draw noise, which follow no trajectory.
    metric, score: "accuracy", share of accepted pictures, or "distance", Wasserstein-1 of the marginals, both from the
    samples alone; None where nobody looked, because another grid was better.
    seconds: of the run on this machine, 0 where an equal run was there already.       errors: of every image, if few.
    """

    problem: str
    implementation: str
    method: str
    grid: str
    budget: int
    images: int
    steps: int
    ticks: int
    nfe: int
    error: float | None
    half: float | None
    metric: str
    score: float | None
    seconds: float
    errors: tuple[float, ...] = ()


Key = tuple[str, str, str, str, int, int]
FIELDS = [field.name for field in fields(Row)]
_INTEGERS = ("budget", "images", "steps", "ticks", "nfe")
_OPTIONAL = ("error", "half", "score")


def key_of(row: Row) -> Key:
    """What makes a row the same measurement."""
    return row.problem, row.implementation, row.method, row.grid, row.budget, row.images


def append(path: Path, row: Row) -> None:
    """Add a row, with the heading where the file is new."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: _text(value) for name, value in asdict(row).items()})


def _text(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(f"{v:.3g}" for v in value)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, or none. A last line that an interrupted run left unfinished is cut off the file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    return [_row(line) for line in csv.DictReader(text.splitlines())]


def _row(line: dict[str, str]) -> Row:
    values: dict[str, object] = dict(line)
    values |= {name: int(line[name]) for name in _INTEGERS}
    values["seconds"] = float(line["seconds"])
    values["errors"] = tuple(float(v) for v in line["errors"].split())
    values |= {name: float(line[name]) if line[name] else None for name in _OPTIONAL}
    return Row(**values)  # type: ignore[arg-type]
