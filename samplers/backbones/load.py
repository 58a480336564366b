"""From a name to a loaded Backbone: diffusers folder, hub id, or a single .safetensors file. Never from a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError, FewstepError, IncompatibleError
from ..from_config import parametrisation_from_config, schedule_from_config
from ..levels import DiscreteVP, NoiseSchedule
from ..prediction import EPS, Parametrisation
from .base import Backbone
from .placement import apply_loras, check_offload, place
from .sd import StableDiffusion
from .sdxl import StableDiffusionXL
from .unet2d import UNet2D

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
MAX_CONFIG_BYTES = 1 << 20
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Pipeline class in model_index.json -> the class that is loaded in its place, and its Backbone.
FAMILIES: dict[str, tuple[str, Any]] = {
    "StableDiffusionPipeline": ("StableDiffusionPipeline", StableDiffusion),
    "StableDiffusionImg2ImgPipeline": ("StableDiffusionPipeline", StableDiffusion),
    "StableDiffusionXLPipeline": ("StableDiffusionXLPipeline", StableDiffusionXL),
    "StableDiffusionXLImg2ImgPipeline": ("StableDiffusionXLPipeline", StableDiffusionXL),
    "DDPMPipeline": ("DDPMPipeline", UNet2D),
    "DDIMPipeline": ("DDIMPipeline", UNet2D),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def backbone_of(pipe: Any) -> Backbone:
    """The Backbone over a live diffusers pipeline. IncompatibleError for a family that has none."""
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise IncompatibleError(f"{name} is not supported here; supported pipelines: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name][1].of(pipe)


def load_backbone(
    model: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    variant: str | None = None,
    revision: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
    offload: str | None = None,
) -> Backbone:
    """Load a model.

    model: diffusers folder, hub id "owner/name", or a single .safetensors file.
    dtype: float32, float16, bfloat16.       device: "cpu", "cuda", "cuda:1", "mps".
    variant, revision: as in diffusers (hub ids and folders).
    loras: (path, weight) each, see placement.apply_loras.
    offload: "model" keeps the parts in the CPU's memory and moves each to `device` while it is used.
    ConfigError (one line) for what is not there, not readable, not safe; IncompatibleError for another kind of model.
    """
    where, precision = check_device(device), check_dtype(dtype)
    check_offload(offload, where.type)
    load = _load_file if check_model(model) == "file" else _load_folder_or_hub
    read_schedule(model, revision=revision)  # a config that cannot be is refused before any weight is read
    try:
        pipe = load(model, precision, variant, revision)
    except FewstepError:
        raise
    except Exception as error:  # whatever a library raises on a broken model, the user needs one line
        raise ConfigError(f"the model {_shown(model)} could not be loaded: {_first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    apply_loras(pipe, loras)
    return backbone_of(place(pipe, where, offload))


def read_schedule(model: str, *, revision: str | None = None) -> tuple[NoiseSchedule, Parametrisation]:
    """The noise schedule and parametrisation of a model, from its scheduler config alone: no weights are loaded.

    A single .safetensors file does not say; Stable Diffusion's schedule and eps are assumed, as loaders do.
    """
    kind = check_model(model)
    if kind == "file":
        return DiscreteVP.scaled_linear(), EPS
    if kind == "folder":
        config = _read_json(Path(model) / "scheduler" / "scheduler_config.json")
    else:
        try:
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(model, "scheduler/scheduler_config.json", revision=revision)
        except Exception as error:
            raise ConfigError(f"no scheduler config of {model!r} could be fetched: {_first_line(error)}") from error
        config = _read_json(Path(path))
    return schedule_from_config(config), parametrisation_from_config(config)


def check_model(model: str) -> str:
    """ "folder", "file" or "hub"; ConfigError for anything else, before a weight is read."""
    path = Path(model)
    if path.is_dir():
        _check_folder(path)
        return "folder"
    if path.suffix.lower() in PICKLES:
        raise ConfigError(
            f"{path.name} is a pickled checkpoint, which can run code when opened; convert it to .safetensors first "
            "(load it where you trust it and save it with safetensors.torch.save_file)"
        )
    if path.is_file():
        _check_safetensors(path)
        return "file"
    if path.suffix.lower() == ".safetensors" or path.is_absolute() or not _HUB_ID.fullmatch(model):
        raise ConfigError(
            f"there is no model {_shown(model)}: expected a diffusers folder, a .safetensors file or a hub id like "
            "owner/name (embedded models: the folder that fewstep.models.embedded(name) gives)"
        )
    return "hub"


def check_device(device: str) -> torch.device:
    """The device, if it exists here; else ConfigError."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: expected cpu, cuda, cuda:N or mps") from error
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (place.index or 0) >= count:
            raise ConfigError(f"device {device!r} is not there: {count} CUDA devices were found; use --device cpu")
    elif place.type == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError("device 'mps' is not there; use --device cpu")
    elif place.type != "cpu":
        raise ConfigError(f"device {device!r} is not supported: expected cpu, cuda, cuda:N or mps")
    return place


