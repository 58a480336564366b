"""``fewstep sample``: prompts to PNG files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import checks, options
from .console import Console, emit
from .settings import Settings

if TYPE_CHECKING:
    from .plan import Plan

EXAMPLES = """\b
Examples:
  fewstep sample "a red circle above a blue square"
  fewstep sample "a green star" "a blue star" --num-images 4 --grid -o stars
  fewstep sample "a photo of a fox" -m stabilityai/stable-diffusion-xl-base-1.0 --dtype float16
  fewstep sample --prompt-file prompts.txt --solver unipc-2 --nfe 16 -g 5
  fewstep sample "a red circle" --init-image drawing.png --strength 0.6

\b
Paths of the pictures go to standard output, everything else to standard error.
An interrupted run goes on when the same command is given again.
"""


def sample(
    prompt: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    negative_prompt: options.Negative = None,
    num_images: options.NumImages = 1,
    seed: options.Seed = 0,
    height: options.Height = None,
    width: options.Width = None,
    init_image: options.InitImage = None,
    strength: options.Strength = None,
    solver: options.Solver = None,
    schedule: options.Schedule = None,
    steps: options.Steps = None,
    nfe: options.Nfe = None,
    table: options.Table = None,
    guidance_scale: options.Scale = None,
    guidance: options.Guidance = None,
    batch_size: options.BatchSize = 1,
    config: options.Config = None,
    model: options.Model = "tiny-sd",
    lora: options.Lora = None,
    variant: options.Variant = None,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    offload: options.Offload = None,
    output: options.Output = None,
    grid: options.Grid = False,
    no_metadata: options.NoMetadata = False,
    dry_run: options.DryRun = False,
    format: options.Format = "human",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Make pictures from prompts."""
    from .guidance_ref import find_guidance
    from .how import choose
    from .init_image import find_image
    from .lora_ref import find_loras
    from .model_ref import find_model
    from .output import find_target

    checks.one_of("--format", format, checks.FORMATS)
    prompts = checks.prompts(prompt, prompt_file)
    how = choose(solver, schedule, steps, nfe, table)
    settings = Settings(
        find_model(model, variant, revision), prompts, negative_prompt, how.solver, how.schedule,
        how.steps, guidance_scale, seed, num_images, batch_size, height, width, dtype, device, not no_metadata,
        how.nfe, how.table, None if init_image is None else find_image(init_image), strength, find_loras(lora), offload,
        find_guidance(guidance),
    ).check()  # fmt: skip
    target = find_target(output, settings.run, settings.items, grid)
    console = Console(quiet, verbose)
    if dry_run:
        return _dry_run(settings, target, grid, format, console, how.notes)
    for note in how.notes:
        console.note(note)
    return _run(settings, target, grid, format, console)


def _dry_run(settings: Settings, target: Any, grid: bool, format: str, console: Console, notes: Sequence[str]) -> int:
    from .output import check_grid, finished
    from .plan import evaluations_of, is_table, plan
    from .table_ref import digest_of

    kept = finished(target, settings)
    if grid:
        check_grid(target)
    with console.hushed():
        from ..samplers.table_file import encode

        planned = plan(settings)
        how = planned.how
        digest = digest_of(encode(how)) if is_table(how) else None
    for note in notes:
        console.note(note)
    files = [str(target.path(item)) for item in settings.items]
    if format == "json":
        images = [
            {"file": file, "index": item.index, "prompt": item.prompt, "seed": item.seed, "there": item.index in kept}
            for file, item in zip(files, settings.items, strict=True)
        ]
        found = {"dry_run": True, "run": settings.run, "evaluations": evaluations_of(how), "steps": planned.steps}
        found["table"] = digest and {"name": settings.table and settings.table.name, "digest": digest}
        emit(json.dumps({**settings.extras(), **found, "images": images}))
        return 0
    for name, text in _described(settings, planned, digest, len(kept)).items():
        emit(f"{name:<10} {text}")
    middle = ["..."] if len(files) > 6 else []
    for file in [*files[:5], *middle, *files[5:][-1:], *([str(target.grid)] if grid else [])]:
        emit(f"           {file}")
    return 0


