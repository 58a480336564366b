"""Reading a record that anybody may have written: strict types, finite numbers in their ranges, text that is text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeGuard

from ..errors import ConfigError
from . import checks

FORMAT = 1
_MAX_EVALUATIONS = 1_000_000
_MAX_DEPTH = 8


def parse(text: str, name: str) -> dict[str, Any]:
    """The record in `text`. ConfigError, in one line, unless it is well formed.

    Fields that this version does not know are kept, if JSON can say them again.
    """
    try:
        fields = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        raise ConfigError(f"{name} has a fewstep chunk that is no JSON") from None
    found = fields.get("format") if isinstance(fields, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found != FORMAT:
        shown = ascii(found)[:22] if isinstance(found, str | int | float | None) else f"a {type(found).__name__}"
        raise ConfigError(f"{name} has metadata of format {shown}; this fewstep reads format {FORMAT}")
    needed, optional, is_batch = _FIELDS, _OPTIONAL, _is_batch
    if fields.get("command") == "restore":
        from . import restore_record

        needed, optional, is_batch = restore_record.FIELDS, restore_record.OPTIONAL, restore_record.is_batch
    wrong = [key for key, is_good in needed.items() if not is_good(fields.get(key))]
    wrong += [key for key, is_good in optional.items() if key in fields and not is_good(fields[key])]
    if not wrong and not is_batch(fields["batch"], fields):
        wrong = ["batch"]
    if not wrong and not (_is_plain(fields) and is_text(fields.get("commit", ""))):
        wrong = ["a value"]
    if wrong:
        raise ConfigError(f"{name} has fewstep metadata in which {', '.join(wrong[:5])} cannot be read")
    return fields


def refuse_constant(name: str) -> Any:
    """For json.loads: Python reads NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name} is no JSON")


def is_whole(value: object, low: int, high: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_text(value: object) -> bool:
    """What the command line would take as a prompt."""
    try:
        return isinstance(value, str) and checks.text(value, "text") == value
    except ConfigError:
        return False


def whole(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: is_whole(value, low, high)


def _is_scale(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= 1000  # false for NaN; whole numbers of any length compare


def is_model(value: object) -> bool:
    return isinstance(value, dict) and {"name", "kind"} <= value.keys() and all(map(is_text, value.values()))


def _is_batch(batch: dict[str, Any], fields: dict[str, Any]) -> bool:
    """The batch, and that this picture is in it: the command makes the batch."""
    size, row = batch.get("size"), batch.get("row")
    if not (is_whole(size, 1, checks.MAX_BATCH) and is_whole(row, 0, size - 1)):
        return False
    if size == 1:
        return True
    prompts, seed = batch.get("prompts"), batch.get("seed")
    if not (isinstance(prompts, list) and len(prompts) == size and all(map(is_text, prompts))):
        return False
    return is_whole(seed, 0, checks.MAX_SEED) and seed + row == fields["seed"] and prompts[row] == fields["prompt"]


def is_file(value: object, digest: str, *more: str) -> bool:
    """A file by name and digest."""
    if not (isinstance(value, dict) and {digest, *more} <= value.keys()):
        return False
    return bool(re.fullmatch(r"[0-9a-f]{16,64}", str(value[digest]))) and all(is_text(value[key]) for key in more)


def _is_lora(value: Any) -> bool:
    weight = value.get("weight") if is_file(value, "sha256", "name") else None
    return isinstance(weight, int | float) and not isinstance(weight, bool) and abs(weight) <= 100


def _is_policy(value: object) -> bool:
    """A policy by name, or a file of one."""
    return isinstance(value, dict) and is_file({"digest": "0" * 16, **value}, "digest", "name")


def _is_plain(value: object, depth: int = _MAX_DEPTH) -> bool:
    """Whether JSON can say it again: no 1e999, no half of a surrogate pair, no tower of brackets."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(k, 0) and _is_plain(v, depth - 1) for k, v in value.items())
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(v, depth - 1) for v in value)
    if isinstance(value, str):
        return not re.search("[\ud800-\udfff]", value)
    return not isinstance(value, float) or math.isfinite(value)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "run": is_text,
    "index": whole(0, checks.MAX_IMAGES - 1),
    "model": is_model,
    "prompt": is_text,
    "negative_prompt": lambda value: value is None or is_text(value),
    "solver": is_text,
    "schedule": is_text,
    "steps": whole(1, checks.MAX_STEPS),
    "seed": whole(0, checks.MAX_SEED),
    "dtype": is_text,
    "guidance_scale": _is_scale,
    "height": whole(1, checks.MAX_SIDE),
    "width": whole(1, checks.MAX_SIDE),
    "device": is_text,
    "batch": lambda value: isinstance(value, dict),
    "evaluations": whole(1, _MAX_EVALUATIONS),
    "nfe": whole(1, _MAX_EVALUATIONS),
    "versions": lambda value: isinstance(value, dict) and all(map(is_text, value.values())),
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "budget": whole(1, checks.MAX_NFE),
    "table": lambda value: is_file(value, "digest", "name"),
    "init_image": lambda value: is_file(value, "sha256"),
    "strength": lambda value: _is_scale(value) and 0 < value <= 1,
    "loras": lambda value: isinstance(value, list) and 0 < len(value) <= 16 and all(map(_is_lora, value)),
    "offload": lambda value: value in checks.OFFLOADS,
    "guidance": _is_policy,
}