def check_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of one of the three names, else ConfigError."""
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: expected {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _load_folder_or_hub(model: str, dtype: torch.dtype, variant: str | None, revision: str | None) -> Any:
    import diffusers

    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "variant": variant}
    if Path(model).is_dir():
        name = str(_read_json(Path(model) / "model_index.json")["_class_name"])
        options["local_files_only"] = True
    else:
        index: Any = diffusers.DiffusionPipeline.load_config(model, revision=revision)
        name, options["revision"] = str(index["_class_name"]), revision
    if name not in FAMILIES:
        raise IncompatibleError(f"{_shown(model)} is a {name}; supported: {', '.join(sorted(FAMILIES))}")
    return getattr(diffusers, FAMILIES[name][0]).from_pretrained(model, **options)


def _load_file(model: str, dtype: torch.dtype, variant: str | None, revision: str | None) -> Any:
    import diffusers

    if variant or revision:
        raise ConfigError("variant and revision belong to folders and hub ids, not to a single .safetensors file")
    name = "StableDiffusionXLPipeline" if _is_sdxl(Path(model)) else "StableDiffusionPipeline"
    return getattr(diffusers, name).from_single_file(model, dtype=dtype)


def _is_sdxl(path: Path) -> bool:
    return any(key.startswith("conditioner.embedders.1.") for key in _safetensors_keys(path))


def _check_folder(path: Path) -> None:
    if not (path / "model_index.json").is_file():
        raise ConfigError(f"the folder {path.name} is no diffusers pipeline: it has no model_index.json")
    index = _read_json(path / "model_index.json")
    name = index.get("_class_name")
    if name not in FAMILIES:
        raise IncompatibleError(f"the folder {path.name} holds a {name}; supported: {', '.join(sorted(FAMILIES))}")
    for part in ("unet",) if FAMILIES[name][1] is UNet2D else ("unet", "vae", "text_encoder"):
        files = list((path / part).glob("*")) if (path / part).is_dir() else []
        safe = [file for file in files if file.suffix == ".safetensors"]
        if not safe:
            pickled = any(file.suffix in PICKLES for file in files)
            what = "has only pickled weights; convert them to .safetensors" if pickled else "has no safetensors weights"
            raise ConfigError(f"the folder {path.name} cannot be used: its {part} {what}")
        for file in safe:
            _check_safetensors(file)


def _check_safetensors(path: Path) -> None:
    if path.suffix.lower() != ".safetensors":
        raise ConfigError(f"{path.name} is no .safetensors file; a model is a folder, a .safetensors file or a hub id")
    _safetensors_keys(path)


def _safetensors_keys(path: Path) -> list[str]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except Exception as error:
        raise ConfigError(f"{path.name} is not a readable .safetensors file: {_first_line(error)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path.name} is too large to be a config")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, FewstepError):
            raise
        raise ConfigError(f"{path.name} of the model cannot be read: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path.name} of the model is no JSON object")
    return value


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _shown(model: str) -> str:
    """The model as a message may show it: a path by its last part."""
    return repr(Path(model).name if Path(model).is_absolute() else model)
