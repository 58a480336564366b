"""The language of the embedded world: its grammar, its words, and the prompts that are kept for testing.

caption    = thing [relation thing] ["on a" background "background"]
thing      = "a" [size] colour shape
relation   = "left of" | "right of" | "above" | "below"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

import numpy as np

from ..errors import ConfigError
from .scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, reserved, sample_scene

WORDS = ("a", *SIZES, *COLOURS, *SHAPES, "left", "right", "of", "above", "below", "on", *BACKGROUNDS, "background")
"""Every word of the world; upper and lower case are the same."""

_THING = rf"a (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_GRAMMAR = re.compile(rf"{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})?(?: on a ({'|'.join(BACKGROUNDS)}) background)?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caption asks of one object; ``size`` is None when it is not said."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a caption asks of a picture; None where nothing is said."""

    things: tuple[Wanted, ...]
    relation: str | None = None
    background: str | None = None


def normalise(text: str) -> str:
    """Lower case, single blanks, no punctuation at the end."""
    return " ".join(text.lower().split()).rstrip(" .!,")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


def unknown_words(text: str) -> list[str]:
    """The words the world does not know, in order, each once; empty when it knows all of them."""
    known = set(WORDS)
    return [word for word in dict.fromkeys(words_of(text)) if word not in known]


def parse_caption(text: str) -> Request:
    """What the caption requires of a picture.

    Raises ConfigError, with three captions that work, when the text has words from outside the world, is not in the
    grammar, or asks for two objects that are equal in shape and colour.
    """
    match = _GRAMMAR.fullmatch(normalise(text))
    if match is None:
        raise ConfigError(_explain(text))
    size1, colour1, shape1, relation, size2, colour2, shape2, background = match.groups()
    things = (Wanted(shape1, colour1, size1),)
    if relation is not None:
        if (shape1, colour1) == (shape2, colour2):
            raise ConfigError(f"{text!r} asks for two equal objects, which this world never shows; {_suggest(text)}")
        things += (Wanted(shape2, colour2, size2),)
    return Request(things, relation, background)


def _explain(text: str) -> str:
    unknown = unknown_words(text)
    if unknown:
        return f"{text!r} has words this model has never seen: {', '.join(unknown)}; {_suggest(text)}"
    return f"{text!r} is not a sentence of this model's world; {_suggest(text)}"


def _suggest(text: str) -> str:
    return "try " + ", ".join(repr(prompt) for prompt in nearest_prompts(text))


def nearest_prompts(text: str, n: int = 3) -> list[str]:
    """``n`` prompts that work and look like ``text``, nearest first; deterministic.

    Words that the world knows are kept where the grammar allows it; the rest is filled in.
    """
    words = words_of(text)
    colours = [w for w in words if w in COLOURS] + ["red", "blue", "green"]
    shapes = [w for w in words if w in SHAPES]
    sizes = [w for w in words if w in SIZES]
    relations = [r for r in RELATIONS if r.split()[0] in words] + ["above", "left of"]
    grounds = [w for w in words if w in BACKGROUNDS]
    more = [s for s in ("circle", "square", "star") if s not in shapes]
    first, second = (shapes + more)[:2]
    size = f"{sizes[0]} " if sizes else ""
    end = f" on a {grounds[0]} background" if grounds else ""
    other = next(c for c in (*colours[1:], *COLOURS) if c != colours[0])
    candidates = [
        f"a {size}{colours[0]} {first}{end}",
        f"a {size}{colours[0]} {first} {relations[0]} a {other} {second}{end}",
        f"a {size}{colours[0]} {first} on a {grounds[0] if grounds else 'black'} background",
        f"a {size}{other} {second}{end}",
        f"a {colours[0]} {first} {relations[1]} a {other} {second}{end}",
    ]
    fresh = [c for c in dict.fromkeys(candidates) if c != normalise(text)]
    return sorted(fresh, key=lambda c: -SequenceMatcher(None, normalise(text), c).ratio())[:n]


def prompts(kind: str, n: int) -> list[str]:
    """``n`` test prompts that no training step ever saw, always the same for the same kind.

    ``one``: one object. ``two``: two objects in combinations that were trained on, reserved captions.
    ``heldout``: two objects, at least one where it is never seen in training. Only about 30 distinct prompts of kind
    ``one`` exist; the list then starts again, so give each prompt its own seed.
    """
    if kind not in ("one", "two", "heldout"):
        raise ConfigError(f"unknown kind of prompts {kind!r}; expected 'one', 'two' or 'heldout'")
    if n < 1:
        raise ConfigError(f"got n = {n}; expected at least one prompt")
    distinct = _test_prompts(kind)
    return [distinct[i % len(distinct)] for i in range(n)]


@lru_cache(maxsize=3)
def _test_prompts(kind: str, most: int = 1000) -> tuple[str, ...]:
    """Up to ``most`` distinct test prompts of a kind, in random but fixed order."""
    rng = np.random.default_rng(("one", "two", "heldout").index(kind))
    found: dict[str, None] = {}
    for _ in range(20 * most):
        scene = _test_scene(rng, kind)
        if scene is not None:
            found.setdefault(scene.caption())
        if len(found) == most:
            break
    return tuple(found)


def _test_scene(rng: np.random.Generator, kind: str) -> Scene | None:
    """A scene whose caption may be a test prompt, or None when the draw is of no use."""
    if kind == "heldout":
        return sample_scene(rng, "heldout")
    scene = sample_scene(rng, "any", objects=1 if kind == "one" else 2)
    return scene if reserved(scene.caption()) and not scene.is_heldout() else None
