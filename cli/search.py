"""``fewstep search``: which steps of a run need guidance, learned on a model, and a file for ``sample --guidance``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from . import checks, options
from . import search_options as more
from .calibrate import plottable, prompts_for, target_of
from .console import Console, emit
from .own_files import writing
from .search_checks import check_numbers, check_target

if TYPE_CHECKING:
    from ..guidance.calibrate_runs import Samples
    from ..guidance.search import Found, SearchSettings
    from ..guidance.search_samples import Compared
    from .load import Model
    from .model_ref import ModelRef
    from .settings import Settings

EXAMPLES = """\b
Examples:
  fewstep search --solver 2m --steps 20 --target-nfe 26 -o searched.safetensors
  fewstep search --prompt-file prompts.txt -m owner/name -g 7.5 --steps 20 --minutes 120 -o searched.safetensors
  fewstep sample "a green star" --solver 2m --steps 20 --guidance searched.safetensors

\b
The table goes to standard output, everything else to standard error.
An interrupted search goes on when the same command is given again.
"""
DEFAULT_PROMPTS, DEFAULT_HELD_OUT = 64, 32
DEFAULT_SHARE = 1.3  # NFE by evaluations without guidance


class Split(NamedTuple):
    """Prompts to search on, and others to measure on; `same` if there were no others.       about: in words."""

    searched: tuple[str, ...]
    held_out: tuple[str, ...]
    about: str
    same: bool = False


def search(
    prompt: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    negative_prompt: more.Negative = None,
    prompts: more.PromptCount = None,
    held_out: more.HeldOut = None,
    seed: options.Seed = 0,
    height: options.Height = None,
    width: options.Width = None,
    solver: options.TableSolver = None,
    schedule: options.Schedule = None,
    steps: options.Steps = None,
    guidance_scale: options.Scale = None,
    target_nfe: more.TargetNfe = None,
    strengths: more.Strengths = None,
    minutes: more.Minutes = 20.0,
    iterations: more.Iterations = 100,
    rate: more.Rate = 0.1,
    cost_weight: more.CostWeight = 4.0,
    temperature: more.Temperature = None,
    gumbel: more.Gumbel = False,
    changes: more.Changes = 150,
    batch_size: more.Batch = 8,
    model: options.Model = "tiny-sd",
    variant: options.Variant = None,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    output: more.PolicyOutput = None,
    plot: more.Plot = None,
    format: options.Format = "human",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Search which steps need guidance."""
    from .how import choose
    from .model_ref import find_model
    from .settings import Settings

    checks.one_of("--format", format, checks.FORMATS)
    how = choose(solver, schedule, steps)
    if how.schedule == "adaptive":
        raise ConfigError(f"--solver {how.solver} chooses its steps while it runs, and a search is of a fixed run")
    check_numbers(strengths, iterations, rate, cost_weight, temperature, changes, minutes)
    ref, target = find_model(model, variant, revision), target_of(output)
    split = split_of(ref, prompt, prompt_file, prompts, held_out, seed)
    settings = Settings(
        ref, (*split.searched, *split.held_out), negative_prompt, how.solver, how.schedule, how.steps, guidance_scale,
        seed, batch_size=batch_size, height=height, width=width, dtype=dtype, device=device,
    ).check()  # fmt: skip
    picture = None if plot is None else plottable(plot)
    console = Console(quiet, verbose)

    def learning(loaded: Model) -> SearchSettings:
        from ..guidance.search import SearchSettings

        wanted = _default_target(loaded.plan) if target_nfe is None else target_nfe
        return SearchSettings(
            loaded.scale, wanted, strengths or (), iterations, rate, cost_weight, temperature or (1.0, 1.0),
            gumbel, changes, seed,
        )  # fmt: skip

    with console.hushed():
        check_target(target_nfe, settings)
    for note in how.notes:
        console.note(note)
    return _search(settings, split, learning, 60.0 * minutes, target, picture, console, format)


def _default_target(table: Any) -> int:
    """Enough to guide one step in any run."""
    from ..guidance.search_runs import ticks_of

    return max(math.floor(DEFAULT_SHARE * table.evaluations), table.evaluations + min(ticks_of(table)))


