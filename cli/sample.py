"""``fewstep sample``: prompts to PNG files."""

from __future__ import annotations

import json
from typing import Any

from . import checks, options
from .console import Console, emit
from .settings import Settings

EXAMPLES = """\b
Examples:
  fewstep sample "a red circle above a blue square"
  fewstep sample "a green star" "a blue star" --num-images 4 --grid -o stars
  fewstep sample "a photo of a fox" -m stabilityai/stable-diffusion-xl-base-1.0 --dtype float16
  fewstep sample --prompt-file prompts.txt --solver unipc-2 --steps 8 -g 5

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
    solver: options.Solver = "2m",
    schedule: options.Schedule = "lambda",
    steps: options.Steps = 10,
    guidance_scale: options.Scale = None,
    batch_size: options.BatchSize = 1,
    model: options.Model = "tiny-sd",
    variant: options.Variant = None,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
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
    from .model_ref import find_model
    from .output import find_target

    checks.one_of("--format", format, checks.FORMATS)
    prompts = checks.prompts(prompt, prompt_file)
    settings = Settings(
        find_model(model, variant, revision), prompts, negative_prompt, solver, schedule,
        steps, guidance_scale, seed, num_images, batch_size, height, width, dtype, device, not no_metadata,
    ).check()  # fmt: skip
    target = find_target(output, settings, grid)
    if dry_run:
        return _dry_run(settings, target, grid, format, Console(quiet, verbose))
    return _run(settings, target, grid, format, Console(quiet, verbose))


def _dry_run(settings: Settings, target: Any, grid: bool, format: str, console: Console) -> int:
    from .output import check_grid, finished
    from .run import plan

    kept = finished(target, settings)
    if grid:
        check_grid(target)
    with console.hushed():
        evaluations = plan(settings)[1].evaluations
    files = [str(target.path(item)) for item in settings.items]
    if format == "json":
        images = [
            {"file": file, "index": item.index, "prompt": item.prompt, "seed": item.seed, "there": item.index in kept}
            for file, item in zip(files, settings.items, strict=True)
        ]
        emit(json.dumps({"dry_run": True, "run": settings.run, "evaluations": evaluations, "images": images}))
        return 0
    scale = settings.guidance_scale if settings.guidance_scale is not None else settings.model.default_scale
    size = [str(side) if side else "default" for side in (settings.width, settings.height)]
    emit(f"model      {settings.model.name} ({settings.model.kind}), {settings.dtype} on {settings.device}")
    emit(
        f"sampling   {settings.solver}, schedule {settings.schedule}, {settings.steps} steps = "
        f"{evaluations} evaluations, guidance scale {'default' if scale is None else f'{scale:g}'}"
    )
    emit(
        f"pictures   {settings.total} of {' x '.join(size)} pixels, seeds {settings.seed} to "
        f"{settings.items[-1].seed}, batches of {settings.batch_size}; {len(kept)} are there already"
    )
    middle = ["..."] if len(files) > 6 else []
    for file in [*files[:5], *middle, *files[5:][-1:], *([str(target.grid)] if grid else [])]:
        emit(f"           {file}")
    return 0


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
    return outcome.exit_code


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
    return {
        "run": settings.run,
        "model": settings.model.identity(),
        "solver": settings.solver,
        "schedule": settings.schedule,
        "steps": settings.steps,
        "images": images,
        "grid": sheet,
        "seconds": {"loading": round(outcome.loading, 3), "sampling": round(outcome.sampling, 3)},
    }
