"""What is made of all restored samples of a picture: their mean, how much they differ, and all of it side by side.

They are functions of the PNG files alone, so an interruption does not change them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from ..files import write_atomic
from . import png
from .output import in_the_way
from .restore_inputs import MARK
from .restore_pose import Posed
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


def write_beside(job: Job, target: JobTarget, posed: Posed, lines: dict[int, dict[str, Any]], side: bool) -> list[Path]:
    """Write the mean and the standard deviation of several samples, and the side-by-side picture if it is wanted.

    lines: of the samples by index, as in run.jsonl.       Returns the paths, those that were there already too.
    """
    samples = [_pixels(target.path(item)) for item in job.items]
    made: dict[str, Tensor | Image] = {}
    tiles = [Tile(_before(posed), "degraded", _psnr_before(lines))]
    tiles += [
        Tile(x, f"restored, seed {item.seed}", _psnr(lines[item.index]))
        for x, item in zip(samples[:MOST], job.items, strict=False)
    ]
    if len(samples) > 1:
        mean, spread = _moments(samples)
        made |= {"mean": mean, "std": spread}
        tiles.append(Tile(mean, f"mean of {len(samples)}", _psnr_of(mean, posed)))
        tiles.append(Tile(spread, "standard deviation", f"white: {WHITE:g}"))
    if posed.truth is not None:
        tiles.append(Tile(posed.truth[0], "truth"))
    if side:
        made["side-by-side"] = _sheet(tiles)
    return [_write(target.beside(kind), picture, job, kind) for kind, picture in made.items()]


def paths_beside(job: Job, target: JobTarget, side: bool) -> list[Path]:
    """Where `write_beside` writes. ConfigError if one of the names is taken by a file that is not ours."""
    kinds = (("mean", "std") if len(job.items) > 1 else ()) + (("side-by-side",) if side else ())
    paths = [target.beside(kind) for kind in kinds]
    for path in paths:
        if path.exists() and MARK not in png.read_text(path).texts:
            raise in_the_way(path, "fewstep restore")
    return paths


def _write(path: Path, picture: Any, job: Job, kind: str) -> Path:
    image = picture if hasattr(picture, "save") else png.picture(picture)
    told = {"run": job.run, "kind": kind, "seeds": [job.items[0].seed, job.items[-1].seed]}
    told |= {"white": WHITE} if kind == "std" else {}
    data = png.encode(image, {MARK: json.dumps(told, sort_keys=True)})
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)
    return path


def _moments(samples: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation over WHITE), (3, H, W): the unbiased variance, its mean over the channels as grey."""
    import torch

    stack = torch.stack(samples)
    spread = stack.var(0).mean(0, keepdim=True).sqrt()
    return stack.mean(0), (spread / WHITE).clamp(max=1.0).expand(3, -1, -1)


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
