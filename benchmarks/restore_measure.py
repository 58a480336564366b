"""How one row of `restore` runs: chunk by chunk, every chunk kept in a file, so that a stopped benchmark goes on."""

from __future__ import annotations

import ast
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import NumericsError
from ..inverse.measurement import Measurement
from ..inverse.metrics import psnr, ssim
from ..inverse.posterior import Posterior
from ..inverse.report import Ledger
from ..models import embedded
from ..models.judge import judge
from ..samplers.backbones import Backbone, load_backbone
from .restore_problems import TASKS, Split, measurement, scenes, seeds, truth
from .restore_rows import CHUNK, Row

PARTS = tuple(asdict(Ledger()))
_SHARED = ("measurement", "likelihood", "problem", "posterior", "pixels")


class Measured(NamedTuple):
    """Per picture: psnr (dB), ssim, accepted by the judge, chi2, x (N, 3, 64, 64) float32; NaN where a run diverged.

    cost (N, parts of PARTS): rows through each part for the picture.       seconds, cpu (N): its share of the run, wall
    clock and processor time.       failed: what a run that diverged said; "" for the others.       code: see `code_of`.
    """

    psnr: NDArray[Any]
    ssim: NDArray[Any]
    accepted: NDArray[Any]
    chi2: NDArray[Any]
    x: NDArray[Any]
    cost: NDArray[Any]
    seconds: NDArray[Any]
    cpu: NDArray[Any]
    failed: NDArray[Any]
    code: NDArray[Any]

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def model() -> Backbone:
    """tiny-sd with its convolutions' weights in the order of memory that is faster on CPUs (10 to 15 %)."""
    backbone = load_backbone(str(embedded("tiny-sd")))
    for name in ("unet", "vae"):
        getattr(backbone.pipe, name).to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    return backbone


def judged(x: Tensor, split: Split, first: int, y: Measurement) -> dict[str, NDArray[Any]]:
    """The four metrics of pictures of scenes first, first + 1, ..."""
    true = truth(split, first, len(x))
    captions = [scene.full_caption() for scene in scenes(split)[first : first + len(x)]]
    images = x.permute(0, 2, 3, 1).numpy()
    accepted = [judge(image, caption).accepted for image, caption in zip(images, captions, strict=True)]
    return {"psnr": psnr(x, true).numpy(), "ssim": ssim(x, true).numpy(), "accepted": np.array(accepted, np.bool_),
            "chi2": y.chi2(x).numpy()}  # fmt: skip


def measured(backbone: Backbone, row: Row, first: int, count: int) -> Measured:
    """The row on scenes first, first + 1, ..., as one batch."""
    y, run_seeds = measurement(TASKS[row.task], row.split, first, count), seeds(row.split, first, count)
    wall, cpu, failed = time.perf_counter(), time.process_time(), ""
    try:
        x, report = row.method(backbone, y, seeds=run_seeds)
        cost = [report.ledger.per_image(count)[part] for part in PARTS]
        metrics = judged(x, row.split, first, y)
    except NumericsError as error:
        failed, x, cost = str(error), torch.full((count, 3, 64, 64), torch.nan), [np.nan] * len(PARTS)
        nothing = np.full(count, np.nan)
        metrics = {"psnr": nothing, "ssim": nothing, "accepted": np.zeros(count, np.bool_), "chi2": nothing}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    each = {"seconds": wall / count, "cpu": cpu / count, "failed": failed, "code": code_of(row.method)}
    columns = {name: np.array([value] * count) for name, value in each.items()}
    return Measured(**metrics, x=x.float().numpy(), cost=np.tile(cost, (count, 1)), **columns)


def code_of(method: Posterior) -> str:
    """A digest of the code that a method's numbers come from, its own and what all share, without comments and without
    the defaults of fields: a row has a value for each."""
    return _digest((type(method).__module__.rsplit(".", 1)[-1], *_SHARED))


@cache
def _digest(modules: tuple[str, ...]) -> str:
    folder = Path(__file__).parent.parent / "inverse"
    found = hashlib.sha256()
    for module in modules:
        tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign):
                        field.value = None
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        found.update(ast.dump(tree).encode())
    return found.hexdigest()[:12]


def extent(row: Row, chunk: int) -> tuple[int, int]:
    """(first picture, how many)."""
    return chunk * CHUNK, min(CHUNK, row.pictures - chunk * CHUNK)


def path_of(folder: Path, row: Row, chunk: int) -> Path:
    return folder / row.folder / f"{chunk:02d}.npz"


def run_chunk(folder: Path, backbone: Backbone, row: Row, chunk: int) -> Measured:
    """Measure and keep one chunk."""
    path = path_of(folder, row, chunk)
    found = measured(backbone, row, *extent(row, chunk))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, **found._asdict())
    os.replace(unfinished, path)
    return found


def kept(folder: Path, row: Row, chunk: int) -> Measured | None:
    """What the cache has of it: None unless all its pictures are there."""
    path, count = path_of(folder, row, chunk), extent(row, chunk)[1]
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        found = Measured(**{name: data[name] for name in Measured._fields})
    if len(found.psnr) < count:
        return None
    return Measured(*(column[:count] for column in found))


def collected(folder: Path, row: Row) -> Measured | None:
    """A row's first chunks up to the first that is missing; None without any."""
    parts = []
    for chunk in row.chunks:
        part = kept(folder, row, chunk)
        if part is None:
            break
        parts.append(part)
    return Measured.joined(parts) if parts else None
