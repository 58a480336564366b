"""Policies on disk: float64 safetensors and a strict JSON header. Loading gives the same policy or refuses.

One file holds one policy and what it was made for. Header: "policy" is {"class": ..., the fields of the class that are
no tensors}, "made_for" the fields of MadeFor. Tensors: "levels" [ticks, 3] and "weights" [n] of MadeFor; of LinearAG,
"tick.I" [n] the coefficients of tick I over the registers that the header names. Nothing of a file is believed before
it was checked, and then the class's own checks have the last word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch

from ..errors import ConfigError
from ..samplers import Level, Policy
from ..samplers.grids import MAX_STEPS
from ..samplers.safe_file import Kind
from .fingerprint import NUMBERS, Fingerprint
from .made_for import EMPTY, GIVEN, MadeFor
from .space import Space

KIND = Kind("policy file", "fewstep-policy", 1, "fewstep calibrate or fewstep search", max_header=4 << 20)
MAX_TICKS = MAX_STEPS
MAX_REGISTERS = 2 * MAX_TICKS
_TICK = re.compile(r"tick\.(\d{1,5})")
_REGISTER = re.compile(r"cond|(?:cond|uncond)@\d{1,5}")
_SHORT = 1000

Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    """Finite; JSON's 1e999 is infinite, and its whole numbers may have any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TICKS


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _SHORT and value.isprintable()


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _or_several(check: Check) -> Check:
    return lambda value: check(value) or _several(check)(value)


def _several(check: Check) -> Check:
    return lambda value: isinstance(value, list) and 0 < len(value) <= MAX_TICKS and all(map(check, value))


def _among(*allowed: str) -> Check:
    return lambda value: value in allowed


def _is_schedule(value: Any) -> bool:
    plain = isinstance(value, dict) and len(value) <= 32 and isinstance(value.get("kind"), str)
    return plain and all(map(_is_text, value)) and all(_is_text(v) or _is_number(v) for v in value.values())


