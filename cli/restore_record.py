"""The metadata of a restored picture, and the command that makes it again. What `record` is for samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import checks
from .record import changed, pair, quoted, versions
from .record_check import FORMAT, is_file, is_model, is_text, is_whole, whole
from .restore_settings import Job
from .settings import Item

COSTS = ("forward", "backward", "decoder_forward", "decoder_backward", "encoder_forward", "encoder_backward")
_MAX_ROWS = 1 << 40


class Found(NamedTuple):
    """What a restoration gave for one picture.

    cost: rows through network, decoder and encoder, see inverse.report.Ledger.
    residual: root mean square of y - A(x) where something was measured.       chi2: its square by noise_std^2.
    psnr, ssim: to the truth, where it is known; psnr_before: of the first guess, that of the measurement alone.
    resized_from: height and width of INPUT, where it was resized.
    """

    height: int
    width: int
    device: str
    cost: Mapping[str, int]
    residual: float
    chi2: float | None
    psnr: float | None = None
    ssim: float | None = None
    psnr_before: float | None = None
    commit: str | None = None
    resized_from: Mapping[str, int] | None = None


def record(job: Job, item: Item, found: Found) -> dict[str, Any]:
    """The record of one picture."""
    values = {"psnr": found.psnr, "ssim": found.ssim, "psnr_before": found.psnr_before, "commit": found.commit}
    values["resized_from"] = found.resized_from
    return {
        "format": FORMAT,
        **job.expected(item),
        "height": found.height,
        "width": found.width,
        "device": found.device,
        "batch": job.together(item),
        "nfe": found.cost["forward"],
        "cost": dict(found.cost),
        "residual": found.residual,
        "chi2": found.chi2,
        **{key: value for key, value in values.items() if value is not None},
        "versions": versions(),
    }


def parameters(fields: dict[str, Any]) -> str:
    """The record in A1111's format, as far as that has words for it."""
    method = fields["method"]
    pairs = {
        "Steps": method.get("steps"),
        "Sampler": f"fewstep restore {method['name']}",
        "CFG scale": method.get("guidance_scale"),
        "Seed": fields["seed"],
        "Size": f"{fields['width']}x{fields['height']}",
        "Model": fields["model"]["name"],
        "Version": f"fewstep {fields['versions'].get('fewstep', '')}".strip(),
    }
    told = ", ".join(f"{key}: {quoted(str(value))}" for key, value in pairs.items() if value is not None)
    return f"{fields['prompt']}\n{told}"


def command(fields: dict[str, Any]) -> list[str]:
    """The words of the command that makes the picture again, with the other samples of its batch if it had any."""
    from ..inverse.named import written

    batch, model = fields["batch"], fields["model"]
    seed, size = (fields["seed"], 1) if batch["size"] == 1 else (batch["seed"], batch["size"])
    method = {key: value for key, value in fields["method"].items() if key != "name"}
    words = ["fewstep", "restore", input_name(fields), "--operator", fields["operator"]["name"]]
    words += ["--noise-std", repr(fields["noise_std"])]
    words += ["--simulate", "--noise-seed", str(fields["simulate"]["noise_seed"])] if fields["simulate"] else []
    words += ["--method", written(fields["method"]["name"], method)]
    words += pair("--prompt", fields["prompt"] or None) + ["--seed", str(seed)]
    words += ["--samples", str(size), "--batch-size", str(size)] if size > 1 else []
    words += ["--model", model["name"], *pair("--variant", model.get("variant"))]
    words += pair("--revision", fields.get("commit", model.get("revision")))
    for key, side in fields.get("asked", {}).items():  # else its size follows from the picture and the model
        words += [f"--{key}", str(side)]
    return [*words, "--dtype", fields["dtype"], "--device", fields["device"]]


def input_name(fields: dict[str, Any]) -> str:
    """A stand-in for the path of the picture that was restored, which no record has."""
    return f"IMAGE-{fields['input']['sha256'][:12]}"


