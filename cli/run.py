"""The run itself: load the model, sample batch by batch, write each picture as soon as it exists."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, FewstepError, NumericsError
from ..files import write_atomic
from . import output, png, record
from .console import Console, emit
from .model_ref import ModelRef
from .settings import Item, Settings

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..guidance.sampling import Sampled
    from ..samplers import Table
    from ..samplers.backbones import Backbone


@dataclass
class Outcome:
    """lines: index -> log line of every picture that is there.       kept: those that were there before.
    failed: index -> why.       logged: (file, digest) of the lines in run.jsonl.       loading, sampling: seconds."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    failed: dict[int, str] = field(default_factory=dict)
    logged: set[tuple[str, str]] = field(default_factory=set)
    loading: float = 0.0
    sampling: float = 0.0

    @property
    def exit_code(self) -> int:
        if not self.failed:
            return 0
        return 3 if self.lines else 1


@dataclass(frozen=True)
class Model:
    """A loaded model and what it makes of the settings."""

    backbone: Backbone
    height: int
    width: int
    scale: float
    evaluations: int
    commit: str | None


def run(settings: Settings, target: output.Target, console: Console, *, paths: bool) -> Outcome:
    """Make what is missing. paths: print each path as soon as its picture is there."""
    outcome = Outcome(output.finished(target, settings))
    outcome.kept = frozenset(outcome.lines)
    if len(outcome.kept) == settings.total:
        console.note("made before by the same command: nothing to do")
    elif outcome.kept:
        console.note(f"{len(outcome.kept)} of {settings.total} pictures are there already and are kept")
    todo = [batch for batch in settings.batches if any(item.index not in outcome.lines for item in batch)]
    try:
        model = _prepare(settings, target, console, outcome) if todo else None
        _complete_log(target, outcome)
        _batches(settings, target, console, outcome, model, todo, paths)
    except KeyboardInterrupt:
        console.note(f"interrupted with {len(outcome.lines)} of {settings.total} pictures; the same command goes on")
        raise
    return outcome


def _prepare(settings: Settings, target: output.Target, console: Console, outcome: Outcome) -> Model:
    """Load the model; make the folder only once nothing can be wrong with the input any more."""
    output.probe(target.folder, str(target.file or target.folder))
    start = time.perf_counter()
    with console.hushed():
        model = load(settings, console)
    outcome.loading = time.perf_counter() - start
    target.folder.mkdir(parents=True, exist_ok=True)
    png.remove_stale(target.folder, target.file.name if target.file else target.run)
    return model


def load(settings: Settings, console: Console) -> Model:
    """The model, after every check that needs no weights."""
    ref = settings.model
    hub = " (from the hub where it is not in the cache; --verbose shows the download)" if ref.kind == "hub" else ""
    console.note(f"loading {ref.name} ...{hub}")
    from ..samplers.backbones import load_backbone

    device, table = plan(settings)
    console.hush_loaded()
    with _broken(ref):
        backbone = load_backbone(
            ref.location, dtype=settings.dtype, device=device, variant=ref.variant, revision=ref.revision
        )
        height, width = backbone.default_size
        height, width = settings.height or height, settings.width or width
        backbone.check_size(height, width)
    scale = settings.guidance_scale
    if scale is None:
        scale = ref.default_scale if ref.default_scale is not None else backbone.default_guidance_scale
    _warn_of_long_prompts(settings, backbone, console)
    console.detail(
        f"{backbone.family} on {backbone.device}, {settings.dtype}, {width}x{height}, guidance scale {scale:g}, "
        f"{table.evaluations} evaluations a picture: {table.solver}"
    )
    return Model(backbone, height, width, float(scale), table.evaluations, _commit(ref))


def plan(settings: Settings) -> tuple[str, Table]:
    """(device, table): every check that needs torch, or a scheduler config from the hub, but no weights."""
    import torch

    from ..kernels import choice
    from ..samplers.backbones import check_device, check_model

    device = resolve_device(settings.device)
    check_device(device)
    choice.use_triton(torch.device(device))  # raises where FEWSTEP_KERNELS asks for what cannot be
    check_model(settings.model.location)
    return device, trace_of(settings.model, settings.solver, settings.schedule, settings.steps)


def trace_of(ref: ModelRef, solver: str, schedule: str, steps: int) -> Table:
    """The table of a run, from the model's scheduler config."""
    from ..guidance.sampling import levels_of
    from ..samplers import SOLVERS, trace
    from ..samplers.backbones import read_schedule

    with _broken(ref):
        noise, _ = read_schedule(ref.location, revision=ref.revision)
        return trace(SOLVERS[solver](), levels_of(schedule, steps, noise), noise)


@contextmanager
def _broken(ref: ModelRef) -> Iterator[None]:
    """What a config with wrong values makes Python raise is bad input; torch's RuntimeError is a failure."""
    try:
        yield
    except FewstepError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"the model {ref.name} cannot be used, as if a config of it is wrong: {what[:300]}"
        ) from error


