"""The picture of `work_precision`: one panel a problem, error over evaluations, both axes logarithmic.

Drawn with Pillow, which the package needs anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .overhead_peers import PEER
from .work_precision_report import best
from .work_precision_rows import Row

SCALE = 2  # drawn this much larger and reduced, which smooths the lines
PANEL, LEFT, RIGHT, TOP, BOTTOM = (640, 470), 64, 150, 52, 50  # pixels
FEWEST = 5  # evaluations; what cannot use five is not drawn at four
GREY, FAINT, INK = (198, 198, 198), (235, 235, 235), (40, 40, 40)
TITLES = {
    "mixture": "Gaussian mixture, noise prediction",
    "mixture-flow": "Gaussian mixture, flow",
    "tiny-sd": "tiny-sd, no guidance",
    "tiny-sd-cfg2": "tiny-sd, guidance scale 2",
    "tiny-sd-cfg5": "tiny-sd, guidance scale 5",
}
HIGHLIGHTED: dict[tuple[str, str], tuple[str, tuple[int, int, int], bool]] = {
    (PEER, "DPM-Solver++ 2M"): ("diffusers 2M", (20, 20, 20), True),
    (PEER, "UniPC-2"): ("diffusers UniPC-2", (130, 130, 130), True),
    (PEER, "DDIM"): ("diffusers DDIM", (175, 150, 130), True),
    (PEER, "Euler"): ("diffusers Euler", (175, 150, 130), True),
    ("fewstep", "2m"): ("2m", (31, 119, 180), False),
    ("fewstep", "unipc-2"): ("unipc-2", (44, 140, 44), False),
    ("fewstep", "unipc-3"): ("unipc-3", (148, 103, 189), False),
    ("fewstep", "deis-3"): ("deis-3", (214, 39, 40), False),
    ("fewstep", "dpm-2m"): ("dpm-2m", (240, 130, 20), False),
    ("fewstep", "ddim"): ("ddim", (140, 86, 75), False),
}


class Axes(NamedTuple):
    """Where a panel lies and what it shows: evaluations and errors to pixels."""

    x0: int
    y0: int
    budgets: tuple[float, float]
    errors: tuple[float, float]

    def at(self, budget: float, error: float) -> tuple[float, float]:
        width, height = PANEL[0] - LEFT - RIGHT, PANEL[1] - TOP - BOTTOM
        u = math.log(budget / self.budgets[0]) / math.log(self.budgets[1] / self.budgets[0])
        v = math.log(error / self.errors[0]) / math.log(self.errors[1] / self.errors[0])
        return SCALE * (self.x0 + LEFT + u * width), SCALE * (self.y0 + TOP + (1.0 - v) * height)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write the PNG: every method on its best grid at each number of evaluations, some in colour and named."""
    problems = [name for name in TITLES if any(r.problem == name and r.error is not None for r in rows)]
    columns = min(2, len(problems))
    lines = math.ceil(len(problems) / columns)
    image = Image.new("RGB", (SCALE * PANEL[0] * columns, SCALE * (PANEL[1] * lines + 24)), "white")
    draw = ImageDraw.Draw(image)
    for k, name in enumerate(problems):
        x0, y0 = PANEL[0] * (k % columns), PANEL[1] * (k // columns)
        _panel(draw, name, [r for r in rows if r.problem == name], x0, y0)
    note = "Each method on its best grid at each number of evaluations. Grey: all other solvers. Dashed: diffusers."
    draw.text((SCALE * LEFT, SCALE * PANEL[1] * lines), note, INK, _font(13))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS).save(path, optimize=True)


def _panel(draw: ImageDraw.ImageDraw, name: str, rows: Sequence[Row], x0: int, y0: int) -> None:
    curves = _curves(rows)
    values = [error for points in curves.values() for _, error in points]
    budgets = sorted({b for points in curves.values() for b, _ in points})
    low, high = min(values) / 1.15, min(max(values) * 1.15, 2.0)
    axes = Axes(x0, y0, (budgets[0] / 1.06, budgets[-1] * 1.06), (low, high))
    _frame(draw, axes, budgets, TITLES[name])
    for key, points in curves.items():
        if key not in HIGHLIGHTED:
            _line(draw, [axes.at(b, min(e, high)) for b, e in points], GREY, 1.2, False)
    ends = []
    for key, (label, colour, dashed) in reversed(HIGHLIGHTED.items()):  # diffusers' on top of ours
        if key in curves:
            pixels = [axes.at(b, min(e, high)) for b, e in curves[key]]
            _line(draw, pixels, colour, 2.4, dashed)
            ends.append((pixels[-1][1], label, colour))
    _labels(draw, axes, ends)


