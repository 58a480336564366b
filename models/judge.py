"""A deterministic judge: reads a scene back from its pixels and says whether a caption is true of it.

No learning is in it. Pixels far from the background form blobs; each blob's colour is the median of its inside, its
shape the best of the exact shapes of the same area laid over it, its size the radius of that shape. Blurred edges are
fine, because coverage is fractional; a second colour inside a blob, stray blobs and outlines that look like no shape or
like two are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .captions import Request, Wanted, parse_caption
from .scenes import BACKGROUNDS, COLOURS, SHAPES, SIZE, inside

COLOUR_TOLERANCE = 55.0
"""Largest distance (RGB, 0 to 255, Euclidean) of a blob or background from the colour it is called."""
LEAST_CONTRAST = 45.0
"""Pixels nearer than this to the background belong to it."""
FOREIGN = 0.08
"""Part of a blob that may be of a colour that no blend of its paint and the background gives."""
LEAST_AREA, STRAY_AREA = 40.0, 5.0
"""Blobs smaller than the first, in pixels, are no objects; smaller than the second, they are overlooked."""
LEAST_OVERLAP, LEAST_MARGIN = 0.85, 0.02
"""Overlap (intersection over union) with the best shape, and its lead over the next best."""
SHARP = 0.94
"""Above this overlap, blurred shapes are not tried."""
SMALL, LARGE = (5.4, 8.4), (9.6, 13.5)
"""Nominal radii, in pixels, that count as small and as large; between them the size is unclear."""
LEAST_DISTANCE = 14.0
"""Centres must lie this far apart, in pixels along the relation's axis, and not further apart across it."""

Floats = NDArray[np.float64]
_MIDDLES = np.arange(SIZE) + 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """One object as read from the picture; ``None`` where the picture is unclear."""

    shape: str | None
    colour: str | None
    size: str | None
    centre: tuple[float, float]
    overlap: float

    def __str__(self) -> str:
        words = (self.size or "unclear-size", self.colour or "unclear-colour", self.shape or "unclear-shape")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything read from one picture. ``stray`` counts blobs that are no objects."""

    things: tuple[Found, ...]
    background: str | None
    stray: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the caption is true of the picture, what was found, and every reason against it."""

    accepted: bool
    found: tuple[Found, ...]
    reasons: tuple[str, ...]
    background: str | None = None


def judge(image: NDArray, caption: str) -> Verdict:
    """Judge one picture, (64, 64, 3), uint8 or floating point in [0, 1], against a caption of the world.

    Raises ConfigError for another shape or dtype, or a caption outside the world's grammar.
    """
    return decide(read(image), parse_caption(caption))


def decide(reading: Reading, request: Request) -> Verdict:
    """Whether what was read is what was asked for."""
    reasons = _reasons(request, reading)
    return Verdict(not reasons, reading.things, tuple(reasons), reading.background)


def read(image: NDArray) -> Reading:
    """Read objects, background and stray blobs from one picture (see :func:`judge`)."""
    pixels = _pixels(image)
    ground, name = _background(pixels)
    if ground is None:
        return Reading((), None, 0)
    things: list[Found] = []
    stray = 0
    for blob in _blobs(np.linalg.norm(pixels - ground, axis=-1) > LEAST_CONTRAST):
        if blob.sum() >= LEAST_AREA:
            things.append(_look(pixels, ground, blob))
        elif blob.sum() >= STRAY_AREA:
            stray += 1
    return Reading(tuple(things), name, stray)


def _pixels(image: NDArray) -> Floats:
    image = np.asarray(image)
    if image.shape != (SIZE, SIZE, 3):
        raise ConfigError(f"the judge got an image of shape {image.shape}; expected ({SIZE}, {SIZE}, 3)")
    if image.dtype == np.uint8:
        return image.astype(np.float64)
    if np.issubdtype(image.dtype, np.floating):
        return np.nan_to_num(image.astype(np.float64), nan=0.5).clip(0, 1) * 255
    raise ConfigError(f"the judge got an image of dtype {image.dtype}; expected uint8, or floating point in [0, 1]")