def _commit(ref: ModelRef) -> str | None:
    """Which commit of a hub model was loaded: a branch moves, a commit does not."""
    if ref.kind != "hub":
        return None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(ref.location, "model_index.json", revision=ref.revision)
    name = Path(path).parent.name if isinstance(path, str) else ""
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else None


def resolve_device(device: str) -> str:
    """The device that "auto" means: the first CUDA device where there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _warn_of_long_prompts(settings: Settings, backbone: Any, console: Console) -> None:
    """Text encoders cut a prompt that is too long, silently."""
    tokenizer = getattr(getattr(backbone, "pipe", None), "tokenizer", None)
    limit = getattr(tokenizer, "model_max_length", None)
    if tokenizer is None or not isinstance(limit, int) or limit > 100_000:
        return
    for prompt in dict.fromkeys([*settings.prompts, settings.negative_prompt or ""]):
        tokens = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        if tokens > limit:
            short = prompt if len(prompt) <= 50 else prompt[:47] + "..."
            console.warn(f"{short!r} has {tokens} tokens and this model reads {limit}: the rest is ignored")


def _batches(
    settings: Settings,
    target: output.Target,
    console: Console,
    outcome: Outcome,
    model: Model | None,
    todo: list[tuple[Item, ...]],
    paths: bool,
) -> None:
    start = time.perf_counter()
    with console.progress(len(todo) * model.evaluations if model else 0) as bar:
        for batch in settings.batches:
            if model is not None and any(item.index not in outcome.lines for item in batch):
                _describe(bar, batch, settings.total)
                with console.hushed():
                    _make(settings, target, outcome, model, batch, bar)
            for item in batch:
                if item.index in outcome.failed:
                    bar.clear()
                    console.warn(f"picture {item.index} (seed {item.seed}) failed: {outcome.failed[item.index]}")
                elif paths:
                    bar.clear()
                    emit(str(target.path(item)))
    outcome.sampling = time.perf_counter() - start


def _describe(bar: tqdm, batch: Sequence[Item], total: int) -> None:
    first, last = batch[0].index + 1, batch[-1].index + 1
    bar.set_description_str(f"picture {first}{f' to {last}' if last > first else ''} of {total}")


def _make(
    settings: Settings, target: output.Target, outcome: Outcome, model: Model, batch: Sequence[Item], bar: tqdm
) -> None:
    """Sample a batch whole and write those of its pictures that are missing."""
    missing = [item for item in batch if item.index not in outcome.lines]
    try:
        sampled = _sample(settings, model, batch, bar)
    except NumericsError as error:
        outcome.failed |= {item.index: str(error) for item in missing}
        return
    resolved = record.Resolved(
        height=model.height,
        width=model.width,
        guidance_scale=model.scale,
        device=model.backbone.device.type,
        evaluations=sampled.report.evaluations,
        nfe=sum(sampled.report.nfe_per_branch.values()),
        commit=model.commit,
    )
    for item in missing:
        pixels = sampled.images[item.index - batch[0].index]
        if not pixels.isfinite().all():
            outcome.failed[item.index] = f"its pixels are no numbers; try another --dtype than {settings.dtype}"
            continue
        fields = record.record(settings, item, batch, resolved)
        path = target.path(item)
        write_atomic(path, png.encode(png.picture(pixels), record.texts(fields) if settings.metadata else {}))
        outcome.lines[item.index] = output.log_line(path, fields)
        _log(target, outcome, outcome.lines[item.index])


def _sample(settings: Settings, model: Model, batch: Sequence[Item], bar: tqdm) -> Sampled:
    from ..guidance.sampling import sample
    from ..samplers import SOLVERS

    negative = settings.negative_prompt

    def count(*_: Any) -> None:
        bar.update(1)

    try:
        with _broken(settings.model):
            return sample(
                model.backbone,
                [item.prompt for item in batch],
                negative_prompts=None if negative is None else [negative] * len(batch),
                solver=SOLVERS[settings.solver](),
                steps=settings.steps,
                grid=settings.schedule,
                guidance_scale=model.scale,
                seeds=[item.seed for item in batch],
                height=model.height,
                width=model.width,
                on_tick=count,
            )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            hint = "a smaller --batch-size" if len(batch) > 1 else "a smaller --height and --width, or --dtype float16"
            what = f"{len(batch)} picture(s) of {model.width}x{model.height}"
            raise FewstepError(f"there is not enough memory for {what}: try {hint}") from error
        raise


def _complete_log(target: output.Target, outcome: Outcome) -> None:
    """A crash between a picture and its line leaves the line to the next run."""
    if target.log is not None:
        outcome.logged = {(line["file"], str(line.get("sha256"))) for line in output.read_log(target.log)}
    for line in outcome.lines.values():
        _log(target, outcome, line)


def _log(target: output.Target, outcome: Outcome, line: dict[str, Any]) -> None:
    """Every picture has one line, even when it was removed and made again."""
    key = (line["file"], line["sha256"])
    if target.log is not None and key not in outcome.logged:
        output.append_log(target.log, line)
        outcome.logged.add(key)
