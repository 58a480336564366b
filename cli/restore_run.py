"""The restoration itself: load the model, restore batch by batch, write each picture as soon as it exists."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, FewstepError, IncompatibleError, NumericsError
from ..files import write_atomic
from . import output, png, record, restore_record
from .console import Console, emit
from .load import commit_of, warn_of_long_prompts
from .plan import broken, usable_device
from .restore_pictures import paths_beside, write_beside
from .restore_pose import Frame, Posed, frame_of, frame_of_ref, pose
from .restore_settings import Job, JobTarget, RestoreSettings
from .run import Outcome, complete_log, log_picture
from .settings import Item

if TYPE_CHECKING:
    from pathlib import Path

    from tqdm import tqdm

    from ..inverse.report import Restoration, Tick
    from ..samplers.backbones import Backbone


@dataclass
class Made:
    """What there is of one job: its samples, and the pictures beside them."""

    job: Job
    target: JobTarget
    outcome: Outcome
    beside: list[Path] = field(default_factory=list)

    @property
    def todo(self) -> list[tuple[Item, ...]]:
        settled = self.outcome.lines.keys() | self.outcome.failed.keys()
        return [batch for batch in self.job.batches if any(item.index not in settled for item in batch)]


@dataclass
class Runner:
    """One run of the command.       side: write side-by-side pictures.       paths: print those of what is there."""

    settings: RestoreSettings
    console: Console
    side: bool
    paths: bool
    loading: float = 0.0
    restoring: float = 0.0

    def run(self, made: list[Made]) -> None:
        """Make what is missing of all jobs."""
        for one in made:
            one.beside = [path for path in paths_beside(one.job, one.target, self.side) if path.exists()]
        total, there = sum(len(one.job.items) for one in made), sum(len(one.outcome.kept) for one in made)
        if there:
            what = "all pictures" if there == total else f"{there} of {total} pictures"
            self.console.note(f"{what} are there already and are kept")
        frame = frame_of_ref(self.settings.model)
        if frame is not None:
            _check_sizes(made, frame)  # before any weight is read
        try:
            backbone = self._load(made[0].target) if any(one.todo for one in made) else None
            if backbone is not None:
                _check_colours(backbone, self.settings.model.name)
                frame = frame_of(backbone, self.settings.model.name) if frame is None else frame
            self._jobs(made, backbone, frame)
        except KeyboardInterrupt:
            done = sum(len(one.outcome.lines) for one in made)
            self.console.note(f"interrupted with {done} of {total} pictures; the same command goes on")
            raise

    def _load(self, target: JobTarget) -> Backbone:
        """The model; the folder is made only once nothing can be wrong with the input any more."""
        s = self.settings
        output.probe(target.folder, str(target.file or target.folder))
        device = usable_device(s.device)
        self.console.note(f"loading {s.model.name} ...")
        start = time.perf_counter()
        with self.console.hushed():
            from ..samplers.backbones import load_backbone

            self.console.hush_loaded()
            with broken(s.model):
                backbone = load_backbone(
                    s.model.location, dtype=s.dtype, device=device, variant=s.model.variant, revision=s.model.revision
                )
            warn_of_long_prompts([s.prompt], backbone, self.console)
        self.loading = time.perf_counter() - start
        return backbone

    def _jobs(self, made: list[Made], backbone: Backbone | None, frame: Frame | None) -> None:
        start = time.perf_counter()
        batches = sum(len(one.todo) for one in made)
        with self.console.progress(batches * self.settings.method.method.steps) as bar:
            for number, one in enumerate(made):
                whole = not one.todo and len(one.beside) == len(paths_beside(one.job, one.target, self.side))
                posed = (
                    None if frame is None or whole or one.outcome.failed else _posed(one, frame, alone=len(made) == 1)
                )
                if posed is not None:
                    self._job(one, posed, backbone, bar, f"picture {number + 1} of {len(made)}")
                complete_log(one.target, one.outcome)
                self._print(one, bar)
        self.restoring = time.perf_counter() - start

    def _job(self, one: Made, posed: Posed, backbone: Backbone | None, bar: tqdm, where: str) -> None:
        """Restore what is missing of one picture, then write what is made of all its samples."""
        if backbone is not None and one.todo:
            bar.clear()
            if posed.note is not None:
                self.console.note(posed.note)
            if posed.warning is not None:
                self.console.warn(posed.warning)
            png.remove_stale(one.target.folder, one.target.file.name if one.target.file else one.target.stem)
            for batch in one.todo:
                self._batch(one, posed, backbone, batch, bar, where)
        if len(one.outcome.lines) == len(one.job.items):
            one.beside = write_beside(one.job, one.target, posed, one.outcome.lines, self.side)

    def _print(self, one: Made, bar: tqdm) -> None:
        bar.clear()
        for item in one.job.items:
            if item.index in one.outcome.failed:
                self.console.warn(f"{one.job.name}, seed {item.seed}, failed: {one.outcome.failed[item.index]}")
            elif self.paths and item.index in one.outcome.lines:
                emit(str(one.target.path(item)))
        if self.paths:
            for path in one.beside:
                emit(str(path))

    def _batch(self, one: Made, posed: Posed, backbone: Backbone, batch: Sequence[Item], bar: tqdm, where: str) -> None:
        """Restore a batch whole and write those of its pictures that are missing."""
        missing = [item for item in batch if item.index not in one.outcome.lines]
        many = "" if len(batch) == 1 else f" to {batch[-1].seed}"
        clock = time.perf_counter()
        try:
            with self.console.hushed():
                shown = _shown(bar, posed, f"{where}, seed {batch[0].seed}{many}", self.settings.method.method.steps)
                found = _restored(one.job, posed, backbone, batch, shown)
        except NumericsError as error:
            one.outcome.failed |= {item.index: _with_hint(error, self.settings, len(batch)) for item in missing}
            return
        seconds = (time.perf_counter() - clock) / len(batch)
        one.target.folder.mkdir(parents=True, exist_ok=True)  # not before: a method may refuse the measurement
        for item in missing:
            fields = self._record(one, posed, backbone, batch, item, found)
            path = one.target.path(item)
            pixels = found.x[item.index - batch[0].index]
            write_atomic(path, png.encode(png.picture(pixels), record.texts(fields) if self.settings.metadata else {}))
            line = output.log_line(path, fields)
            one.outcome.lines[item.index] = line
            log_picture(one.target, one.outcome, {**line, "seconds": round(seconds, 3)})
            bar.clear()
            told = restore_record.quality(fields)
            self.console.note(f"{one.job.name}, seed {item.seed}: {told}, {seconds:.1f} s")

    def _record(
        self, one: Made, posed: Posed, backbone: Backbone, batch: Sequence[Item], item: Item, found: Restoration
    ) -> dict[str, Any]:
        row = item.index - batch[0].index
        values = _quality(found, posed, row)
        cost = {key: round(rows) for key, rows in found.report.ledger.per_image(len(batch)).items()}
        commit = commit_of(self.settings.model)
        resolved = restore_record.Found(posed.height, posed.width, backbone.device.type, cost, commit=commit, **values)
        return restore_record.record(one.job, item, batch, resolved)


def find_made(jobs: Sequence[Job], whole: output.Target) -> list[Made]:
    """The jobs, with what is there of each. ConfigError if another file is in the way."""
    found = []
    for job in jobs:
        target = job.target(whole)
        outcome = Outcome(output.finished(target, job))
        outcome.kept = frozenset(outcome.lines)
        found.append(Made(job, target, outcome))
    return found


def _check_sizes(made: Sequence[Made], frame: Frame) -> None:
    """Poses a picture of each size. What does not fit is an error if nothing fits, else that picture's failure."""
    todo = [one for one in made if one.todo]
    good: set[tuple[int, int]] = set()
    for one in todo:
        if one.job.source.size not in good and _posed(one, frame, alone=len(made) == 1) is not None:
            good.add(one.job.source.size)
    if todo and not good and not any(one.outcome.lines for one in made):
        why = next(iter(todo[0].outcome.failed.values()))
        raise ConfigError(f"none of the {len(made)} INPUTs can be restored so; the first: {why}")


