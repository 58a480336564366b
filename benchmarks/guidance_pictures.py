"""The figures of docs/guidance.md: the plots, and pictures of test prompts under the policies.

    python -m fewstep.benchmarks.guidance_pictures [--cache FOLDER] [--results FOLDER] [--out docs/images]

Plots are drawn from what `guidance` measured; the pictures are made here, the first prompts of each kind, unchosen.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ..models import embedded
from ..samplers.backbones import Backbone, load_backbone
from .guidance_choose import chosen_rows, kept_gammas
from .guidance_pairs import SIZE, Row, solved, test_pairs
from .guidance_plot import INK, font, gamma_curves, pareto
from .guidance_rows import rows_of

SPACES = ("x0", "v", "eps")
LABELS = {
    "cfg": "CFG",
    "ag-calibrated": "AG",
    "linear-spread": "LinearAG",
    "searched": "searched",
    "none": "no guidance",
}
COUNT = 9  # prompts, the three kinds in turn
ZOOM, TEXT, GAP = 1.5, 190, 6


def pictures(backbone: Backbone, rows: Sequence[Row], path: Path) -> None:
    """A line per prompt, a column per row, with the NFE of that picture below it."""
    pairs = test_pairs(0, COUNT)
    side = round(ZOOM * SIZE)
    width, height = TEXT + len(rows) * (side + GAP), 26 + COUNT * (side + 20)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for k, pair in enumerate(pairs):
        words = f"{pair.prompt}".split(" on a ")
        text = "\n".join([words[0].replace(" above ", "\nabove ").replace(" below ", "\nbelow ")
                          .replace(" left of ", "\nleft of ").replace(" right of ", "\nright of "),
                          *(f"on a {word}" for word in words[1:])])  # fmt: skip
        draw.multiline_text((4, 26 + k * (side + 20) + side / 2), text, INK, font(6.5), anchor="lm")
    for column, row in enumerate(rows):
        result = solved(backbone, row, pairs)
        images = backbone.decode(result.x).permute(0, 2, 3, 1).numpy()
        x = TEXT + column * (side + GAP)
        draw.text((x + side / 2, 12), LABELS[row.name], INK, font(7.5), anchor="mm")
        for k, (image, nfe) in enumerate(zip(images, result.report.nfe_per_image, strict=True)):
            y = 26 + k * (side + 20)
            picture = Image.fromarray((image * 255).round().astype("uint8"))
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))
            draw.text((x + side / 2, y + side + 8), f"{nfe} NFE", INK, font(5.5), anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    results = Path(__file__).parent / "results"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fewstep-guidance", help="folder")
    parser.add_argument("--results", type=Path, default=results, help="folder of guidance.json")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="default: docs/images")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    backbone = load_backbone(str(embedded("tiny-sd")))
    curves = {space: kept_gammas(options.cache, backbone, space) for space in SPACES}
    gamma_curves(curves, options.out / "guidance_gamma.png")
    chosen = chosen_rows(options.cache, backbone, LABELS)
    rows = rows_of(chosen, [name for name in LABELS if name in ("cfg", "none") or name in chosen])
    pictures(backbone, rows, options.out / "guidance_pictures.png")
    path = options.results / "guidance.json"
    if path.is_file():
        block = json.loads(path.read_text(encoding="utf-8"))["blocks"][0]
        pareto(block["rows"], options.out / "guidance_pareto.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