_SCALE = _or_none(_or_several(_is_number))
# The module and fields of every class that a file may hold.
POLICIES: dict[str, tuple[str, dict[str, Check]]] = {
    "CFG": ("cfg", {"scale": _SCALE, "rescale": _is_number}),
    "Interval": ("interval", {
        "scale": _SCALE, "start": _is_number, "stop": _is_number,
        "sigma": _or_none(lambda value: _several(_is_number)(value) and len(value) == 2),
    }),
    "AdaptiveGuidance": ("adaptive", {
        "threshold": _is_number, "scale": _SCALE, "space": _is_text, "rule": _is_text, "lag": _is_whole,
        "min_steps": _is_whole, "max_fraction": _is_number, "batch": _is_text, "on_switch": _is_text,
        "lower_order": _is_flag,
    }),
    "DeltaReuse": ("delta_reuse", {"scale": _SCALE, "stop": _is_number, "gain": _or_several(_is_number)}),
    "LinearAG": ("linear", {"kinds": _several(_is_text), "scale": _SCALE}),
    "SearchedPolicy": ("searched", {"choices": _several(lambda value: _is_text(value) or _is_number(value))}),
}  # fmt: skip
_MADE_FOR: dict[str, Check] = {
    "model": _or_none(_is_text),
    "weights": _or_none(lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{16}", value))),
    "prediction": _or_none(_is_text),
    "schedule": _or_none(_is_schedule),
    "solver": _or_none(_is_text),
    "steps": _or_none(lambda value: _is_whole(value) and value > 0),
    "scale": _or_none(lambda value: _is_number(value) and value >= 0),
    "space": _or_none(_among(*get_args(Space))),
    "negative": _or_none(_among(EMPTY, GIVEN)),
    "calibrated_on": _or_none(_is_text),
}
# A policy whose numbers belong to the ticks of one run is of no use without these.
_NEEDED = ("prediction", "schedule", "solver", "steps", "scale", "negative", "levels")


def save(policy: Policy, path: str | PathLike[str], made_for: MadeFor) -> None:
    """Write a policy. ConfigError for one that a file cannot hold. The file appears whole or not at all."""
    KIND.write(path, encode(policy, made_for))


def encode(policy: Any, made_for: MadeFor) -> bytes:
    """The file's bytes."""
    from safetensors.torch import save as to_bytes

    name = type(policy).__name__
    if name not in POLICIES or type(policy) is not _class(name):
        raise ConfigError(f"a policy file holds one of {', '.join(POLICIES)}, got {policy!r}")
    head: dict[str, Any] = {"class": name, **{field: getattr(policy, field) for field in POLICIES[name][1]}}
    tensors: dict[str, torch.Tensor] = {}
    if name == "LinearAG":
        head["registers"] = {}
        for tick, line in policy.coefficients.items():
            head["registers"][str(tick)] = list(line)
            tensors[f"tick.{tick}"] = torch.tensor(list(line.values()), dtype=torch.float64)
    told = {field: getattr(made_for, field) for field in _MADE_FOR}
    told["schedule"] = None if made_for.schedule is None else dict(made_for.schedule)
    told["weights"] = made_for.weights and made_for.weights.digest
    if made_for.weights is not None and made_for.weights.numbers:
        tensors["weights"] = torch.tensor(made_for.weights.numbers, dtype=torch.float64)
    if made_for.levels is not None:
        tensors["levels"] = torch.tensor([[float(v) for v in level] for level in made_for.levels], dtype=torch.float64)
    try:
        text = {"policy": json.dumps(head, allow_nan=False), "made_for": json.dumps(told, allow_nan=False)}
    except ValueError as error:
        raise ConfigError(f"{name} has a number that a file cannot hold: {error}") from error
    return to_bytes(tensors, {**KIND.marks, **text})


def load(path: str | PathLike[str]) -> tuple[Policy, MadeFor]:
    """Read a policy. ConfigError for a file that is none, IncompatibleError for another version."""
    where = Path(path)
    metadata, tensors = KIND.read(where, lambda file: _check_entries(file, where))
    if unknown := set(metadata) - {"policy", "made_for", *KIND.marks}:
        raise KIND.refuse(where, f"its header has an unknown key {min(unknown)[:40]!r}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64 or not bool(torch.isfinite(tensor).all()):
            raise KIND.refuse(where, f"its entry {name} has a number that is not finite or not float64")
    head = _object(metadata.get("policy", ""), where, "a policy")
    made_for = _made_for(_object(metadata.get("made_for", ""), where, "what it was made for"), tensors, where)
    policy = _policy(head, tensors, where)
    _check_together(policy, made_for, where)
    return policy, made_for


def _check_entries(file: Any, path: Path) -> None:
    """Nothing but small entries of the known names."""
    for name in file.keys():
        shape = file.get_slice(name).get_shape()
        most = {"levels": MAX_TICKS, "weights": NUMBERS}.get(name, MAX_REGISTERS if _TICK.fullmatch(name) else -1)
        if most < 0:
            raise KIND.refuse(path, f"it has an entry {name[:40]!r}")
        if len(shape) != (2 if name == "levels" else 1) or not 1 <= shape[0] <= most or shape[1:] not in ([], [3]):
            raise KIND.refuse(path, f"its entry {name} has the shape {shape}")


def _object(text: str, path: Path, describes: str) -> dict[str, Any]:
    value = KIND.header(text, path, describes)
    if not isinstance(value, dict):
        raise KIND.refuse(path, f"its header does not describe {describes}")
    return value


def _check_fields(found: Mapping[str, Any], checks: Mapping[str, Check], path: Path) -> None:
    """Exactly these keys, with values of these kinds."""
    for key in found:
        if key not in checks:
            raise KIND.refuse(path, f"its header has an unknown key {key[:40]!r}")
    for key, is_good in checks.items():
        if key not in found:
            raise KIND.refuse(path, f"its header lacks {key!r}")
        if not is_good(found[key]):
            raise KIND.refuse(path, f"its header has {key} = {str(found[key])[:60]!r}")


def _policy(head: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path) -> Policy:
    name = head.pop("class", None)
    if not isinstance(name, str) or name not in POLICIES:
        raise KIND.refuse(path, f"it holds {str(name)[:40]!r}, which is none of {', '.join(POLICIES)}")
    checks = POLICIES[name][1]
    lines = _registers(head, tensors, path) if name == "LinearAG" else {}
    ticks = {key for key in tensors if _TICK.fullmatch(key)}
    if ticks != {f"tick.{tick}" for tick in lines}:
        raise KIND.refuse(path, "its coefficients and the registers in its header are of different ticks")
    _check_fields(head, checks, path)
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in head.items()}
    if name == "LinearAG":
        fields["coefficients"] = lines
    try:
        return _class(name)(**fields)
    except ConfigError as error:
        raise KIND.refuse(path, str(error)) from error


def _registers(head: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path) -> dict[int, dict[str, float]]:
    """Tick -> register -> coefficient."""
    named = head.pop("registers", None)
    if not isinstance(named, dict):
        raise KIND.refuse(path, "its header lacks 'registers'")
    found = {}
    for tick, names in named.items():
        tensor = tensors.get(f"tick.{tick}") if re.fullmatch(r"0|[1-9]\d{0,4}", tick) else None
        fits = isinstance(names, list) and tensor is not None and len(names) == tensor.shape[0]
        good = fits and all(isinstance(n, str) and _REGISTER.fullmatch(n) for n in names)
        if not good or len(set(names)) < len(names):
            raise KIND.refuse(path, f"the registers of tick {tick[:10]} do not fit its coefficients")
        assert tensor is not None
        found[int(tick)] = dict(zip(names, tensor.tolist(), strict=True))
    return found


def _made_for(told: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path) -> MadeFor:
    _check_fields(told, _MADE_FOR, path)
    digest, levels = told.pop("weights"), None
    numbers = tuple(tensors["weights"].tolist()) if "weights" in tensors else ()
    if "levels" in tensors:
        levels = tuple(Level(*line) for line in tensors["levels"].tolist())
        if any(min(level.alpha, level.sigma) < 0 or level.alpha + level.sigma <= 0 for level in levels):
            raise KIND.refuse(path, "it has a level that is no noise level")
    weights = None if digest is None else Fingerprint(digest, numbers)
    return MadeFor(**told, levels=levels, weights=weights)


def _check_together(policy: Policy, made_for: MadeFor, path: Path) -> None:
    """What a policy says of itself is what it was made for."""
    name = type(policy).__name__
    for field in ("scale", "space"):
        own, told = getattr(policy, field, None), getattr(made_for, field)
        if None not in (own, told) and not isinstance(own, tuple) and own != told:
            raise KIND.refuse(path, f"its policy has the {field} {own} and was calibrated with {told}")
    if name in ("LinearAG", "SearchedPolicy"):
        for field in _NEEDED:
            if getattr(made_for, field) is None:
                raise KIND.refuse(path, f"it does not say for which {field} its {name} was made")


def _class(name: str) -> Any:
    return getattr(import_module(f".{POLICIES[name][0]}", __package__), name)
