"""Training checkpoints: nested dicts of tensors and plain values, in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, safe_open, save
from torch import Tensor

from ..errors import ConfigError
from ..files import write_atomic


def save_checkpoint(path: Path, **parts: Any) -> None:
    """Write state dicts and plain values; the file appears whole or not at all.

    Tensors become entries, the structure around them JSON in the header. Dict keys are strings or whole numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(parts, tensors))
    write_atomic(path, save(tensors, {"structure": structure}))


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote, its tensors on `device`. ConfigError if there is none."""
    if not path.is_file():
        raise ConfigError(f"there is no checkpoint {path}; leave --resume out to start from the beginning")
    with safe_open(path, framework="pt") as file:
        structure = json.loads((file.metadata() or {}).get("structure", "null"))
    if structure is None:
        raise ConfigError(f"{path.name} is no checkpoint of this script")
    return _unpack(structure, load_file(path, device=str(device)))


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; each tensor is put into `tensors` and replaced by its name there."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors) for item in value]}
    return {"value": value}


def _unpack(packed: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    (kind, content), *_ = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind == "list":
        return [_unpack(item, tensors) for item in content]
    return content
