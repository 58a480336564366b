"""The restoration itself: load the model, restore batch by batch, write each picture as soon as it exists."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import FewstepError, NumericsError
from ..files import write_atomic
from . import output, png, record, restore_record
from .console import Console, emit
from .load import commit_of, warn_of_long_prompts
from .plan import broken, usable_device
from .restore_batch import quality_of, restored, shown, unexplained, what_else, with_hint
from .restore_pictures import beside_there, naming, paths_beside, posed_again, write_beside
from .restore_pose import Frame, Posed, check_levels, frame_of, frame_of_ref, pose
from .restore_settings import Job, JobTarget, RestoreSettings, check_colours
from .run import Outcome, complete_log, log_picture
from .settings import Item

if TYPE_CHECKING:
    from pathlib import Path

    from tqdm import tqdm

    from ..inverse.report import Restoration
    from ..samplers.backbones import Backbone


@dataclass
class Made:
    """What there is of one job: its samples, and the pictures beside them.       refused: why it cannot be restored."""

    job: Job
    target: JobTarget
    outcome: Outcome
    beside: list[Path] = field(default_factory=list)
    refused: FewstepError | None = None

    @property
    def todo(self) -> list[tuple[Item, ...]]:
        settled = self.outcome.lines.keys() | self.outcome.failed.keys()
        return [batch for batch in self.job.batches if any(item.index not in settled for item in batch)]


@dataclass
class Runner:
    """One run of the command.       side: write side-by-side pictures.       paths: print those of what is there.
    method: the --method that was given, for hints."""

    settings: RestoreSettings
    console: Console
    side: bool
    paths: bool
    method: str = ""
    loading: float = 0.0
    restoring: float = 0.0
    advised: bool = False

    def run(self, made: list[Made]) -> None:
        """Make what is missing of all jobs."""
        for one in made:
            one.beside = beside_there(one.job, one.target, self.side)
        total, there = sum(len(one.job.items) for one in made), sum(len(one.outcome.kept) for one in made)
        if there:
            what = "all pictures" if there == total else f"{there} of {total} pictures"
            self.console.note(f"{what} are there already and are kept")
            if there < total and (changed := made_otherwise(made)):
                self.console.warn(f"what is there was made with other versions ({changed}), so it may differ slightly "
                                  "from what is made now; to have all made alike, choose another --output")  # fmt: skip
        frame = frame_of_ref(self.settings.model)
        if frame is not None:  # before any weight is read
            check_levels(self.settings)
            _check_sizes(made, frame)
        try:
            backbone = self._load(made[0].target) if any(one.todo for one in made) else None
            if backbone is not None:
                if backbone.family == "unet2d":
                    check_colours(backbone.latent_shape(*backbone.default_size)[0], self.settings.model.name)
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
                if one.todo and frame is not None and backbone is not None:
                    posed = _posed(one, frame, alone=len(made) == 1)
                    if posed is not None:
                        self._job(one, posed, backbone, bar, f"picture {number + 1} of {len(made)}", len(made) == 1)
                elif not one.outcome.failed and len(one.beside) < len(paths_beside(one.job, one.target, self.side)):
                    self._beside(one, None)
                with naming(one.target.log):
                    complete_log(one.target, one.outcome)
                self._print(one, bar)
        self.restoring = time.perf_counter() - start
        if all(one.refused is not None and not one.outcome.lines for one in made):
            raise _none_fits(made)

    def _job(self, one: Made, posed: Posed, backbone: Backbone, bar: tqdm, where: str, alone: bool) -> None:
        """Restore what is missing of one picture, then write what is made of all its samples."""
        bar.clear()
        if posed.note is not None:
            self.console.note(posed.note)
        if posed.warning is not None:
            self.console.warn(posed.warning)
        png.remove_stale(one.target.folder, one.target.file.name if one.target.file else one.target.stem)
        try:
            for batch in one.todo:
                self._batch(one, posed, backbone, batch, bar, where)
        except FewstepError as error:  # too little memory for this picture, or a method that refuses its measurement
            if alone:
                raise
            _fail(one, error)
        self._beside(one, posed)

    def _beside(self, one: Made, posed: Posed | None) -> None:
        missing = len(one.job.items) - len(one.outcome.lines)
        if missing and one.outcome.lines:
            self.console.note(f"{one.job.name}: what is made of all samples is not written, since {missing} of "
                              f"{len(one.job.items)} failed; other seeds (--seed) may not")  # fmt: skip
        if not missing:
            posed = posed_again(one.job, one.target) if posed is None and self.side else posed
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
                on_tick = shown(bar, posed, f"{where}, seed {batch[0].seed}{many}", self.settings.method.method.steps)
                found = restored(one.job, posed, backbone, batch, on_tick)
        except NumericsError as error:
            one.outcome.failed |= {item.index: with_hint(error, one.job, self.method, len(batch)) for item in missing}
            return
        seconds = (time.perf_counter() - clock) / len(batch)
        with naming(one.target.folder):
            one.target.folder.mkdir(parents=True, exist_ok=True)  # not before: a method may refuse the measurement
        for item in missing:
            fields = self._record(one, posed, backbone, batch, item, found)
            path = one.target.path(item)
            pixels = found.x[item.index - batch[0].index]
            data = png.encode(png.picture(pixels), record.texts(fields) if self.settings.metadata else {})
            with naming(path):
                write_atomic(path, data)
            line = output.log_line(path, fields)
            one.outcome.lines[item.index] = line
            with naming(one.target.log):
                log_picture(one.target, one.outcome, {**line, "seconds": round(seconds, 3)})
            bar.clear()
            told = restore_record.quality(fields)
            self.console.note(f"{one.job.name}, seed {item.seed}: {told}, {seconds:.1f} s")
            if why := unexplained(fields, posed):
                self._warn(one.job, f"{one.job.name}, seed {item.seed}, does not explain its measurement ({why})")

    def _warn(self, job: Job, what: str) -> None:
        """What can be done stands behind the first such warning alone."""
        advice = f": try another --seed, --samples, or more --steps; if all are so, {what_else(job, self.method)}"
        self.console.warn(what if self.advised else what + advice)
        self.advised = True

    def _record(
        self, one: Made, posed: Posed, backbone: Backbone, batch: Sequence[Item], item: Item, found: Restoration
    ) -> dict[str, Any]:
        row = item.index - batch[0].index
        values = quality_of(found, posed, row)
        cost = {key: round(rows) for key, rows in found.report.ledger.per_image(len(batch)).items()}
        commit = commit_of(self.settings.model)
        resolved = restore_record.Found(
            posed.height, posed.width, backbone.device.type, cost, commit=commit, resized_from=posed.resized_from,
            **values,
        )  # fmt: skip
        return restore_record.record(one.job, item, resolved)


def find_made(jobs: Sequence[Job], whole: output.Target) -> list[Made]:
    """The jobs, with what is there of each. ConfigError if another file is in the way."""
    found = []
    for job in jobs:
        target = job.target(whole)
        outcome = Outcome(output.finished(target, job))
        outcome.kept = frozenset(outcome.lines)
        found.append(Made(job, target, outcome))
    return found


def made_otherwise(made: Sequence[Made]) -> str:
    """The versions that the pictures which are kept were made with, where they are not those that are here."""
    found = {}
    for one in made:
        for index in one.outcome.kept:
            theirs = one.outcome.lines[index].get("versions", {})
            found |= {f"{name} {theirs[name]}": None for name in record.changed(theirs)}
    return ", ".join(found)


def described(made: Sequence[Made], frame: Frame, facts: Callable[[Posed], dict[str, Any]]) -> list[dict[str, Any]]:
    """Facts on the measurement of each, one measurement in memory at a time; why there is none is its `refused`.

    Errors: that of the first if nothing fits.
    """
    told = []
    for one in made:
        posed = _posed(one, frame, alone=len(made) == 1)
        told.append({} if posed is None else facts(posed))
    if all(one.refused is not None for one in made):
        raise _none_fits(made)
    return told


def _check_sizes(made: Sequence[Made], frame: Frame) -> None:
    """Poses a picture of each size. What does not fit is an error if nothing fits, else that picture's failure."""
    todo = [one for one in made if one.todo]
    good: set[tuple[int, int]] = set()
    for one in todo:
        if one.job.source.size not in good and _posed(one, frame, alone=len(made) == 1) is not None:
            good.add(one.job.source.size)
    if todo and not good and not any(one.outcome.lines for one in made):
        raise _none_fits(made)


def _none_fits(made: Sequence[Made]) -> FewstepError:
    why = next(one.refused for one in made if one.refused is not None)
    return type(why)(f"none of the {len(made)} INPUTs can be restored so; the first: {why}")


def _posed(one: Made, frame: Frame, *, alone: bool) -> Posed | None:
    """The measurement, or the error why there is none: raised if this picture is the only one, else its failure."""
    try:
        posed = pose(one.job, frame)
        posed.measurement.residual(posed.measurement.guess())
        one.job.settings.method.method.check(posed.measurement)
        return posed
    except FewstepError as error:
        if alone:
            raise
        _fail(one, error)
        return None


def _fail(one: Made, error: FewstepError) -> None:
    one.refused = type(error)(str(error))  # a new one: its traceback and causes would keep tensors alive
    one.outcome.failed |= {item.index: str(error) for item in one.job.items if item.index not in one.outcome.lines}
