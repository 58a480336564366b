"""What ``--model`` names: found, checked and fingerprinted without importing torch."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..models import DEFAULT_SCALE, EMBEDDED, embedded
from .safetensors_head import head_length

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SMALL = 1 << 26  # files up to 64 MB are hashed whole
_BLOCK, _BLOCKS = 1 << 16, 64
_MAX_CONFIG = 1 << 20
OF_PIXELS = ("DDPMPipeline", "DDIMPipeline")  # those of samplers.backbones, which needs torch


@dataclass(frozen=True)
class ModelRef:
    """A model before it is loaded.

    name: what metadata may say (never a path).       location: what the loader opens.
    fingerprint: of a local model's files: configs and small files whole, large weights by size and samples.
    """

    kind: str  # "embedded", "folder", "file" or "hub"
    name: str
    location: str
    fingerprint: str | None = None
    variant: str | None = None
    revision: str | None = None

    @property
    def default_scale(self) -> float | None:
        """The guidance scale to use where none is given; None leaves it to the model's family."""
        return DEFAULT_SCALE if self.kind == "embedded" else None

    @property
    def words(self) -> list[str]:
        """The options that choose it on a command line; none for the default."""
        if self.kind == "embedded" and self.name == "tiny-sd":
            return []
        words = ["-m", self.name if self.kind == "embedded" else self.location]
        words += [] if self.variant is None else ["--variant", self.variant]
        return words + ([] if self.revision is None else ["--revision", self.revision])

    def identity(self) -> dict[str, str]:
        """For metadata and for recognising the same run again."""
        fields = {
            "name": self.name,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "variant": self.variant,
            "revision": self.revision,
        }
        return {key: value for key, value in fields.items() if value is not None}


def find_model(model: str, variant: str | None = None, revision: str | None = None) -> ModelRef:
    """The model called `model`: an embedded name, a diffusers folder, a .safetensors file or a hub id."""
    ref = _find(model, variant, revision)
    if revision is not None and ref.kind != "hub":
        raise ConfigError(f"--revision belongs to models on the hub; {ref.name} is here (--model {ref.kind})")
    if variant is not None and ref.kind in ("file", "embedded"):
        raise ConfigError("--variant belongs to folders and hub models, whose weights may come in several precisions")
    return ref


def _find(model: str, variant: str | None, revision: str | None) -> ModelRef:
    if model in EMBEDDED:
        folder = embedded(model)
        return ModelRef("embedded", model, str(folder), _fingerprint(_files(folder)))
    path = Path(model)
    try:
        if path.is_dir():
            _check_folder(path)
            name = path.resolve().name or "model"
            return ModelRef("folder", name, model, _fingerprint(_files(path)), variant)
        if path.is_file():
            _check_file(path)
            return ModelRef("file", path.stem, model, _fingerprint([path]))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--model {model!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if _HUB_ID.fullmatch(model) and path.suffix not in (*PICKLES, ".safetensors"):
        return ModelRef("hub", model, model, None, variant, revision)
    close = get_close_matches(model, EMBEDDED, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(
        f"--model {model!r} does not exist: expected an embedded model ({', '.join(EMBEDDED)}), a diffusers folder, "
        f"a .safetensors file or a hub id like owner/name{hint}"
    )


def _check_folder(path: Path) -> None:
    index = path / "model_index.json"
    if not index.is_file():
        raise ConfigError(f"--model {str(path)!r} is a folder without model_index.json: expected a diffusers pipeline")
    if index.stat().st_size > _MAX_CONFIG:
        raise ConfigError(f"--model {str(path)!r}: its model_index.json is too large to be one")
    try:
        value = json.loads(index.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("_class_name"), str):
        raise ConfigError(f"--model {str(path)!r}: its model_index.json is not that of a diffusers pipeline")


def _check_file(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise ConfigError(
            f"--model {path.name!r} is a pickled checkpoint, which can run code when opened: convert it to "
            ".safetensors where you trust it"
        )
    if suffix != ".safetensors":
        raise ConfigError(f"--model {path.name!r} is no model: expected a diffusers folder or a .safetensors file")
    head_length(path, "--model")


def is_of_pixels(ref: ModelRef) -> bool:
    """Whether a local folder's model has no autoencoder: it makes pixels, without text."""
    return ref.kind == "folder" and _index(Path(ref.location)).get("_class_name") in OF_PIXELS


def channels_of(ref: ModelRef) -> Any:
    """Of the pictures of a model of pixels, as its config says."""
    return _config(Path(ref.location) / "unet").get("in_channels")


def size_multiple(ref: ModelRef) -> int | None:
    """What sizes must be a multiple of, if a local folder's configs say so."""
    part = "unet" if is_of_pixels(ref) else "vae"
    return _resolutions(Path(ref.location) / part) if ref.kind in ("embedded", "folder") else None


def least_side(ref: ModelRef) -> int | None:
    """The smallest height or width, if a local folder's configs say so."""
    factor = size_multiple(ref)
    return factor if is_of_pixels(ref) else factor and factor * (_resolutions(Path(ref.location) / "unet") or 1)


def default_size(ref: ModelRef) -> tuple[int, int] | None:
    """(height, width) that a local U-Net was trained at, if its configs say so."""
    factor = size_multiple(ref)
    side: Any = _config(Path(ref.location) / "unet").get("sample_size") if factor else None
    sides: list[Any] = side if isinstance(side, list) else [side, side]
    if factor is None or len(sides) != 2 or not all(isinstance(s, int) and 0 < s <= 8192 for s in sides):
        return None
    unit = 1 if is_of_pixels(ref) else factor  # of a state
    return sides[0] * unit, sides[1] * unit


def check_size(ref: ModelRef, height: int | None, width: int | None) -> None:
    """Sizes that a local folder's configs rule out; the loaded model has the last word."""
    factor = size_multiple(ref)
    if factor is None:
        return
    least = least_side(ref) or factor
    for option, value in (("--height", height), ("--width", width)):
        if value is not None and (value % factor or value < least):
            below = max(value // factor * factor, least)
            raise ConfigError(
                f"{option} must be a multiple of {factor}, and at least {least}, for {ref.name}, got {value}; "
                f"try {below}"
            )


def _resolutions(part: Path) -> int | None:
    """The first resolution of a network by its last, if its config says so."""
    blocks = _config(part).get("block_out_channels")
    return 2 ** (len(blocks) - 1) if isinstance(blocks, list) and 0 < len(blocks) <= 10 else None


def _config(part: Path) -> dict[str, Any]:
    """The config of a part of a pipeline; empty where there is none that can be read."""
    return _object(part / "config.json")


def _index(folder: Path) -> dict[str, Any]:
    return _object(folder / "model_index.json")


def _object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _files(folder: Path) -> list[Path]:
    wanted = (".json", ".txt", ".safetensors")
    found = [p for pattern in ("*", "*/*") for p in folder.glob(pattern) if p.suffix in wanted and p.is_file()]
    return sorted(found)[:1000]


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.parent.name if len(files) > 1 else ''}/{path.name}:{size}\n".encode())
        with path.open("rb") as stream:
            if size <= _SMALL:
                digest.update(stream.read())
                continue
            for k in range(_BLOCKS):
                stream.seek(k * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()[:16]
