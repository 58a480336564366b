"""The metadata of a picture: enough to make it again, with no path and no secret in it.

A PNG gets two text chunks: ``fewstep`` (JSON, the record) and ``parameters`` (the one line format of A1111, which
other programs read). The record has no time in it: the same picture is the same file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .record_check import FORMAT, parse
from .settings import Item, Settings

__all__ = ["FORMAT", "KEY", "Resolved", "command", "parameters", "parse", "record", "texts", "versions"]

KEY = "fewstep"


@dataclass(frozen=True)
class Resolved:
    """What is known once the model is loaded and a batch was sampled."""

    height: int
    width: int
    steps: int
    guidance_scale: float
    device: str
    evaluations: int
    nfe: int
    commit: str | None = None


def record(settings: Settings, item: Item, batch: Sequence[Item], resolved: Resolved) -> dict[str, Any]:
    """The record of one picture. nfe: network rows that this picture took.       commit: of a hub model.

    batch: the pictures computed together. The noise of a picture depends on its own seed alone; the last bits of a
    network's output can depend on how many rows it is given, so a batch of more than one is described whole.
    """
    together: dict[str, Any] = {"size": len(batch), "row": item.index - batch[0].index}
    if len(batch) > 1:
        together |= {"seed": batch[0].seed, "prompts": [other.prompt for other in batch]}
    commit = {} if resolved.commit is None else {"commit": resolved.commit}
    return {
        "format": FORMAT,
        **settings.expected(item),
        **commit,
        "height": resolved.height,
        "width": resolved.width,
        "steps": resolved.steps,
        "guidance_scale": resolved.guidance_scale,
        "device": resolved.device,
        "batch": together,
        "evaluations": resolved.evaluations,
        "nfe": resolved.nfe,
        "versions": versions(),
    }


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("fewstep", "torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def changed(made_with: dict[str, str]) -> list[str]:
    """Names of what is here in another version than a picture was made with."""
    return [name for name, number in versions().items() if made_with.get(name, number) != number]


def texts(fields: dict[str, Any]) -> dict[str, str]:
    """The text chunks of a PNG."""
    return {"parameters": parameters(fields), KEY: json.dumps(fields, sort_keys=True, allow_nan=False)}


def parameters(fields: dict[str, Any]) -> str:
    """The record in A1111's format."""
    if fields.get("command") == "restore":
        from . import restore_record

        return restore_record.parameters(fields)
    lines = [fields["prompt"]]
    if fields["negative_prompt"]:
        lines.append(f"Negative prompt: {fields['negative_prompt']}")
    pairs = {
        "Steps": fields["steps"],
        "Sampler": sampler_name(fields["solver"]),
        "Schedule type": fields["schedule"].capitalize(),
        "CFG scale": f"{fields['guidance_scale']:g}",
        **({"Guidance": fields["guidance"]["name"]} if "guidance" in fields else {}),
        "Seed": fields["seed"],
        "Size": f"{fields['width']}x{fields['height']}",
        **({"Denoising strength": f"{fields['strength']:g}"} if "strength" in fields else {}),
        "Model": fields["model"]["name"],
        "Version": f"fewstep {fields['versions'].get('fewstep', '')}".strip(),
    }
    lines.append(", ".join(f"{key}: {quoted(str(value))}" for key, value in pairs.items()))
    return "\n".join(lines)


def sampler_name(solver: str) -> str:
    """What A1111 calls a solver that it has; else our own name."""
    from ..aliases import A1111, ABSENT

    return next((alias.theirs for alias in A1111 if alias.ours == solver and alias.exact != ABSENT), solver)


def quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n') else value


def command(fields: dict[str, Any]) -> list[str]:
    """The words of the command that makes the picture again, with the other pictures of its batch if it had any."""
    if fields.get("command") == "restore":
        from . import restore_record

        return restore_record.command(fields)
    batch, model = fields["batch"], fields["model"]
    seed, size = (fields["seed"], 1) if batch["size"] == 1 else (batch["seed"], batch["size"])
    arguments = ["--model", model["name"], *pair("--variant", model.get("variant"))]
    arguments += pair("--revision", fields.get("commit", model.get("revision"))) + pair(
        "--negative-prompt", fields["negative_prompt"]
    )
    arguments += [word for lora in fields.get("loras", ()) for word in ("--lora", f"{lora['name']}:{lora['weight']!r}")]
    if "table" in fields:
        arguments += ["--table", fields["table"]["name"]]
    else:
        arguments += ["--solver", fields["solver"]]
    if fields["schedule"] not in ("table", "adaptive"):
        arguments += ["--schedule", fields["schedule"], "--steps", str(fields["steps"])]
    if "init_image" in fields:
        arguments += ["--init-image", image_name(fields)]
        arguments += pair("--strength", repr(fields["strength"]) if "strength" in fields else None)
    arguments += ["--guidance-scale", repr(fields["guidance_scale"])]
    arguments += pair("--guidance", fields["guidance"]["name"] if "guidance" in fields else None)
    arguments += ["--seed", str(seed)]
    arguments += ["--height", str(fields["height"]), "--width", str(fields["width"])]
    arguments += ["--dtype", fields["dtype"], "--device", fields["device"], "--batch-size", str(size)]
    arguments += pair("--offload", fields.get("offload"))
    prompts = batch["prompts"] if size > 1 else [fields["prompt"]]
    if any(prompt.startswith("-") for prompt in prompts):
        arguments.append("--")
    return ["fewstep", "sample", *arguments, *prompts]


def image_name(fields: dict[str, Any]) -> str:
    """A stand-in for the path of the picture that a run began with, which no record has."""
    return f"IMAGE-{fields['init_image']['sha256'][:12]}"


def pair(option: str, value: str | None) -> list[str]:
    return [] if value is None else [option, value]
