"""The embedded world: captioned 64x64 scenes of one or two flat shapes.

A :class:`Scene` says everything that is in the picture and what its caption mentions. Rendering is deterministic
and needs numpy only. Positions are canonical places (the centre, or the two halves along the relation's axis) plus a
jitter of a few whole pixels.

Two things are kept out of training: ``HELDOUT`` combinations of (shape, colour, relation) are never *drawn*, and about
a tenth of all captions is never *said* (:func:`reserved`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

SIZE = 64
SHAPES = ("circle", "square", "triangle", "star")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "green": (35, 165, 60),
    "blue": (40, 70, 230),
    "yellow": (245, 215, 40),
    "purple": (180, 50, 220),
    "cyan": (40, 205, 225),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (8, 8, 8),
    "gray": (128, 128, 128),
    "white": (248, 248, 248),
}
SIZES: dict[str, float] = {"small": 7.0, "large": 11.5}
"""Nominal radius in pixels; each shape scales it so that all shapes of one size look equally big."""

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
PLACES: dict[str | None, tuple[int, int]] = {
    None: (32, 32),
    "left of": (16, 32),
    "right of": (48, 32),
    "above": (32, 16),
    "below": (32, 48),
}
"""Canonical centre (x, y) in pixels of the object of which the relation is said; the other sits at the inverse."""

HELDOUT: frozenset[tuple[str, str, str]] = frozenset(
    {
        ("circle", "red", "above"),
        ("circle", "cyan", "right of"),
        ("square", "blue", "below"),
        ("square", "yellow", "left of"),
        ("square", "purple", "above"),
        ("triangle", "green", "right of"),
        ("triangle", "cyan", "below"),
        ("star", "yellow", "above"),
        ("star", "purple", "left of"),
        ("star", "red", "right of"),
    }
)
"""10 of the 96 combinations. A combination counts for both objects of a pair (the second with the inverse relation),
so that no paraphrase shows it: a held-out combination is a place where that object is never seen in training."""

_SUPERSAMPLE = 8
_HALF = 15

Split = Literal["train", "any", "heldout"]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it looks like, the jitter of its centre in whole pixels, and whether its size is said."""

    shape: str
    colour: str
    size: str
    offset: tuple[int, int] = (0, 0)
    says_size: bool = True

    def phrase(self) -> str:
        """``a small red circle``, without the size when it is not said."""
        return " ".join(("a", *((self.size,) if self.says_size else ()), self.colour, self.shape))


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two things, the relation of the first to the second, and the background."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    says_background: bool = True

    def caption(self) -> str:
        """The caption: only what the ``says_*`` flags allow."""
        text = f" {self.relation} ".join(thing.phrase() for thing in self.things)
        return f"{text} on a {self.background} background" if self.says_background else text

    def full_caption(self) -> str:
        """The caption that says everything, whatever the ``says_*`` flags are."""
        return captions_of(self)[-1]

    def combinations(self) -> tuple[tuple[str, str, str], ...]:
        """(shape, colour, relation) of each object of a pair; empty for one object."""
        if self.relation is None:
            return ()
        relations = (self.relation, INVERSE[self.relation])
        return tuple((t.shape, t.colour, r) for t, r in zip(self.things, relations, strict=True))

    def is_heldout(self) -> bool:
        """Whether some object stands where it is never seen in training."""
        return any(c in HELDOUT for c in self.combinations())

    def centres(self) -> tuple[tuple[int, int], ...]:
        """Centre (x, y) of each object in pixels."""
        relations = (None,) if self.relation is None else (self.relation, INVERSE[self.relation])
        places = [PLACES[r] for r in relations]
        return tuple((x + t.offset[0], y + t.offset[1]) for (x, y), t in zip(places, self.things, strict=True))


def reserved(caption: str) -> bool:
    """Whether the caption belongs to the tenth that is never used as training text (CRC-32 of the text, modulo 10)."""
    return zlib.crc32(caption.encode()) % 10 == 0


def inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    """Whether points lie in the shape of nominal ``radius`` around the origin; y points down, same unit as radius."""
    if shape == "circle":
        return np.hypot(x, y) <= radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.88 * radius
    if shape == "triangle":
        r = 1.2 * radius
        return (y <= r / 2) & (np.sqrt(3) * abs(x) - y <= r)
    if shape == "star":
        return _inside_star(x, y, 1.2 * radius)
    raise ConfigError(f"unknown shape {shape!r}; this world has {', '.join(SHAPES)}")


