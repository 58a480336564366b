"""The contact sheets of docs/restore.md: a line per scene, the first ones, unchosen; a column per method and budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..inverse.measurement import Measurement
from ..samplers.backbones import Backbone
from .guidance_plot import INK, font
from .restore_measure import collected, judged
from .restore_problems import COUNTS, TASKS, Task, measurement, truth
from .restore_rows import MAIN, Settings, every_row

COUNT = 8  # scenes
ZOOM, GAP, TOP, BELOW = 1.5, 6, 30, 18
SHOWN = ("stsl-1x", "ldps-1x", "psld-1x", "p2l-1x", "ldps-4x", "psld-4x", "psld-4x-divided", "p2l-8x")


class Column(NamedTuple):
    """title: above.       images: (N, H, W, 3) in [0, 1], N <= COUNT.       words: below each."""

    title: str
    images: NDArray[np.float32]
    words: Sequence[str]


def sheets(folder: Path, backbone: Backbone, settings: Settings, out: Path) -> list[Path]:
    """restore_TASK.png for every task of which the cache has something."""
    written = []
    for task in TASKS.values():
        columns = [*first_columns(backbone, task), *method_columns(folder, settings, task)]
        if len(columns) > 3:
            path = out / f"restore_{task.name}.png"
            sheet(columns, path)
            written.append(path)
    return written


def first_columns(backbone: Backbone, task: Task) -> list[Column]:
    """The truth, what was measured of it, and the autoencoder's own."""
    true, y = truth("test", 0, COUNT), measurement(task, "test", 0, COUNT)
    with torch.no_grad():
        own = backbone.decode(backbone.encode_image(true))
    metrics = judged(own, "test", 0, y)
    return [
        Column("truth", _pixels(true), [""] * COUNT),
        Column("measured", _pixels(_shown(y)), [""] * COUNT),
        Column("autoencoder", _pixels(own), _words(metrics["psnr"], metrics["accepted"])),
    ]


def method_columns(folder: Path, settings: Settings, task: Task) -> list[Column]:
    """What the cache has of SHOWN."""
    rows = {row.name: row for row in every_row(settings)[0]}
    columns = []
    for name in SHOWN:
        row = rows.get(f"{task.name}-{name}")
        m = None if row is None else collected(folder, row)
        if row is not None and m is not None and row.kind in MAIN:
            images = np.nan_to_num(m.x[:COUNT]).transpose(0, 2, 3, 1)
            title = row.label.partition(",")[0] + f" {row.budget}x divided" if row.divided else row.label
            columns.append(Column(title, images, _words(m.psnr[:COUNT], m.accepted[:COUNT])))
    return columns


def sheet(columns: Sequence[Column], path: Path) -> None:
    side = round(ZOOM * 64)
    lines = min(COUNT, COUNTS["test"])
    image = Image.new("RGB", (GAP + len(columns) * (side + GAP), TOP + lines * (side + BELOW)), "white")
    draw = ImageDraw.Draw(image)
    for n, column in enumerate(columns):
        x = GAP + n * (side + GAP)
        draw.text((x + side / 2, TOP / 2), column.title, INK, font(7), anchor="mm")
        for k, (pixels, words) in enumerate(zip(column.images, column.words, strict=True)):
            y = TOP + k * (side + BELOW)
            picture = Image.fromarray((pixels * 255.0).round().astype("uint8"))
            image.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
            draw.text((x + side / 2, y + side + BELOW / 2 - 1), words, INK, font(5.5), anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _shown(y: Measurement) -> Tensor:
    """What was measured as a picture; a chequerboard where nothing was."""
    rows, columns = (torch.arange(n) // 4 for n in y.y.shape[-2:])
    chequers = torch.where((rows[:, None] + columns) % 2 == 0, 0.35, 0.65).expand_as(y.y)
    return torch.where(y.seen(torch.ones_like(y.y)) != 0.0, y.y.clamp(0.0, 1.0), chequers)


def _pixels(x: Tensor) -> NDArray[np.float32]:
    return x.permute(0, 2, 3, 1).numpy()


def _words(psnr: NDArray[np.float64], accepted: NDArray[np.bool_]) -> list[str]:
    marks = ("wrong", "right")
    return [f"{value:.1f} dB, {marks[int(right)]}" for value, right in zip(psnr, accepted, strict=True)]
