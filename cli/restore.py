"""``fewstep restore``: degraded pictures to pictures that explain them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checks, options
from . import restore_options as own
from .console import Console, emit, printable

if TYPE_CHECKING:
    from .operator_ref import OperatorRef
    from .output import Target
    from .restore_inputs import Inputs
    from .restore_pose import Posed
    from .restore_run import Made, Runner
    from .restore_settings import RestoreSettings

LARGE = 0.5  # noise that leaves little of a picture

EXAMPLES = """\b
Examples:
  fewstep restore small.png --operator sr:factor=4 --noise-std 0.02
  fewstep restore photo.png --operator inpaint-box --simulate --samples 4
  fewstep restore scratched.png --operator mask:file=scratches.png,known=black
  fewstep restore clean/ --operator blur-motion:seed=3 --simulate -o compared
  fewstep restore photo.png --operator jpeg:quality=10 -p "a red circle"
  fewstep restore --operator help

\b
The first picture is given as it was measured, with --simulate as it was before.
Paths of the pictures go to standard output, everything else to standard error.
An interrupted run goes on when the same command is given again.
"""


def restore(
    input: own.Inputs = None,
    operator: own.Operator = None,
    noise_std: own.NoiseStd = 0.05,
    simulate: own.Simulate = False,
    noise_seed: own.NoiseSeed = 0,
    prompt: own.Prompt = "",
    samples: own.Samples = 1,
    seed: own.Seed = 0,
    height: own.Height = None,
    width: own.Width = None,
    method: own.Method = "stsl",
    steps: own.Steps = None,
    guidance_scale: own.Scale = None,
    batch_size: own.BatchSize = 1,
    checkpoint: own.Checkpoint = False,
    config: options.Config = None,
    model: options.Model = "tiny-sd",
    variant: options.Variant = None,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    output: options.Output = None,
    side_by_side: own.Side = None,
    no_metadata: options.NoMetadata = False,
    dry_run: options.DryRun = False,
    format: options.Format = "human",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Restore degraded pictures: inpainting, super-resolution, deblurring, denoising."""
    from .model_ref import find_model
    from .operator_ref import find_method, find_operator, methods_listed, operators_listed
    from .output import find_target
    from .restore_inputs import find_inputs
    from .restore_settings import RestoreSettings, jobs_of, run_of

    for text, listed in ((operator, operators_listed), (method, methods_listed)):
        if text is not None and text.rpartition(":")[2] == "help":
            for line in listed():
                emit(line)
            return 0
    checks.one_of("--format", format, checks.FORMATS)
    if not input:
        find_inputs(input)  # raises: what to restore comes first
    console = Console(quiet, verbose)
    with console.hushed():
        ref = find_operator(operator)
        settings = RestoreSettings(
            find_model(model, variant, revision), ref, find_method(method, steps, guidance_scale), noise_std, prompt,
            simulate, noise_seed, samples, seed, batch_size, height, width, dtype, device, checkpoint, not no_metadata,
        ).check()  # fmt: skip
    inputs = find_inputs(input, ref.location)
    jobs = jobs_of(settings, inputs.pictures)
    whole = find_target(output, run_of(jobs), [item for job in jobs for item in job.items])
    side = whole.file is None if side_by_side is None else side_by_side
    _notes(console, settings, inputs, len(jobs))
    from .restore_pictures import check_apart
    from .restore_run import Runner, find_made

    check_apart(jobs, whole, side, _given(input or (), inputs, ref))
    made = find_made(jobs, whole)
    if dry_run:
        return _dry_run(settings, made, inputs, format)
    runner = Runner(settings, console, side, paths=format == "human", method=method)
    runner.run(made)
    return _ended(runner, made, inputs, whole, format)


def _given(named: Sequence[str], inputs: Inputs, operator: OperatorRef) -> dict[str, str]:
    """Location -> what it is, of the files that must stay as they are."""
    given = {} if operator.location is None else {operator.location: "the file of --operator"}
    locations = [*named, *(one.location for one in inputs.pictures)]  # of those that are named some may be broken
    return given | {location: f"INPUT {Path(location).name!r} itself" for location in locations}


def _notes(console: Console, settings: RestoreSettings, inputs: Inputs, jobs: int) -> None:
    if inputs.passed_over == 1:
        console.note("1 picture that fewstep restore made is passed over")
    elif inputs.passed_over:
        console.note(f"{inputs.passed_over} pictures that fewstep restore made are passed over")
    for _, why in inputs.broken:
        console.warn(why)
    if (same := len(inputs.pictures) - jobs) > 0:
        console.note(f"{same} of {len(inputs.pictures)} pictures have name and contents of another one, and are "
                     "restored with it")  # fmt: skip
    for one in inputs.pictures:
        if one.transparent:
            mask = "" if settings.simulate else ": measured, not missing (--operator mask:file=... says what is)"
            console.warn(f"{printable(Path(one.location).name)} is transparent in places, which become white{mask}")
    if settings.noise_std > LARGE:
        console.warn(
            f"--noise-std {settings.noise_std:g} is more than half of what pixels range over, 0 to 1: the picture "
            f"hardly counts ({settings.noise_std:g} of 255 is {settings.noise_std / 255:.3g})"
        )
    scale = settings.method.method.guidance_scale
    if scale > 1.0 and not settings.prompt:
        console.note(f"--guidance-scale {scale:g} without --prompt pays twice to be guided by the empty prompt; "
                     "say what the picture shows (-p TEXT), or leave it out")  # fmt: skip