def _nearest(colour: Floats, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """Name of the nearest colour, or None beyond the tolerance."""
    distance = {name: float(np.linalg.norm(colour - np.asarray(rgb))) for name, rgb in palette.items()}
    best = min(distance, key=distance.__getitem__)
    return best if distance[best] <= COLOUR_TOLERANCE else None


def _background(pixels: Floats) -> tuple[Floats | None, str | None]:
    """The background's colour, from the frame of the picture, and its name; (None, None) if there is no plain one."""
    frame = np.ones((SIZE, SIZE), bool)
    frame[2:-2, 2:-2] = False
    ground = np.median(pixels[frame], axis=0)
    plain = np.linalg.norm(pixels - ground, axis=-1) < LEAST_CONTRAST
    if plain[frame].mean() < 0.8 or plain.mean() < 0.4:
        return None, None
    return np.median(pixels[plain], axis=0), _nearest(ground, BACKGROUNDS)


def _blobs(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Connected parts (by edge or corner) of a mask, in reading order."""
    rest, blobs = mask.copy(), []
    while rest.any():
        blob = np.zeros_like(mask)
        blob.flat[rest.argmax()] = True
        size, grown = 0, 1
        while grown > size:
            size = grown
            for _ in range(4):
                blob = _grown(blob) & rest
            grown = int(blob.sum())
        rest &= ~blob
        blobs.append(blob)
    return blobs


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and its eight neighbours."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


def _look(pixels: Floats, ground: Floats, blob: NDArray[np.bool_]) -> Found:
    """Read one blob: colour, fractional coverage, shape, size."""
    once = ~_grown(~blob)
    twice = ~_grown(~once)
    core = next(mask for mask in (twice, once, blob) if mask.sum() >= 9)
    paint = np.median(pixels[core], axis=0)
    axis = (paint - ground) / max(float((paint - ground) @ (paint - ground)), 1.0)
    amount = (pixels - ground) @ axis
    # A blurred edge lies on the line between the two colours; a second colour in the blob does not.
    foreign = np.linalg.norm(pixels[blob] - ground - amount[blob][:, None] * (paint - ground), axis=-1) > LEAST_CONTRAST
    colour = _nearest(paint, COLOURS) if foreign.mean() < FOREIGN else None
    cover = np.where(_grown(blob), amount, 0.0).clip(0, 1)
    cover[cover < 0.1] = 0.0
    area = cover.sum()
    centre = (float(cover.sum(0) @ _MIDDLES / area), float(cover.sum(1) @ _MIDDLES / area))
    shape, radius, overlap = _shape(cover, centre, area)
    whole = not (blob[0].any() or blob[-1].any() or blob[:, 0].any() or blob[:, -1].any())
    size = "small" if SMALL[0] <= radius <= SMALL[1] else "large" if LARGE[0] <= radius <= LARGE[1] else None
    return Found(shape if whole else None, colour, size, centre, overlap)


@cache
def unit_area(shape: str) -> float:
    """Area of a shape of nominal radius 1."""
    axis = (np.arange(600) + 0.5) / 200 - 1.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return float(inside(shape, x, y, 1.0).sum()) / 200**2


@lru_cache(maxsize=20_000)
def _template(shape: str, radius: float, dx: float, dy: float, blurred: bool) -> NDArray[np.float32]:
    """Coverage (36, 36) of a shape whose centre lies (dx, dy) right of and below the middle; blurred by (1, 2, 1)."""
    if blurred:
        sharp = np.pad(_template(shape, radius, dx, dy, False), 1)
        rows = (sharp[:-2] + 2 * sharp[1:-1] + sharp[2:]) / 4
        return ((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4).astype(np.float32)
    axis = (np.arange(36 * 4) + 0.5) / 4 - 18
    y, x = np.meshgrid(axis - dy, axis - dx, indexing="ij")
    return inside(shape, x, y, radius).astype(np.float32).reshape(36, 4, 36, 4).mean((1, 3))


def _shape(cover: Floats, centre: tuple[float, float], area: float) -> tuple[str | None, float, float]:
    """(shape or None if unclear, nominal radius, overlap) of the best shape of the same area and centre."""
    column, row = round(centre[0]), round(centre[1])
    dx, dy = round(4 * (centre[0] - column)) / 4, round(4 * (centre[1] - row)) / 4
    window = np.pad(cover, 18)[row : row + 36, column : column + 36]
    rest = area - window.sum()
    scored: list[tuple[float, str, float]] = []
    for blurred in (False, True):
        for shape in SHAPES:
            radius = float(np.sqrt(area / unit_area(shape)))
            template = _template(shape, round(8 * min(radius, 16.0)) / 8, dx, dy, blurred)
            scored.append((_overlap(window, template, rest), shape, radius))
        if max(scored)[0] > SHARP:
            break
    best, shape, radius = max(scored)
    second = max(score for score, name, _ in scored if name != shape)
    clear = best >= LEAST_OVERLAP and best - second >= LEAST_MARGIN
    return (shape if clear else None), radius, best


def _overlap(cover: Floats, template: NDArray[np.float32], outside: float) -> float:
    """Intersection over union of two coverages; ``outside`` is coverage beyond the window."""
    either = np.maximum(cover, template).sum()
    return float((cover.sum() + template.sum() - either) / (either + outside))


def _reasons(request: Request, reading: Reading) -> list[str]:
    """Everything that is wrong, in words; for two objects, of the assignment with the fewest reasons."""
    reasons = []
    if request.background is not None and reading.background != request.background:
        reasons.append(f"the background is {reading.background or 'unclear'}, not {request.background}")
    elif reading.background is None:
        reasons.append("the background is unclear")
    if reading.stray:
        reasons.append(f"{reading.stray} stray blob(s)")
    if len(reading.things) != len(request.things):
        return [*reasons, f"{len(reading.things)} object(s), not {len(request.things)}"]
    ways = [_mismatches(request.things, order, request.relation) for order in permutations(reading.things)]
    return reasons + min(ways, key=len)


def _mismatches(wanted: Sequence[Wanted], found: Sequence[Found], relation: str | None) -> list[str]:
    reasons = []
    for want, have in zip(wanted, found, strict=True):
        for asked, got in ((want.shape, have.shape), (want.colour, have.colour), (want.size, have.size)):
            if asked is not None and asked != got:
                reasons.append(f"{have} is not {asked}")
    if relation is not None and not _holds(relation, found[0].centre, found[1].centre):
        reasons.append(f"{found[0]} is not {relation} {found[1]}")
    return reasons


def _holds(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether the relation is plainly true of two centres (x, y); y points down."""
    right, down = second[0] - first[0], second[1] - first[1]
    along, across = {
        "left of": (right, down),
        "right of": (-right, down),
        "above": (down, right),
        "below": (-down, right),
    }[relation]
    return along >= LEAST_DISTANCE and along > abs(across)