def _described(settings: Settings, planned: Plan, digest: str | None, kept: int) -> dict[str, str]:
    """What a run would do, in words."""
    from .guidance_ref import described, nothing_to_save
    from .plan import budget_line, counted, evaluations_of, is_table

    how = planned.how
    scale = settings.guidance_scale if planned.guiding is None else planned.guiding.scale
    scale = settings.model.default_scale if scale is None else scale
    offload = "" if settings.offload is None else ", offloaded"
    lines = {"model": f"{settings.model.name} ({settings.model.kind}), {settings.dtype} on {planned.device}{offload}"}
    for lora in settings.loras:
        lines["lora" if "lora" not in lines else f"lora {len(lines)}"] = f"{lora.name}, weight {lora.weight:g}"
    cost = "as many steps as it takes"
    if is_table(how):
        cost = f"{counted(planned.steps or 0, 'step')} = {counted(how.evaluations, 'evaluation')}"
    lines["sampling"] = (
        f"{settings.solver}, schedule {settings.schedule}, {cost}, "
        f"guidance scale {'default' if scale is None else f'{scale:g}'}"
    )
    if planned.guiding is not None:
        nfe = planned.guiding.nfe
        cost = "" if nfe is None else f": {counted(nfe, 'evaluation')} a picture"
        lines["guidance"] = described(planned.guiding.policy) + cost
    if (note := nothing_to_save(settings, scale, planned.guiding, evaluations_of(how))) is not None:
        lines["note"] = note
    if settings.nfe is not None:
        lines["budget"] = budget_line(settings, planned)
    if digest is not None:
        lines["table"] = digest if settings.table is None else f"{digest}, from {settings.table.name}"
    if settings.init_image is not None:
        width, height = settings.init_image.size
        share = "" if settings.table else f", strength {settings.share:g}"
        noise = f": noise at time {float(how.plan.nodes[0].time):g}" if is_table(how) else ""
        lines["start"] = f"from a picture of {width}x{height}{share}{noise}"
    size = "of the model's size" if settings.size is None else f"of {settings.size[1]}x{settings.size[0]} pixels"
    first, last = settings.seed, settings.items[-1].seed
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    there = f"{kept} {'is' if kept == 1 else 'are'} there already"
    lines["pictures"] = f"{settings.total} {size}, {seeds}, batches of {settings.batch_size}; {there}"
    return lines


def _run(settings: Settings, target: Any, grid: bool, format: str, console: Console) -> int:
    from .output import check_grid
    from .run import run

    if grid:
        check_grid(target)
    outcome = run(settings, target, console, paths=format == "human")
    sheet = None
    if grid and outcome.lines and (len(outcome.lines) > len(outcome.kept) or not target.grid.exists()):
        from .grid import write_grid

        write_grid(settings, target, outcome)
    if grid and outcome.lines:
        sheet = str(target.grid)
    made = len(outcome.lines) - len(outcome.kept)
    if format == "json":
        emit(json.dumps(_report(settings, target, outcome, sheet), allow_nan=False))
    elif sheet:
        emit(sheet)
    if made:
        what = f"1 picture in {outcome.sampling:.1f} s"
        if made > 1:
            what = f"{made} pictures, {outcome.sampling / made:.2f} s each"
        console.note(f"{what}; loading took {outcome.loading:.1f} s")
        if settings.guidance is not None:
            console.note(_spent([line for k, line in outcome.lines.items() if k not in outcome.kept]))
    return outcome.exit_code


def _spent(lines: list[dict[str, Any]]) -> str:
    """What the policy saved of full guidance.       lines: of the pictures that were made."""
    branches = 1 if lines[0]["guidance_scale"] == 1.0 else 2
    spent, full = sum(line["nfe"] for line in lines), sum(branches * line["evaluations"] for line in lines)
    mean = f"{spent / len(lines):.4g} of {full / len(lines):.4g} evaluations a picture"
    return f"guidance: {mean} ({100 * (1 - spent / full):.0f} % saved)"


def _report(settings: Settings, target: Any, outcome: Any, sheet: str | None) -> dict[str, Any]:
    """The run as one JSON object."""
    images = []
    for item in settings.items:
        image = {"file": str(target.path(item)), "index": item.index, "prompt": item.prompt, "seed": item.seed}
        if item.index in outcome.failed:
            images.append(image | {"file": None, "status": "failed", "error": outcome.failed[item.index]})
        else:
            status = "kept" if item.index in outcome.kept else "made"
            images.append(image | {"status": status, "nfe": outcome.lines[item.index]["nfe"]})
    steps = next((line["steps"] for line in outcome.lines.values()), settings.steps)
    return {
        "run": settings.run,
        "model": settings.model.identity(),
        "solver": settings.solver,
        "schedule": settings.schedule,
        "steps": None if settings.schedule == "adaptive" else steps,
        **settings.extras(),
        "images": images,
        "grid": sheet,
        "seconds": {"loading": round(outcome.loading, 3), "sampling": round(outcome.sampling, 3)},
    }