def _ended(runner: Runner, made: Sequence[Made], inputs: Inputs, whole: Target, format: str) -> int:
    """The last lines, and the exit code."""
    lines = [line for one in made for index, line in one.outcome.lines.items() if index not in one.outcome.kept]
    if format == "json":
        emit(json.dumps(_report(runner, made, inputs, whole), allow_nan=False))
    if lines:
        what = "1 picture" if len(lines) == 1 else f"{len(lines)} pictures, {runner.restoring / len(lines):.1f} s each"
        seconds = f"{what} in {runner.restoring:.1f} s; loading took {runner.loading:.1f} s"
        runner.console.note(seconds)
    failed = sum(len(one.outcome.failed) for one in made) + len(inputs.broken)
    if not failed:
        return 0
    return 3 if any(one.outcome.lines for one in made) else 1


def _dry_run(settings: RestoreSettings, made: Sequence[Made], inputs: Inputs, format: str) -> int:
    from ..samplers.backbones import check_model
    from .plan import usable_device
    from .restore_pose import check_levels, frame_of_ref
    from .restore_run import described

    device = usable_device(settings.device)
    check_model(settings.model.location)
    check_levels(settings)
    frame = frame_of_ref(settings.model)
    told = [{} for _ in made] if frame is None else described(made, frame, _facts)
    code = 3 if inputs.broken or any(one.refused is not None for one in made) else 0
    if format == "json":
        pairs = [(one, facts) for one, facts in zip(made, told, strict=True) if one.refused is None]
        images = [image | facts for one, facts in pairs for image in _planned(one)]
        unfit = [str(one.refused) for one in made if one.refused is not None]
        found = {"dry_run": True, **settings.identity, "images": images}
        emit(json.dumps({**found, "broken": [*(why for _, why in inputs.broken), *unfit]}, allow_nan=False))
        return code
    method = ", ".join(f"{key} {value}" for key, value in settings.method.values.items())
    source = "clean pictures, degraded first" if settings.simulate else "degraded pictures"
    emit(f"{'model':<10} {settings.model.name} ({settings.model.kind}), {settings.dtype} on {device}")
    emit(f"{'operator':<10} {settings.operator.text}, noise {settings.noise_std:g} ({source})")
    emit(f"{'method':<10} {settings.method.name}: {method}")
    for one, facts in zip(made, told, strict=True):
        if one.refused is not None:
            emit(f"{'broken':<10} {one.refused}")
            continue
        emit(f"{'picture':<10} {one.job.source.location}: {_words(facts)}")
        for image in _planned(one):
            emit(f"{'':<10} {image['file']}{' (there already)' if image['there'] else ''}")
    return code


def _planned(one: Made) -> list[dict[str, Any]]:
    return [
        {"file": str(one.target.path(item)), "input": one.job.source.location, "seed": item.seed,
         "there": item.index in one.outcome.kept}
        for item in one.job.items
    ]  # fmt: skip


def _facts(posed: Posed) -> dict[str, Any]:
    notes = [text for text in (posed.note, posed.warning) if text is not None]
    measured = int(posed.measurement.count[0])
    return {"height": posed.height, "width": posed.width, "measured": measured, "notes": notes}


def _words(facts: dict[str, Any]) -> str:
    if not facts:
        return "its size is known once the model is loaded"
    size = f"{facts['width']}x{facts['height']} pixels, {facts['measured']:,} numbers measured"
    return "; ".join([size, *facts["notes"]])


def _report(runner: Runner, made: Sequence[Made], inputs: Inputs, whole: Target) -> dict[str, Any]:
    """The run as one JSON object."""
    images: list[dict[str, Any]] = []
    known = ("nfe", "cost", "residual", "chi2", "psnr", "psnr_before", "ssim", "resized_from")
    for one in made:
        for item in one.job.items:
            image = {"file": str(one.target.path(item)), "input": one.job.source.location, "seed": item.seed}
            if item.index in one.outcome.failed:
                images.append(image | {"file": None, "status": "failed", "error": one.outcome.failed[item.index]})
                continue
            line = one.outcome.lines[item.index]
            status = "kept" if item.index in one.outcome.kept else "made"
            images.append(image | {"status": status} | {key: line[key] for key in known if key in line})
    images += [{"file": None, "input": name, "status": "failed", "error": why} for name, why in inputs.broken]
    return {
        "run": whole.run,
        **runner.settings.identity,
        "images": images,
        "beside": [str(path) for one in made for path in one.beside],
        "seconds": {"loading": round(runner.loading, 3), "restoring": round(runner.restoring, 3)},
    }
