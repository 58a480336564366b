"""The run itself: load the model, sample batch by batch, write each picture as soon as it exists."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import FewstepError, NumericsError
from ..files import write_atomic
from . import output, png, record
from .console import Console, emit
from .load import Model, load
from .plan import broken, evaluations_of, is_table
from .settings import Item, Settings

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..guidance.sampling import Sampled


@dataclass
class Outcome:
    """lines: index -> log line of every picture that is there.       kept: those that were there before.
    failed: index -> why.       logged: (file, digest) of the lines in run.jsonl, when it had log_size bytes.
    loading, sampling: seconds."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    failed: dict[int, str] = field(default_factory=dict)
    logged: set[tuple[str, str]] = field(default_factory=set)
    log_size: int = -1
    loading: float = 0.0
    sampling: float = 0.0

    @property
    def exit_code(self) -> int:
        if not self.failed:
            return 0
        return 3 if self.lines else 1


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
        complete_log(target, outcome)
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
    ticks = evaluations_of(model.plan) if model else 0
    with console.progress(len(todo) * (1 if ticks is None else ticks)) as bar:
        for batch in settings.batches:
            if model is not None and any(item.index not in outcome.lines for item in batch):
                _describe(bar, batch, settings.total)
                with console.hushed():
                    _make(settings, target, outcome, model, batch, bar)
                bar.update(1 if ticks is None else 0)
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
    for item in missing:
        row = item.index - batch[0].index
        pixels = sampled.images[row]
        if not pixels.isfinite().all():
            outcome.failed[item.index] = f"its pixels are no numbers; try another --dtype than {settings.dtype}"
            continue
        fields = record.record(settings, item, batch, _resolved(model, sampled, row))
        path = target.path(item)
        write_atomic(path, png.encode(png.picture(pixels), record.texts(fields) if settings.metadata else {}))
        outcome.lines[item.index] = output.log_line(path, fields)
        log_picture(target, outcome, outcome.lines[item.index])


def _resolved(model: Model, sampled: Sampled, row: int) -> record.Resolved:
    """What the picture in this row of a batch cost, and what its settings became."""
    report: Any = sampled.report
    if sampled.table is not None:
        evaluations, nfe = report.evaluations, report.nfe_per_image[row]
    else:
        evaluations, nfe = report.ticks[row], report.nfe_per_image[row]
    return record.Resolved(
        height=model.height,
        width=model.width,
        steps=report.accepted[row] + 1 if model.steps is None else model.steps,
        guidance_scale=model.scale,
        device=model.backbone.device.type,
        evaluations=evaluations,
        nfe=nfe,
        commit=model.commit,
    )


def _sample(settings: Settings, model: Model, batch: Sequence[Item], bar: tqdm) -> Sampled:
    from ..guidance.sampling import sample

    negative = settings.negative_prompt

    def count(*_: Any) -> None:
        bar.update(1)

    how: dict[str, Any] = {"table": model.plan, "on_tick": count}
    if not is_table(model.plan):
        how = {"solver": model.plan, "strength": None if model.pixels is None else settings.share}
    try:
        with broken(settings.model):
            return sample(
                model.backbone,
                [item.prompt for item in batch],
                negative_prompts=None if negative is None else [negative] * len(batch),
                init_images=model.pixels,
                guidance=model.policy,
                guidance_scale=model.scale if model.policy is None else None,
                seeds=[item.seed for item in batch],
                height=model.height,
                width=model.width,
                **how,
            )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            hint = "a smaller --batch-size" if len(batch) > 1 else "a smaller --height and --width, or --dtype float16"
            what = f"{len(batch)} picture(s) of {model.width}x{model.height}"
            raise FewstepError(f"there is not enough memory for {what}: try {hint}") from error
        raise


def complete_log(target: output.Target, outcome: Outcome) -> None:
    """A crash between a picture and its line leaves the line to the next run."""
    for line in outcome.lines.values():
        log_picture(target, outcome, line)


def log_picture(target: output.Target, outcome: Outcome, line: dict[str, Any]) -> None:
    """Every picture has one line, even when it was removed and made again, or another process makes the same ones."""
    if target.log is None:
        return
    size = target.log.stat().st_size if target.log.exists() else 0
    if size != outcome.log_size:
        outcome.logged = {(found["file"], str(found.get("sha256"))) for found in output.read_log(target.log)}
        outcome.log_size = size
    key = (line["file"], line["sha256"])
    if key not in outcome.logged:
        output.append_log(target.log, line)
        outcome.logged.add(key)
        outcome.log_size = target.log.stat().st_size