def split_of(
    ref: ModelRef, given: Sequence[str] | None, file: str | None, count: int | None, held_out: int | None, seed: int
) -> Split:
    """What to search on and what to measure on.

    Of the user's prompts the last quarter is held out, and they begin again where more are asked for.
    """
    if count is not None:
        checks.whole("--prompts", count, 1, checks.MAX_IMAGES)
    others = checks.whole("--held-out", DEFAULT_HELD_OUT if held_out is None else held_out, 0, checks.MAX_IMAGES)
    if not given and file is None:
        count = count or DEFAULT_PROMPTS
        captions, about = prompts_for(ref, None, None, count + others, seed)
        return Split(captions[:count], captions[count:], about)
    found, about = prompts_for(ref, given, file, None, seed)
    kept = max(1, len(found) - (len(found) // 4 if others else 0))
    count = kept if count is None else count
    rest = found[kept:] or found
    return Split(
        tuple(found[k % kept] for k in range(count)), tuple(rest[k % len(rest)] for k in range(others)), about,
        same=kept == len(found),
    )  # fmt: skip


def _search(
    settings: Settings, split: Split, learning: Any, seconds: float, target: Path, picture: Path | None,
    console: Console, format: str,
) -> int:  # fmt: skip
    with console.hushed():
        from ..guidance.search import NothingToGain
        from .load import load

        loaded = load(settings, console)
    try:
        with console.hushed():
            how = learning(loaded)
            samples, others = _samples(settings, split, loaded)
            found = _run(samples, how, settings, seconds, target, console)
            kept = found.distance < 1.0
            if kept:
                _write(samples, found, settings, split, target)
            compared = _compared(others, found, console) if others.prompts else []
    except NothingToGain as error:
        console.warn(str(error))
        return 0
    if picture is not None:
        from .search_plot import draw

        draw(found, how, settings, picture)
    _report(found, how, samples, compared, settings, split, target if kept else None, format)
    if found.complete:
        _checkpoint(target).unlink(missing_ok=True)
    else:
        console.warn(f"the time was up after {len(found.losses)} of {how.iterations} iterations and {found.tried} "
                     "single changes: the policy is the best until then; with more --minutes the same command goes on "
                     "from there")  # fmt: skip
    if kept:
        console.note(f"{target} holds this policy: run it with {_command(settings, target)}")
    else:
        console.warn(f"no policy within {how.target:g} evaluations was found that is closer to full guidance "
                     "than none at all, so that no file is written: try a larger --target-nfe")  # fmt: skip
    return 0


def _samples(settings: Settings, split: Split, loaded: Model) -> tuple[Samples, Samples]:
    """To search on, and to measure on."""
    from ..guidance.calibrate_runs import Samples

    seeds = tuple(item.seed for item in settings.items)
    cut = len(split.searched)

    def of(prompts: tuple[str, ...], seeds: tuple[int, ...]) -> Samples:
        return Samples(
            loaded.backbone, loaded.plan, prompts, seeds, loaded.scale, "x0", settings.negative_prompt,  # type: ignore[arg-type]
            (loaded.height, loaded.width), settings.batch_size,
        )  # fmt: skip

    return of(split.searched, seeds[:cut]), of(split.held_out, seeds[cut:])


def _checkpoint(target: Path) -> Path:
    return target.with_name(f"{target.name}.checkpoint")


def _run(
    samples: Samples, how: SearchSettings, settings: Settings, seconds: float, target: Path, console: Console
) -> Found:
    from ..guidance.search import search as find
    from ..guidance.search_samples import made_for, pairs_of

    checkpoint = _checkpoint(target)
    made = made_for(samples, settings.model.name, "")
    key = repr((samples.prompts, samples.seeds, samples.negative, samples.size, made.weights, settings.dtype))
    try:
        with console.progress(1) as bar:

            def tell(what: str, done: int, total: int) -> None:
                bar.total = total
                bar.set_description_str(f"{what}, at most {seconds / 60.0:g} min in all;", refresh=False)
                bar.update(max(0, done - int(bar.n)))

            return find(samples.table, pairs_of(samples), how, checkpoint=checkpoint, key=key, seconds=seconds,
                        on_progress=tell, on_note=console.note)  # fmt: skip
    except KeyboardInterrupt:
        console.note(f"interrupted; {checkpoint.name} has what was found, and the same command goes on from there")
        raise


def _compared(others: Samples, found: Found, console: Console) -> list[Compared]:
    from ..guidance.search_samples import compare

    console.detail(f"measuring on {len(others.prompts)} other images")
    return compare(others, found)


def _write(samples: Samples, found: Found, settings: Settings, split: Split, target: Path) -> None:
    from ..guidance.policy_file import save
    from ..guidance.search_samples import made_for

    with writing("--output", target):
        save(found.policy, target, made_for(samples, settings.model.name, split.about))


def _report(
    found: Found, how: SearchSettings, samples: Samples, compared: list[Compared], settings: Settings, split: Split,
    target: Path | None, format: str,
) -> None:  # fmt: skip
    from .search_report import as_json, as_text

    if format == "json":
        head = {"model": settings.model.identity(), "solver": settings.solver, "schedule": settings.schedule}
        head |= {"steps": settings.steps, "guidance_scale": samples.scale}
        head["file"] = None if target is None else str(target)
        emit(json.dumps({**head, **as_json(found, how, samples, compared)}, allow_nan=False))
        return
    for line in as_text(found, how, samples, compared, split.same):
        emit(line)


def _command(settings: Settings, target: Path) -> str:
    """How to run the policy, which belongs to exactly this run."""
    from .shell import shown

    words = ["fewstep", "sample", "a prompt", *settings.model.words]
    words += ["--solver", settings.solver, "--schedule", settings.schedule, "--steps", str(settings.steps)]
    words += [] if settings.negative_prompt is None else ["--negative-prompt", settings.negative_prompt]
    return shown([*words, "--guidance", str(target)])