def _posed(one: Made, frame: Frame, *, alone: bool) -> Posed | None:
    """The measurement, or the error why there is none: raised if this picture is the only one, else its failure."""
    try:
        posed = pose(one.job, frame)
        posed.measurement.residual(posed.measurement.guess())
        return posed
    except (ConfigError, IncompatibleError) as error:
        if alone:
            raise
        _fail(one, str(error))
        return None


def _fail(one: Made, why: str) -> None:
    one.outcome.failed |= {item.index: why for item in one.job.items if item.index not in one.outcome.lines}


def _check_colours(backbone: Backbone, name: str) -> None:
    channels = backbone.latent_shape(*backbone.default_size)[0]
    if backbone.family == "unet2d" and channels != 3:
        raise IncompatibleError(f"{name} makes pictures of {channels} channel(s), and fewstep restore has those of 3: "
                                "use fewstep.restore in Python")  # fmt: skip


def _restored(
    job: Job, posed: Posed, backbone: Backbone, batch: Sequence[Item], on_tick: Callable[[Tick], None]
) -> Restoration:
    from ..inverse.restore import restore

    s = job.settings
    try:
        found = restore(
            backbone,
            posed.measurement,
            s.method.method,
            prompt=s.prompt,
            seeds=[item.seed for item in batch],
            checkpoint=s.checkpoint,
            on_tick=on_tick,
        )
        if not bool(found.x.isfinite().all()):
            raise NumericsError(f"its pixels are no numbers; try another --dtype than {s.dtype}")
        return found
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or "memory" in str(error).lower()):
            raise
        hints = [] if s.checkpoint else ["--checkpoint"]
        hints += ["a smaller --batch-size"] if len(batch) > 1 else ["a smaller --height and --width"]
        what = f"{len(batch)} picture(s) of {posed.width}x{posed.height}"
        raise FewstepError(f"there is not enough memory to restore {what}: try {' or '.join(hints)}") from error


