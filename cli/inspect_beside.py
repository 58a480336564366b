"""``fewstep inspect`` of pictures made of others: grids, and what ``fewstep restore`` writes beside its samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError
from . import checks
from .record_check import is_text, is_whole, refuse_constant
from .restore_inputs import MARK

GRID = "fewstep-grid"
_KINDS = {
    "mean": "the mean of restored samples",
    "std": "the standard deviation of restored samples",
    "side-by-side": "the measurement and what was made of it, side by side",
}
_NOTE = "made of other pictures: inspect one of them for its settings and its command"


def told_of(texts: Mapping[str, str], name: str) -> tuple[dict[str, Any], dict[str, str]] | None:
    """(what the picture says of itself, for scripts; the same in words), or None if it is no such picture.

    Errors: ConfigError for a text that no run writes.
    """
    found = [(key, read) for key, read in _READERS.items() if key in texts]
    if not found:
        return None
    key, read = found[0]
    try:
        fields = json.loads(texts[key], parse_constant=refuse_constant)
        told, lines = read(fields)
    except (ValueError, RecursionError, LookupError, TypeError):
        raise ConfigError(f"{name} has a {key} chunk that cannot be read") from None
    return told, {**lines, "note": _NOTE}


def _beside(fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    first, last = fields["seeds"]
    good = is_text(fields["run"]) and all(is_whole(seed, 0, checks.MAX_SEED) for seed in (first, last))
    if not good:
        raise ValueError
    told = {"kind": fields["kind"], "run": fields["run"], "seeds": [first, last]}
    lines = {"picture": _KINDS[fields["kind"]], "run": fields["run"]}
    lines["seeds"] = str(first) if first == last else f"{first} to {last}"
    white = fields.get("white")
    if white is not None:
        if not is_whole(white, 0, 1) and not (isinstance(white, float) and 0.0 < white <= 1.0):
            raise ValueError
        told["white"], lines["white"] = white, f"{white:g} or more"
    return told, lines


def _grid(fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    files = fields["files"]
    if not (is_text(fields["run"]) and isinstance(files, list) and all(map(is_text, files))):
        raise ValueError
    if not is_whole(fields["columns"], 1, checks.MAX_IMAGES):
        raise ValueError
    told = {"kind": "grid", "run": fields["run"], "columns": fields["columns"], "files": files}
    shown = files if len(files) <= 4 else [*files[:3], "...", files[-1]]
    lines = {"picture": f"a grid of {len(files)} pictures, {fields['columns']} in a row", "run": fields["run"]}
    return told, {**lines, "files": ", ".join(shown)}


_READERS: dict[str, Callable[[Any], tuple[dict[str, Any], dict[str, str]]]] = {MARK: _beside, GRID: _grid}
