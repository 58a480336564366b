"""What is done to a pipeline between loading and use: LoRAs, and where its parts live."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError, IncompatibleError, MissingDependencyError

OFFLOADS = ("model",)
OFFLOAD_DEVICES = ("cuda", "mps")


def apply_loras(pipe: Any, loras: Sequence[tuple[str, float]]) -> None:
    """Add LoRAs to a pipeline, in place.

    loras: (path of a .safetensors file, weight); weight 1 applies it as it was trained. Text encoders are included
    where the file has weights for them. Errors: MissingDependencyError without peft; ConfigError for a file that cannot
    be read as a LoRA; IncompatibleError for one that has nothing for this model.
    """
    if not loras:
        return
    from diffusers.utils import is_peft_available

    if not is_peft_available():
        raise MissingDependencyError("LoRAs need the package peft: pip install peft")
    names = []
    for k, (path, _) in enumerate(loras):
        file = Path(path)
        if file.suffix.lower() != ".safetensors" or not file.is_file():
            raise ConfigError(f"the LoRA {file.name!r} is no .safetensors file that is there")
        names.append(f"lora{k}")
        try:  # from the file and not from its tensors: its metadata has the scales
            pipe.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=names[-1], use_safetensors=True,
                local_files_only=True,
            )  # fmt: skip
        except Exception as error:  # whatever a library raises on a broken file, the user needs one line
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ConfigError(f"the LoRA {file.name!r} could not be loaded: {reason}") from error
        if not any(names[-1] in there for there in pipe.get_list_adapters().values()):
            raise IncompatibleError(
                f"the LoRA {file.name!r} has no weights for this {type(pipe).__name__}: was it made for another model?"
            )
    pipe.set_adapters(names, [weight for _, weight in loras])


def place(pipe: Any, device: torch.device, offload: str | None = None) -> Any:
    """The pipeline on `device`; with offload="model" on the CPU, and each part on `device` while it is used."""
    check_offload(offload, device.type)
    if offload is None:
        return pipe.to(device)
    pipe.enable_model_cpu_offload(device=device)
    return pipe


def check_offload(offload: str | None, device_type: str) -> None:
    """ConfigError for a kind of offloading that does not exist, or a device from which nothing needs to be moved."""
    if offload is None:
        return
    if offload not in OFFLOADS:
        raise ConfigError(f"offload {offload!r} does not exist: expected {' or '.join(OFFLOADS)}")
    if device_type not in OFFLOAD_DEVICES:
        raise ConfigError(
            f"offload 'model' keeps a model's parts in the CPU's memory and moves each to the GPU while it is used; "
            f"on the device {device_type!r} there is nothing to move: leave it out, or use --device cuda"
        )


def execution_device(pipe: Any) -> torch.device:
    """Where the pipeline computes, which is not where its weights are while they are offloaded."""
    return torch.device(pipe._offload_device) if _is_offloaded(pipe) else pipe.unet.device


def require_in_place(pipe: Any) -> None:
    """IncompatibleError where parts leave the device between two uses, and with them what a gradient still needs."""
    if _is_offloaded(pipe):
        raise IncompatibleError("this pipeline offloads its parts (enable_model_cpu_offload), and restoration sends "
                                "gradients through several of them at once: load it whole onto the device")  # fmt: skip


def release(pipe: Any) -> None:
    """After the last use of a run: the part that was used last leaves the GPU, too, if parts are offloaded."""
    if _is_offloaded(pipe):
        pipe.maybe_free_model_hooks()


def _is_offloaded(pipe: Any) -> bool:
    return getattr(pipe, "_offload_device", None) is not None and hasattr(pipe.unet, "_hf_hook")
