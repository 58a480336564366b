"""What is made of all restored samples of a picture: their mean, how much they differ, and all of it side by side.

They are functions of the PNG files alone, so an interruption does not change them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..files import write_atomic
from . import png
from .output import Target, in_the_way
from .restore_inputs import MARK
from .restore_pose import Frame, Posed, pose
from .restore_settings import Job, JobTarget

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

WHITE = 0.25  # the standard deviation that the picture of it shows in white
MOST = 4  # samples side by side
_TILE, _GAP, _FONT = 256, 6, 14  # pixels: a tile's longer side at least, and what is between tiles


class Tile(NamedTuple):
    """picture: (3, H, W) in [0, 1].       title, note: two lines below it."""

    picture: Tensor
    title: str
    note: str = ""


def write_beside(
    job: Job, target: JobTarget, posed: Posed | None, lines: dict[int, dict[str, Any]], side: bool
) -> list[Path]:
    """Write the mean and the standard deviation of several samples, and the side-by-side picture if it is wanted.

    posed: only the side-by-side picture needs it.       lines: of the samples by index, as in run.jsonl.
    Returns the paths, those that were there already too.
    """
    paths = [target.path(item) for item in job.items]
    made: dict[str, Tensor | Image] = {}
    moments = None
    if len(paths) > 1:
        moments = _moments(paths)
        made["mean"], made["std"] = moments
    if side and posed is not None:
        made["side-by-side"] = _sheet(_tiles(job, posed, [_pixels(path) for path in paths[:MOST]], moments, lines))
    return [_write(target.beside(kind), picture, job, kind) for kind, picture in made.items()]


def _tiles(
    job: Job,
    posed: Posed,
    samples: list[Tensor],
    moments: tuple[Tensor, Tensor] | None,
    lines: dict[int, dict[str, Any]],
) -> list[Tile]:
    tiles = [Tile(_before(posed), "degraded", _psnr_before(lines))]
    tiles += [
        Tile(x, f"restored, seed {item.seed}", _psnr(lines[item.index]))
        for x, item in zip(samples, job.items, strict=False)
    ]
    if moments is not None:
        mean, spread = moments
        tiles.append(Tile(mean, f"mean of {len(job.items)}", _psnr_of(mean, posed)))
        tiles.append(Tile(spread, "standard deviation", f"white: {WHITE:g}"))
    if posed.truth is not None:
        tiles.append(Tile(posed.truth[0], "truth"))
    return tiles


def posed_again(job: Job, target: JobTarget) -> Posed:
    """What a job was restored from, of the size that its picture has: needs no model."""
    found = png.read_text(target.path(job.items[0]))
    size = (found.height, found.width)
    sized = replace(job, settings=replace(job.settings, height=found.height, width=found.width))
    return pose(sized, Frame(job.settings.model.name, 1, 1, size))


def paths_beside(job: Job, target: JobTarget, side: bool) -> list[Path]:
    """Where `write_beside` writes. ConfigError if one of the names is taken by a file that is not ours."""
    paths = [target.beside(kind) for kind in _kinds(job, side)]
    for path in paths:
        if path.exists() and MARK not in png.read_text(path).texts:
            raise in_the_way(path, "fewstep restore")
    return paths


def beside_there(job: Job, target: JobTarget, side: bool) -> list[Path]:
    """Those of `paths_beside` that are there, made of these samples of this run and not of another's."""
    found = []
    for kind, path in zip(_kinds(job, side), paths_beside(job, target, side), strict=True):
        with suppress(ValueError, RecursionError):
            if path.exists() and json.loads(png.read_text(path).texts[MARK]) == _mark(job, kind):
                found.append(path)
    return found