def describe(fields: dict[str, Any]) -> dict[str, str]:
    """The record in words, one line a fact."""
    model, operator, batch = fields["model"], fields["operator"], fields["batch"]
    marks = [model["kind"], *(model[key] for key in ("variant", "revision", "fingerprint") if key in model)]
    own = ", ".join(f"{key} {value}" for key, value in fields["method"].items() if key != "name")
    digest = f", file of sha256 {operator['sha256']}" if "sha256" in operator else ""
    noise = f"noise {fields['noise_std']:g}"
    before = f", simulated with noise seed {fields['simulate']['noise_seed']}" if fields["simulate"] else ""
    lines = {
        "input": f"a {'clean' if fields['simulate'] else 'degraded'} picture, sha256 {fields['input']['sha256']}",
        "operator": f"{operator['name']}, {noise}{before}{digest}",
        "method": f"{fields['method']['name']}: {own}",
        "prompt": fields["prompt"] or "-",
        "model": f"{model['name']} ({', '.join(marks)})",
        "size": _size(fields),
        "cost": _cost(fields["cost"]),
        "quality": quality(fields),
        "seed": str(fields["seed"]),
        "precision": f"{fields['dtype']} on {fields['device']}",
        "versions": ", ".join(f"{name} {number}" for name, number in fields["versions"].items()),
    }
    if batch["size"] > 1:
        lines["batch"] = f"sample {batch['row'] + 1} of {batch['size']} computed together; the command makes all"
    missing = [f"the picture {input_name(fields)}"] + (["the file of the operator"] if digest else [])
    missing += [f"the local {model['kind']} {model['name']}"] if model["kind"] in ("folder", "file") else []
    lines["note"] = f"put the path of {', of '.join(missing)} into the command"
    if other := changed(fields["versions"]):
        lines["changed"] = f"{', '.join(other)} here are of other versions, so pixels may differ slightly"
    return lines


def _size(fields: dict[str, Any]) -> str:
    came = fields.get("resized_from")
    resized = f"; the picture that came in had {came['width']}x{came['height']} and was resized" if came else ""
    return f"{fields['width']}x{fields['height']}{resized}"


def _cost(cost: Mapping[str, Any]) -> str:
    parts = []
    for part, name in (("", "network"), ("decoder_", "decoder"), ("encoder_", "encoder")):
        parts.append(f"{name} {cost[f'{part}forward']} forward, {cost[f'{part}backward']} backward")
    return "; ".join(parts)


def quality(fields: Mapping[str, Any]) -> str:
    """What is known of how good a picture is, in words."""
    words = []
    if "psnr" in fields:
        before = f" (before: {fields['psnr_before']:.2f})" if "psnr_before" in fields else ""
        words.append(f"PSNR {fields['psnr']:.2f} dB{before}")
    if "ssim" in fields:
        words.append(f"SSIM {fields['ssim']:.3f}")
    words.append(f"residual {fields['residual']:.4f} with noise {fields['noise_std']:g}")
    if fields["chi2"] is not None:
        words.append(f"chi^2 {fields['chi2']:.3g}")
    return ", ".join(words)


def _number(low: float = -math.inf) -> Callable[[object], bool]:
    def good(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value < math.inf

    return good


def _is_method(value: object) -> bool:
    if not (isinstance(value, dict) and "name" in value and 0 < len(value) <= 64):
        return False
    plain = all(isinstance(one, int | float | bool | None) or is_text(one) for one in value.values())
    return plain and is_text(value["name"]) and all(map(is_text, value))


def _is_asked(value: object) -> bool:
    if not (isinstance(value, dict) and 0 < len(value) <= 2):
        return False
    return all(key in ("height", "width") and is_whole(side, 1, checks.MAX_SIDE) for key, side in value.items())


def _is_size(value: object) -> bool:
    return _is_asked(value) and isinstance(value, dict) and len(value) == 2


def _is_simulation(value: object) -> bool:
    return value is None or (isinstance(value, dict) and is_whole(value.get("noise_seed"), 0, checks.MAX_SEED))


def _is_operator(value: object) -> bool:
    return isinstance(value, dict) and is_file({"sha256": "0" * 16, **value}, "sha256", "name")


def _is_cost(value: object) -> bool:
    return isinstance(value, dict) and all(is_whole(value.get(key), 0, _MAX_ROWS) for key in COSTS)


def is_batch(batch: dict[str, Any], fields: dict[str, Any]) -> bool:
    """The batch, and that this sample is in it."""
    size, row = batch.get("size"), batch.get("row")
    if not (is_whole(size, 1, checks.MAX_BATCH) and is_whole(row, 0, size - 1)):
        return False
    return size == 1 or (is_whole(batch.get("seed"), 0, checks.MAX_SEED) and batch["seed"] + row == fields["seed"])


FIELDS: dict[str, Callable[[Any], bool]] = {
    "run": is_text,
    "input": lambda value: is_file(value, "sha256"),
    "operator": _is_operator,
    "method": _is_method,
    "noise_std": _number(0.0),
    "simulate": _is_simulation,
    "prompt": is_text,
    "model": is_model,
    "seed": whole(0, checks.MAX_SEED),
    "dtype": is_text,
    "device": is_text,
    "height": whole(1, checks.MAX_SIDE),
    "width": whole(1, checks.MAX_SIDE),
    "batch": lambda value: isinstance(value, dict),
    "nfe": whole(0, _MAX_ROWS),
    "cost": _is_cost,
    "residual": _number(0.0),
    "chi2": lambda value: value is None or _number(0.0)(value),
    "versions": lambda value: isinstance(value, dict) and all(map(is_text, value.values())),
}
OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "psnr": _number(),
    "ssim": _number(),
    "psnr_before": _number(),
    "asked": _is_asked,
    "resized_from": _is_size,
}
