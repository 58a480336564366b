"""``fewstep inspect``: how a picture was made, and the command that makes it again; what a policy file holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, IncompatibleError
from . import checks, options, shell
from .console import Console, complain, emit, printable

EXAMPLES = """\b
Examples:
  fewstep inspect outputs/3f9a1c2e-0000-seed0.png
  fewstep inspect --format json outputs/*.png
  fewstep inspect policy.safetensors
"""


def inspect(png: options.Pictures, format: options.Format = "human", debug: options.Debug = False) -> int:
    """Show how pictures were made, or what guidance policies are."""
    checks.one_of("--format", format, checks.FORMATS)
    failed = False
    for number, file in enumerate(png):
        try:
            told, lines = (_policy if file.lower().endswith(".safetensors") else _picture)(file)
        except (ConfigError, IncompatibleError) as error:
            if len(png) == 1:
                raise
            failed = True
            complain(str(error))
            continue
        if format == "json":
            emit(json.dumps({"file": file, **told}, allow_nan=False))
            continue
        emit(("" if number == 0 else "\n") + f"{'file':<10} {printable(file)}")
        for name, value in lines:
            emit(f"{name:<10} {printable(value)}")
    return 2 if failed else 0


Lines = Iterable[tuple[str, str]]


def _policy(file: str) -> tuple[dict[str, Any], Lines]:
    """(all of it, for scripts; the same in words)."""
    with Console().hushed():
        from . import inspect_policy

        told, lines = inspect_policy.read(file)
        return told, lines.items()


def _picture(file: str) -> tuple[dict[str, Any], Lines]:
    from . import record
    from .inspect_beside import told_of

    found = told_of(_texts(Path(file)), Path(file).name)
    if found is not None:
        told, words = found
        return {"made_of_others": told}, words.items()
    fields = read(Path(file))
    words = record.command(fields)
    lines = [*describe(fields).items(), ("command", shell.shown(words))]
    if not shell.exact(words):
        lines.append(("note", "the command has characters that cannot be typed here: --format json has it exactly"))
    return {"record": fields, "command": shell.join(words)}, lines


def read(path: Path) -> dict[str, Any]:
    """The record in a PNG. ConfigError, in one line, if there is none that can be read."""
    from . import record

    text = _texts(path).get(record.KEY)
    if text is None:
        raise ConfigError(f"{path.name} has no fewstep metadata: not made by fewstep, or removed (--no-metadata)")
    return record.parse(text, path.name)


def _texts(path: Path) -> dict[str, str]:
    from .png import read_text

    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a folder: expected a PNG file")
    return read_text(path).texts


def describe(fields: dict[str, Any]) -> dict[str, str]:
    """The record in words, one line a fact."""
    from . import record, restore_record

    if fields.get("command") == "restore":
        return restore_record.describe(fields)
    model, batch, made_with = fields["model"], fields["batch"], fields["versions"]
    marks = [model["kind"], *(model[key] for key in ("variant", "revision", "fingerprint") if key in model)]
    lines = {
        "prompt": fields["prompt"],
        "negative": fields["negative_prompt"] if fields["negative_prompt"] is not None else "-",
        "model": f"{model['name']} ({', '.join(marks)})",
        "size": f"{fields['width']}x{fields['height']}",
        **_of_files(fields),
        "solver": f"{fields['solver']}, schedule {fields['schedule']}, {fields['steps']} steps",
        "cost": f"{fields['evaluations']} evaluations, NFE {fields['nfe']}{_budget(fields)}",
        "scale": f"{fields['guidance_scale']:g}{_guidance(fields)}",
        "seed": str(fields["seed"]),
        "precision": f"{fields['dtype']} on {fields['device']}{', offloaded' if 'offload' in fields else ''}",
        "versions": ", ".join(f"{name} {number}" for name, number in made_with.items()),
    }
    if batch["size"] > 1:
        lines["batch"] = (
            f"picture {batch['row'] + 1} of {batch['size']} computed together, which the command makes again; "
            f"alone (--seed {fields['seed']} --batch-size 1) its last bits may differ"
        )
    missing = [f"the local {model['kind']} {model['name']}"] if model["kind"] in ("folder", "file") else []
    missing += [f"the LoRA {lora['name']}" for lora in fields.get("loras", ())]
    missing += [f"the table {fields['table']['name']}"] if "table" in fields else []
    missing += [f"the policy {fields['guidance']['name']}"] if "digest" in fields.get("guidance", {}) else []
    missing += [f"the picture {record.image_name(fields)}"] if "init_image" in fields else []
    if missing:
        lines["note"] = f"put the path of {', of '.join(missing)} into the command"
    changed = record.changed(made_with)
    if changed:
        lines["changed"] = f"{', '.join(changed)} here are of other versions, so pixels may differ slightly"
    return lines


def _of_files(fields: dict[str, Any]) -> dict[str, str]:
    """The files that a run was given, by digest."""
    lines = {}
    if "loras" in fields:
        shown = [f"{lora['name']} (weight {lora['weight']:g}, sha256 {lora['sha256']})" for lora in fields["loras"]]
        lines["lora"] = ", ".join(shown)
    if "init_image" in fields:
        strength = f"strength {fields['strength']:g}, " if "strength" in fields else ""
        lines["start"] = f"from a picture ({strength}sha256 {fields['init_image']['sha256']})"
    if "table" in fields:
        lines["table"] = f"{fields['table']['name']} ({fields['table']['digest']})"
    return lines


def _guidance(fields: dict[str, Any]) -> str:
    """The policy, and the digest of its file if it came from one."""
    if "guidance" not in fields:
        return ""
    digest = fields["guidance"].get("digest")
    return f", guidance {fields['guidance']['name']}" + ("" if digest is None else f" ({digest})")


def _budget(fields: dict[str, Any]) -> str:
    return f" of {fields['budget']} allowed" if "budget" in fields else ""