def check_apart(jobs: Sequence[Job], whole: Target, side: bool, given: Mapping[str, str]) -> None:
    """ConfigError if a picture would be written over a file that was given.       given: location -> what it is."""
    known = {}
    for location, what in given.items():
        with suppress(OSError):
            known[_identity(location)] = what
    for job in jobs:
        target = job.target(whole)
        for path in [*map(target.path, job.items), *map(target.beside, _kinds(job, side))]:
            with suppress(OSError):  # it is not there
                what = known.get(_identity(path))
                if what is not None:
                    raise ConfigError(f"--output: {str(path)!r} is {what}, which would be replaced; choose another "
                                      "--output")  # fmt: skip


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """A write that fails inside says which file it was."""
    try:
        yield
    except OSError as error:
        error.filename = None if path is None else str(path)
        raise


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _kinds(job: Job, side: bool) -> tuple[str, ...]:
    return (("mean", "std") if len(job.items) > 1 else ()) + (("side-by-side",) if side else ())


def _mark(job: Job, kind: str) -> dict[str, Any]:
    told = {"run": job.run, "kind": kind, "seeds": [job.items[0].seed, job.items[-1].seed]}
    return told | ({"white": WHITE} if kind == "std" else {})


def _write(path: Path, picture: Any, job: Job, kind: str) -> Path:
    image = picture if hasattr(picture, "save") else png.picture(picture)
    data = png.encode(image, {MARK: json.dumps(_mark(job, kind), sort_keys=True)})
    if not path.exists() or path.read_bytes() != data:
        with naming(path):
            write_atomic(path, data)
    return path


def _moments(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation over WHITE), (3, H, W): the unbiased variance, its mean over the channels as grey.

    Two passes over the files, one in memory at a time: there may be hundreds.
    """
    import torch

    mean = torch.zeros((), dtype=torch.float64)
    for path in paths:
        mean = mean + _pixels(path) / len(paths)
    variance = torch.zeros_like(mean)
    for path in paths:
        variance += (_pixels(path) - mean).square() / (len(paths) - 1)
    spread = variance.mean(0, keepdim=True).sqrt()
    return mean.float(), (spread / WHITE).clamp(max=1.0).expand(3, -1, -1).float()


def _pixels(path: Path) -> Tensor:
    from PIL import Image

    from ..guidance.pictures import pixels_of

    with Image.open(path) as image:
        return pixels_of(image)


def _before(posed: Posed) -> Tensor:
    """The measurement as a picture of the restored one's size: enlarged by repeating pixels where it is smaller."""
    from torch.nn import functional as F

    y = posed.measurement.y.clamp(0.0, 1.0)
    return F.interpolate(y, (posed.height, posed.width), mode="nearest-exact")[0]


def _psnr(line: dict[str, Any]) -> str:
    return f"PSNR {line['psnr']:.2f} dB" if "psnr" in line else ""


def _psnr_before(lines: dict[int, dict[str, Any]]) -> str:
    value = next((line["psnr_before"] for line in lines.values() if "psnr_before" in line), None)
    return "" if value is None else f"first guess: {value:.2f} dB"


def _psnr_of(x: Tensor, posed: Posed) -> str:
    if posed.truth is None:
        return ""
    from ..inverse.metrics import psnr

    return f"PSNR {float(psnr(x[None], posed.truth)):.2f} dB"


def _sheet(tiles: list[Tile]) -> Image:
    """The tiles in a row, small ones enlarged by repeating pixels, with their titles below."""
    from PIL import Image, ImageDraw

    images = [png.picture(tile.picture) for tile in tiles]
    width, height = images[0].size
    times = max(1, -(-_TILE // max(width, height)))
    width, height = width * times, height * times
    font = _font()
    sheet = Image.new("RGB", (len(tiles) * (width + _GAP) + _GAP, height + 2 * _GAP + 2 * (_FONT + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (tile, image) in enumerate(zip(tiles, images, strict=True)):
        left = _GAP + k * (width + _GAP)
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, _GAP))
        for line, text in enumerate((tile.title, tile.note)):
            draw.text((left, height + 2 * _GAP + line * (_FONT + 4)), text, fill="black", font=font)
    return sheet


def _font() -> Any:
    from PIL import ImageFont

    try:
        return ImageFont.load_default(_FONT)
    except (TypeError, OSError, ImportError):  # an old Pillow, or one without FreeType: its one small font
        return ImageFont.load_default()
