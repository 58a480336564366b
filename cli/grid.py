"""One picture of all pictures of a run: a row per prompt where prompts have several pictures, else nearly square."""

from __future__ import annotations

import json
import math

from ..errors import FewstepError
from ..files import write_atomic
from . import png
from .output import Target
from .run import Outcome
from .settings import Settings

MAX_PIXELS = 100_000_000
_GAP = 2


def write_grid(settings: Settings, target: Target, outcome: Outcome) -> str:
    """The path of the grid, newly written. A picture that failed stays blank."""
    from PIL import Image

    lines = outcome.lines
    first = next(iter(lines.values()))
    width, height = first["width"], first["height"]
    columns = settings.num_images if settings.num_images > 1 else math.ceil(math.sqrt(settings.total))
    rows = math.ceil(settings.total / columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    if size[0] * size[1] > MAX_PIXELS:
        raise FewstepError(
            f"the pictures are there, but a grid of {size[0]}x{size[1]} pixels is too large: "
            f"at most {MAX_PIXELS // 10**6} million"
        )
    sheet = Image.new("RGB", size, "white")
    for item in settings.items:
        if item.index in lines:
            row, column = divmod(item.index, columns)
            with Image.open(target.path(item)) as tile:
                sheet.paste(tile, (column * (width + _GAP), row * (height + _GAP)))
    described = {"run": settings.run, "columns": columns, "files": [line["file"] for _, line in sorted(lines.items())]}
    write_atomic(target.grid, png.encode(sheet, {"fewstep-grid": json.dumps(described)}))
    return str(target.grid)