def _curves(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(implementation, method) -> (evaluations really used, error), on the best grids, by evaluations."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for row in best(r for r in rows if r.error is not None and math.isfinite(r.error) and r.error > 0).values():
        points = found.setdefault((row.implementation, row.method), {})
        if row.ticks < FEWEST:
            continue
        points[row.ticks] = min(points.get(row.ticks, math.inf), float(row.error or math.inf))
    return {key: sorted(points.items()) for key, points in found.items() if len(points) > 1}


def _frame(draw: ImageDraw.ImageDraw, axes: Axes, budgets: Sequence[float], title: str) -> None:
    (left, bottom), (right, top) = (
        axes.at(axes.budgets[0], axes.errors[0]),
        axes.at(axes.budgets[1], axes.errors[1]),
    )
    decades = range(math.floor(math.log10(axes.errors[0])), math.ceil(math.log10(axes.errors[1])) + 1)
    for mark in (m * 10.0**d for d in decades for m in (1, 2, 5)):
        if axes.errors[0] <= mark <= axes.errors[1]:
            y = axes.at(axes.budgets[0], mark)[1]
            draw.line([(left, y), (right, y)], FAINT, SCALE)
            draw.text((left - 6 * SCALE, y), f"{mark:g}", INK, _font(12), anchor="rm")
    for budget in (b for b in (5, 6, 8, 10, 12, 15, 20, 30) if budgets[0] <= b <= budgets[-1]):
        x = axes.at(budget, axes.errors[0])[0]
        draw.line([(x, top), (x, bottom)], FAINT, SCALE)
        draw.text((x, bottom + 6 * SCALE), str(budget), INK, _font(12), anchor="ma")
    draw.line([(left, top), (left, bottom), (right, bottom)], INK, SCALE)
    draw.text((left, top - 12 * SCALE), title, INK, _font(16), anchor="lb")
    draw.text(((left + right) / 2, bottom + 24 * SCALE), "network evaluations per branch", INK, _font(12), anchor="ma")


def _line(
    draw: ImageDraw.ImageDraw, pixels: Sequence[tuple[float, float]], colour: Any, width: float, dashed: bool
) -> None:
    if not dashed:
        draw.line(list(pixels), colour, round(width * SCALE), joint="curve")
    else:
        for a, b in zip(pixels, pixels[1:], strict=False):
            _dashes(draw, a, b, colour, round(width * SCALE))
    if width > 2:
        r = 3 * SCALE
        for x, y in pixels:
            draw.ellipse([x - r, y - r, x + r, y + r], colour)


def _dashes(draw: ImageDraw.ImageDraw, a: tuple[float, float], b: tuple[float, float], colour: Any, width: int) -> None:
    length = math.dist(a, b)
    on, period = 7 * SCALE, 11 * SCALE
    for k in range(math.ceil(length / period)):
        u, v = k * period / length, min((k * period + on) / length, 1.0)
        ends = [(a[0] + f * (b[0] - a[0]), a[1] + f * (b[1] - a[1])) for f in (u, v)]
        draw.line(ends, colour, width)


def _labels(draw: ImageDraw.ImageDraw, axes: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """The names at the right ends, moved apart where they would overlap."""
    gap, x = 17 * SCALE, axes.at(axes.budgets[1], axes.errors[0])[0] + 4 * SCALE
    placed: list[list[Any]] = [list(end) for end in sorted(ends)]
    for _ in range(200):
        for upper, lower in zip(placed, placed[1:], strict=False):
            overlap = gap - (lower[0] - upper[0])
            if overlap > 0:
                upper[0] -= overlap / 2
                lower[0] += overlap / 2
    for y, label, colour in placed:
        draw.text((x, y), label, colour, _font(13), anchor="lm")


def _font(size: int) -> Any:
    return ImageFont.load_default(size * SCALE)
