"""The prompt-seed pairs of `guidance`, and how one row runs on them: chunk by chunk, every chunk kept in a file.

A chunk that is in the cache is not run again, so a benchmark that was stopped goes on, and several processes may share
the work. A file's folder is named after everything that decides its numbers (`Row.folder`): a changed policy, solver or
scale has another folder, and old numbers are never read for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..guidance.layout import table_of
from ..guidance.scale import with_scale
from ..models import DEFAULT_SCALE
from ..models.captions import prompts
from ..models.evaluate import KINDS
from ..models.judge import judge
from ..models.scenes import sample_scene
from ..samplers import SOLVERS, Policy, Result, Table, initial_noise, solve
from ..samplers.backbones import Backbone
from ..samplers.defaults import default_grid

CHUNK = 50  # pairs in one batch
SIZE = 64  # pixels a side
STEPS = 20


class Pair(NamedTuple):
    """A prompt and the seed of its noise."""

    kind: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Row:
    """One way to sample. name: of its folder, too.       family: points of one family are a line in the plot.

    pairs: how many are wanted.       reference: the row that accuracy and latents are compared with.
    label: what the tables say.       calibration: the pairs are of `calibration_pairs`.
    """

    name: str
    label: str
    family: str
    policy: Policy
    steps: int = STEPS
    solver: str = "2m"
    scale: float | None = DEFAULT_SCALE
    pairs: int = 2000
    reference: str = "cfg"
    calibration: bool = False

    @property
    def folder(self) -> str:
        """The row's name and a digest of all that its numbers depend on."""
        what = repr((described(self.policy), self.steps, self.solver, self.scale, self.calibration, CHUNK))
        return f"{self.name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def described(policy: Policy) -> str:
    """What a reader would type: the fields that are not at their defaults."""
    given = [f for f in fields(policy) if f.init and getattr(policy, f.name) != f.default]  # type: ignore[arg-type]
    return f"{type(policy).__name__}({', '.join(f'{f.name}={getattr(policy, f.name)!r}' for f in given)})"


class Measured(NamedTuple):
    """Per pair: whether the judge accepts the picture, network rows, and the last latents (N, D)."""

    accepted: NDArray[np.bool_]
    nfe: NDArray[np.int64]
    latents: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def test_pairs(first: int, count: int) -> list[Pair]:
    """Pairs first, first + 1, ...: the kinds in turn, prompts that no training step saw; pair k has seed k."""
    texts = {kind: prompts(kind, (first + count) // len(KINDS) + 1) for kind in KINDS}
    numbers = range(first, first + count)
    return [Pair(KINDS[k % len(KINDS)], texts[KINDS[k % len(KINDS)]][k // len(KINDS)], k) for k in numbers]


FIRST_CALIBRATION_SEED = 1_000_000


def calibration_pairs(first: int, count: int) -> list[Pair]:
    """Pairs of captions as in training, with seeds that no test pair has, to choose thresholds and coefficients on."""
    captions = calibration_captions(first + count)[first:]
    return [Pair("train", text, FIRST_CALIBRATION_SEED + first + k) for k, text in enumerate(captions)]


def calibration_captions(count: int) -> list[str]:
    """The first `count` distinct captions of random training scenes; always the same."""
    rng = np.random.default_rng(20)
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(sample_scene(rng, "train").caption())
    return list(found)


@cache
def table_for(backbone: Backbone, solver: str, steps: int) -> Table:
    """The solver's default grid."""
    rule = SOLVERS[solver]()
    return table_of(backbone.schedule, rule, grid=default_grid(rule, backbone.parametrisation), steps=steps)


def solved(backbone: Backbone, row: Row, pairs: Sequence[Pair], **options: Any) -> Result:
    """The row's run on these pairs, as one batch; as `fewstep.sample` does it (the benchmark's gate compares)."""
    noise = initial_noise([p.seed for p in pairs], backbone.latent_shape(SIZE, SIZE)).to(backbone.device)
    network = backbone.encode([p.prompt for p in pairs], None, height=SIZE, width=SIZE)
    policy = with_scale(row.policy, row.scale)
    return solve(table_for(backbone, row.solver, row.steps), network, noise, guidance=policy, **options)


def measured(backbone: Backbone, row: Row, pairs: Sequence[Pair]) -> Measured:
    """The row on these pairs, decoded and judged."""
    result = solved(backbone, row, pairs)
    images = backbone.decode(result.x).permute(0, 2, 3, 1).numpy()
    accepted = [judge(image, pair.prompt).accepted for image, pair in zip(images, pairs, strict=True)]
    nfe = np.array(result.report.nfe_per_image, dtype=np.int64)
    return Measured(np.array(accepted, dtype=np.bool_), nfe, result.x.flatten(1).float().numpy())


def pairs_of(row: Row, chunk: int) -> list[Pair]:
    count = min(CHUNK, row.pairs - chunk * CHUNK)
    return (calibration_pairs if row.calibration else test_pairs)(chunk * CHUNK, count)


def chunks_of(row: Row) -> range:
    return range(-(-row.pairs // CHUNK))


def path_of(folder: Path, row: Row, chunk: int) -> Path:
    return folder / row.folder / f"{chunk:04d}.npz"


def run_chunk(folder: Path, backbone: Backbone, row: Row, chunk: int) -> bool:
    """Measure and keep one chunk; False where the cache has it."""
    path, pairs = path_of(folder, row, chunk), pairs_of(row, chunk)
    kept = read(path)
    if kept is not None and len(kept.nfe) >= len(pairs):
        return False
    found = measured(backbone, row, pairs)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, accepted=found.accepted, nfe=found.nfe, latents=found.latents)
    os.replace(unfinished, path)
    return True


def read(path: Path) -> Measured | None:
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        return Measured(data["accepted"], data["nfe"], data["latents"])


def collected(folder: Path, row: Row) -> Measured | None:
    """What the cache has of a row: its first chunks up to the first that is missing; None without any."""
    parts = []
    for chunk in chunks_of(row):
        part, wanted = read(path_of(folder, row, chunk)), min(CHUNK, row.pairs - chunk * CHUNK)
        if part is None or len(part.nfe) < wanted:
            break
        parts.append(Measured(part.accepted[:wanted], part.nfe[:wanted], part.latents[:wanted]))
    return Measured.joined(parts) if parts else None