def _shown(bar: tqdm, posed: Posed, where: str, steps: int) -> Callable[[Tick], None]:
    """Moves the bar: a step, and how far the predicted picture is from the measurement, beside the noise."""
    count, noise = int(posed.measurement.count[0]), posed.measurement.sigma_y

    def on_tick(tick: Tick) -> None:
        if tick.tick == 0 and bar.total is not None:
            bar.total += tick.ticks - steps  # some solvers evaluate several times a step
        residual = float(tick.residual.max()) / math.sqrt(count)
        bar.set_description_str(f"{where}: residual {residual:.3f} (noise {noise:g})", refresh=False)
        bar.update(1)

    return on_tick


def _quality(found: Restoration, posed: Posed, row: int) -> dict[str, Any]:
    """What restore_record.Found has of the picture in this row."""
    import torch

    from ..inverse.metrics import WINDOW, psnr, ssim

    m, x = posed.measurement, found.x[row : row + 1]
    with torch.no_grad():
        residual = float(torch.linalg.vector_norm(m.residual(x.to(m.y.dtype)).double())) / math.sqrt(int(m.count[0]))
        before = m.guess().clamp(0.0, 1.0)
    chi2 = found.report.chi2[row]
    values: dict[str, Any] = {"residual": residual, "chi2": chi2 if math.isfinite(chi2) else None}
    if posed.truth is not None:
        values["psnr"], values["psnr_before"] = float(psnr(x, posed.truth)), float(psnr(before, posed.truth))
        values["ssim"] = float(ssim(x, posed.truth)) if min(posed.height, posed.width) >= WINDOW else None
    return {key: value if value is None or math.isfinite(value) else None for key, value in values.items()}


def _with_hint(error: NumericsError, settings: RestoreSettings, together: int) -> str:
    """The error, with what to type."""
    name = settings.method.name
    key = settings.method.method.step_size
    value = settings.method.values.get(key)
    hint = f": --method {name}:{key}={value / 4:g}" if isinstance(value, int | float) and value else ""
    alone = "; --batch-size 1 keeps the others of its batch" if together > 1 else ""
    return f"{error}{hint}{alone}"