def _inside_star(x: NDArray[np.float64], y: NDArray[np.float64], outer: float) -> NDArray[np.bool_]:
    """A five-pointed star, one point up: by symmetry one edge, from a tip to the next notch, decides."""
    tenth = np.pi / 5
    notch = 0.45 * outer
    angle = np.abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)
    px, py = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    nx, ny = notch * np.cos(tenth), notch * np.sin(tenth)
    return (nx - outer) * py - ny * (px - outer) >= 0


@lru_cache(maxsize=256)
def coverage(shape: str, radius: float) -> NDArray[np.float32]:
    """How much of each pixel the shape covers, (30, 30) in [0, 1], its centre in the middle. Read-only."""
    axis = (np.arange(2 * _HALF * _SUPERSAMPLE) + 0.5) / _SUPERSAMPLE - _HALF
    y, x = np.meshgrid(axis, axis, indexing="ij")
    fine = inside(shape, x, y, radius).astype(np.float32)
    mask = fine.reshape(2 * _HALF, _SUPERSAMPLE, 2 * _HALF, _SUPERSAMPLE).mean((1, 3))
    mask.setflags(write=False)
    return mask


def render(scene: Scene) -> NDArray[np.uint8]:
    """The picture, (64, 64, 3) uint8, antialiased; the same scene always gives the same bytes."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for thing, (cx, cy) in zip(scene.things, scene.centres(), strict=True):
        alpha = coverage(thing.shape, SIZES[thing.size])[..., None]
        patch = image[cy - _HALF : cy + _HALF, cx - _HALF : cx + _HALF]
        patch += alpha * (np.asarray(COLOURS[thing.colour], np.float32) - patch)
    return np.rint(image).astype(np.uint8)


def sample_scene(rng: np.random.Generator, split: Split = "train", objects: int | None = None) -> Scene:
    """A random scene.

    ``train``: no held-out combination, and its caption is not reserved. ``any``: whatever the world can show.
    ``heldout``: two objects, at least one in a held-out combination. ``objects`` fixes their number; by default one
    scene in four has a single object.
    """
    if split not in ("train", "any", "heldout"):
        raise ConfigError(f"unknown split {split!r}; expected 'train', 'any' or 'heldout'")
    if objects not in (None, 1, 2) or (split == "heldout" and objects == 1):
        raise ConfigError(f"a scene of split {split!r} cannot have {objects} objects; expected 1 or 2 (heldout: 2)")
    while True:
        count = 2 if split == "heldout" else objects or (1 if rng.random() < 0.25 else 2)
        scene = _draw(rng, count)
        if split == "any" or scene.is_heldout() == (split == "heldout"):
            if split != "train" or not reserved(scene.caption()):
                return scene


def _draw(rng: np.random.Generator, count: int) -> Scene:
    """A uniformly random scene; both objects of a pair equal in shape and colour are drawn again."""
    relation = None if count == 1 else RELATIONS[rng.integers(4)]
    spread = {None: (2, 2), "left of": (1, 2), "right of": (1, 2), "above": (2, 1), "below": (2, 1)}[relation]
    while True:
        things = tuple(_draw_thing(rng, spread) for _ in range(count))
        if count == 1 or (things[0].shape, things[0].colour) != (things[1].shape, things[1].colour):
            break
    return Scene(things, relation, tuple(BACKGROUNDS)[rng.integers(3)], bool(rng.random() < 0.5))


def _draw_thing(rng: np.random.Generator, spread: tuple[int, int]) -> Thing:
    dx, dy = (int(rng.integers(-s, s + 1)) for s in spread)
    colour, size = tuple(COLOURS)[rng.integers(6)], tuple(SIZES)[rng.integers(2)]
    return Thing(SHAPES[rng.integers(4)], colour, size, (dx, dy), bool(rng.random() < 0.5))


def captions_of(scene: Scene) -> tuple[str, ...]:
    """Every caption that is true of the scene: each size and the background said or not (4 or 8 of them)."""
    flags: list[tuple[bool, ...]] = [()]
    for _ in range(len(scene.things) + 1):
        flags = [(*f, said) for f in flags for said in (False, True)]
    return tuple(
        replace(
            scene,
            things=tuple(replace(t, says_size=s) for t, s in zip(scene.things, f, strict=False)),
            says_background=f[-1],
        ).caption()
        for f in flags
    )
