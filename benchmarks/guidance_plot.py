"""The plots of `guidance`, drawn with Pillow: what is saved against what it costs, and how gamma grows.

python -m fewstep.benchmarks.guidance_plot [--cache FOLDER] [--results FOLDER] [--out docs/images]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # drawn this much larger and reduced, which smooths the lines
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 440, 70, 24, 44, 54  # of a panel, pixels
INK, FAINT, GREY = (40, 40, 40), (230, 230, 230), (150, 150, 150)
COLOURS: dict[str, tuple[int, int, int]] = {
    "first p %": (120, 120, 120),
    "frozen delta": (240, 130, 20),
    "CFG, fewer steps": (175, 140, 110),
    "AG": (31, 119, 180),
    "AG, then frozen delta": (90, 180, 230),
    "AG, 10 steps": (0, 0, 150),
    "LinearAG": (214, 39, 40),
    "searched": (44, 140, 44),
    "no guidance": (0, 0, 0),
}
LINES = ("first p %", "frozen delta", "CFG, fewer steps", "AG")  # families whose points are joined


class Axis(NamedTuple):
    """The range of a coordinate, its marks, and whether it is logarithmic."""

    low: float
    high: float
    marks: Sequence[float]
    log: bool = False
    text: Callable[[float], str] = "{:g}".format

    def part(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        f = math.log if self.log else float
        clipped = min(max(value, self.low), self.high)
        return (f(clipped) - f(self.low)) / (f(self.high) - f(self.low))


class Panel(NamedTuple):
    """A pair of axes in the picture."""

    draw: Any
    left: int
    top: int
    x: Axis
    y: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        u, v = self.x.part(x), self.y.part(y)
        across, down = u * (WIDTH - LEFT - RIGHT), (1.0 - v) * (HEIGHT - TOP - BOTTOM)
        return SCALE * (self.left + LEFT + across), SCALE * (self.top + TOP + down)

    def frame(self, title: str, below: str) -> None:
        """Marks, grid, names."""
        for mark in self.y.marks:
            (x0, y), (x1, _) = self.at(self.x.low, mark), self.at(self.x.high, mark)
            self.draw.line([(x0, y), (x1, y)], FAINT, SCALE)
            self.draw.text((x0 - 6 * SCALE, y), self.y.text(mark), INK, font(12), anchor="rm")
        for mark in self.x.marks:
            (x, y0), (_, y1) = self.at(mark, self.y.low), self.at(mark, self.y.high)
            self.draw.line([(x, y0), (x, y1)], FAINT, SCALE)
            self.draw.text((x, y0 + 6 * SCALE), self.x.text(mark), INK, font(12), anchor="ma")
        corners = [self.at(self.x.low, self.y.high), self.at(self.x.low, self.y.low), self.at(self.x.high, self.y.low)]
        self.draw.line(corners, INK, SCALE)
        self.draw.text((corners[0][0], corners[0][1] - 10 * SCALE), title, INK, font(15), anchor="lb")
        middle = (corners[1][0] + corners[2][0]) / 2
        self.draw.text((middle, corners[1][1] + 26 * SCALE), below, INK, font(12), anchor="ma")

    def line(self, points: Sequence[tuple[float, float]], colour: Any, width: float = 2.0) -> None:
        if len(points) > 1:
            self.draw.line([self.at(*p) for p in points], colour, round(width * SCALE), joint="curve")

    def dot(self, point: tuple[float, float], colour: Any, radius: float = 4.0) -> None:
        x, y = self.at(*point)
        r = radius * SCALE
        self.draw.ellipse([x - r, y - r, x + r, y + r], colour)


def pareto(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """NFE against latent error, and against the difference of accuracy, of the rows of one block."""
    lines = [line for line in lines if line["family"] in COLOURS]
    image, draw = canvas(2, 34)
    nfe = Axis(13.5, 32.5, (14, 16, 18, 20, 22, 24, 26, 28, 30, 32))
    errors = [line["error"][0] for line in lines if line["error"][0] > 0]
    low, high = min(errors) / 1.2, max(errors) * 1.2
    marks = [m * 10.0**d for d in (-4, -3, -2, -1, 0) for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    first = Panel(draw, 0, 0, nfe, Axis(low, high, marks, log=True))
    first.frame("latent error, relative to CFG in 20 steps (40 NFE)", "NFE an image")
    most = max(line["pairs"] for line in lines)
    full = [line for line in lines if line["pairs"] == most]  # fewer pairs are other pairs: not to be compared
    second = Panel(draw, WIDTH, 0, nfe, Axis(-2.5, 0.8, (-2, -1.5, -1, -0.5, 0, 0.5), text="{:+g}".format))
    second.frame(f"accuracy less CFG's, points, 95 % intervals, {most:,} pairs", "NFE an image")
    for height in (-2.0, 0.0):
        second.line([(nfe.low, height), (nfe.high, height)], GREY, 1.0)
    families = [f for f in COLOURS if any(line["family"] == f for line in lines)]
    for k, family in enumerate(families):
        same = sorted((line for line in lines if line["family"] == family), key=lambda line: line["nfe"][0])
        if family in LINES:
            first.line([(line["nfe"][0], line["error"][0]) for line in same], COLOURS[family])
        for line in same:
            first.dot((line["nfe"][0], line["error"][0]), COLOURS[family])
        for line in (line for line in same if line in full):
            x = line["nfe"][0] + 0.12 * (k - len(families) / 2)  # beside one another where the cost is the same
            mean, below, above = (100 * v for v in line["difference"])
            second.line([(x, below), (x, above)], COLOURS[family], 1.4)
            second.dot((x, mean), COLOURS[family])
    legend(draw, families)
    save(image, path)


def gamma_curves(curves: Mapping[str, NDArray[np.float64]], path: Path, marks: Sequence[float] = (0.99, 0.999)) -> None:
    """Space -> [captions, steps]: 1 - gamma over the steps, median and the middle 90 %, a panel each."""
    image, draw = canvas(len(curves), 34)
    for k, (space, found) in enumerate(curves.items()):
        steps = found.shape[1]
        y = Axis(3e-6, 2.0, (1, 0.1, 0.01, 0.001, 1e-4, 1e-5), log=True)
        panel = Panel(draw, k * WIDTH, 0, Axis(1, steps, (1, 5, 10, 15, 20)), y)
        panel.frame(f"1 - gamma, predictions of {space}", "step")
        low, middle, high = np.quantile(1.0 - found, [0.05, 0.5, 0.95], axis=0)
        numbers = range(1, steps + 1)
        band = [panel.at(n, v) for n, v in zip(numbers, low, strict=True)]
        band += [panel.at(n, v) for n, v in zip(reversed(numbers), high[::-1], strict=True)]
        draw.polygon(band, (205, 222, 238))
        panel.line(list(zip(numbers, middle.tolist(), strict=True)), COLOURS["AG"], 2.4)
        for mark in marks:
            panel.line([(1, 1 - mark), (steps, 1 - mark)], (214, 39, 40), 1.0)
            x, height = panel.at(steps, 1 - mark)
            if k == 0:
                draw.text((x, height - 3 * SCALE), f"threshold {mark:g}", (214, 39, 40), font(11), anchor="rb")
    note = "Line: median of the captions. Band: from 5 to 95 % of them. Adaptive guidance ends below its threshold."
    draw.text((SCALE * LEFT, SCALE * (HEIGHT + 8)), note, INK, font(13))
    save(image, path)


def canvas(panels: int, below: int) -> tuple[Image.Image, Any]:
    image = Image.new("RGB", (SCALE * WIDTH * panels, SCALE * (HEIGHT + below)), "white")
    return image, ImageDraw.Draw(image)


def legend(draw: Any, families: Sequence[str]) -> None:
    x = SCALE * LEFT
    y = SCALE * (HEIGHT + 14)
    for family in families:
        draw.ellipse([x, y - 4 * SCALE, x + 8 * SCALE, y + 4 * SCALE], COLOURS[family])
        draw.text((x + 12 * SCALE, y), family, INK, font(13), anchor="lm")
        x += 12 * SCALE + draw.textlength(family, font(13)) + 18 * SCALE


def save(image: Image.Image, path: Path) -> None:
    """In its final size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS).save(path, optimize=True)


def font(size: float) -> Any:
    return ImageFont.load_default(size * SCALE)
