"""From a picture's file to a measurement: of which size the restored picture is, and what is resized for that."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, FewstepError
from .checks import MAX_SIDE
from .model_ref import ModelRef, default_size, least_side, size_multiple
from .operator_ref import OperatorRef
from .plan import broken, schedule_of
from .restore_settings import Job, RestoreSettings

if TYPE_CHECKING:
    from torch import Tensor

    from ..inverse.measurement import Measurement

# Beyond this many times the pixels that a model was trained at, a picture is made smaller unless its size is asked for.
MUCH = 4
LOST = 0.5  # of a measurement's pixels: where fewer are left, that it was resized is a warning
_RESIZABLE = ("sr", "denoise", "mask")  # operators that still say what they said of the picture once it is resized


class Frame(NamedTuple):
    """Sizes that a model can make: multiples from `least` on; `default` is what it was trained at, (height, width)."""

    name: str
    multiple: int
    least: int
    default: tuple[int, int]


class Posed(NamedTuple):
    """truth: (1, 3, H, W), where the picture that came in was clean.       note: on what was resized, if anything was.
    warning: of a size that is not the model's, and of a measurement of which most is lost.
    resized_from: height and width of the picture that came in, where it was resized."""

    measurement: Measurement
    truth: Tensor | None
    height: int
    width: int
    note: str | None
    warning: str | None
    resized_from: dict[str, int] | None = None


def frame_of_ref(ref: ModelRef) -> Frame | None:
    """As far as a local model's configs tell."""
    multiple, least, default = size_multiple(ref), least_side(ref), default_size(ref)
    if multiple is None or default is None:
        return None
    return Frame(ref.name, multiple, least or multiple, default)


def frame_of(backbone: Any, name: str) -> Frame:
    """Of a loaded model, which has the last word on sizes by `check_size`."""
    return Frame(name, backbone.size_multiple, backbone.size_multiple, backbone.default_size)


def check_levels(settings: RestoreSettings) -> None:
    """Lays the run out, as far as a scheduler's config tells: ConfigError for a grid or solver that it cannot have."""
    from ..samplers import trace
    from ..samplers.solver_config import grid_of, solver_of

    method = settings.method.method
    noise, _ = schedule_of(settings.model)
    with broken(settings.model):
        try:
            trace(solver_of(method.solver), grid_of(method.grid)(noise, method.steps), noise)
        except FewstepError as error:
            raise type(error)(f"--method {settings.method.name}, grid {method.grid}: {error}") from None


def pose(job: Job, frame: Frame) -> Posed:
    """The measurement of a job. ConfigError, with the picture's name, for what does not fit together."""
    try:
        return _simulated(job, frame) if job.settings.simulate else _given(job, frame)
    except FewstepError as error:
        text = str(error)
        raise type(error)(text if text.startswith("INPUT") else f"INPUT {job.name!r}: {text}") from None


def _simulated(job: Job, frame: Frame) -> Posed:
    """The clean picture in a size that fits, degraded."""
    from ..guidance.pictures import fitted, pixels_of
    from ..inverse.measurement import Measurement

    s, (w, h) = job.settings, job.source.size
    height, width = _fitting(job, frame, (w, h), math.lcm(frame.multiple, _factor(s.operator)))
    truth = pixels_of(fitted(job.source.open(), height, width))[None]
    operator, masked = _for_size(s.operator, (h, w), (height, width))
    measurement = Measurement.simulate(operator, truth, s.noise_std, seeds=(job.measurement_seed,))
    note = None
    if (height, width) != (h, w):
        note = f"{job.name} is resized from {w}x{h} to {width}x{height} pixels{masked}, then degraded"
    came = {"height": h, "width": w} if note else None
    return Posed(measurement, truth, height, width, note, _warning(job, frame, height, width), came)


def _given(job: Job, frame: Frame) -> Posed:
    """The degraded picture as it is; resized only where the operator then says the same of it."""
    from ..guidance.pictures import fitted, pixels_of
    from ..inverse.measurement import Measurement

    s, (w, h) = job.settings, job.source.size
    factor = _factor(s.operator)
    height, width = _fitting(job, frame, (factor * w, factor * h), math.lcm(frame.multiple, factor))
    resized = (height, width) != (factor * h, factor * w)
    image = job.source.open()
    operator, masked = _for_size(s.operator, (h, w), (height, width))
    if not resized or s.operator.name != "mask":
        y = pixels_of(fitted(image, height // factor, width // factor))[None]
    else:
        y = _nearest(pixels_of(image)[None], height, width)
    note = _note(job, frame, (height, width), masked) if resized else None
    warning = _warning(job, frame, height, width)
    if note and y.shape[-2] * y.shape[-1] < LOST * h * w:
        note, warning = None, note if warning is None else f"{note}; {warning}"
    measurement = Measurement(y, operator, s.noise_std)
    measurement = replace(measurement, y=measurement.seen(y))
    came = {"height": h, "width": w} if resized else None
    return Posed(measurement, None, height, width, note, warning, came)


def _note(job: Job, frame: Frame, size: tuple[int, int], masked: str) -> str:
    """That a degraded picture was resized for a restored one of `size` = (height, width), and what to type instead."""
    s, (w, h), factor = job.settings, job.source.size, _factor(job.settings.operator)
    height, width = size
    seen = f"{width // factor}x{height // factor} pixels" + (f" to become {width}x{height}" if factor > 1 else "")
    note = f"{job.name} is resized from {w}x{h} to {seen}{masked}"
    note += "" if masked else "; --noise-std is that of the resized picture"
    if width // factor >= w:
        return note
    multiple = math.lcm(frame.multiple, factor)
    H, W = (-(-side * factor // multiple) * multiple for side in (h, w))
    hints = ["if this is the clean picture, add --simulate"] if factor > 1 else []
    if s.height is None and s.width is None and _is_much(frame, factor * w, factor * h) and max(H, W) <= MAX_SIDE:
        hints += [f"-H {H} -W {W} keeps all of it"]
    return note + (f" ({'; '.join(hints)})" if hints else "")


def _is_much(frame: Frame, width: int, height: int) -> bool:
    return width * height > MUCH * frame.default[0] * frame.default[1]


def _fitting(job: Job, frame: Frame, size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """(height, width) of the restored picture for one of `size` = (width, height)."""
    from ..guidance.pictures import fitting_size

    s, (w, h) = job.settings, size
    asked = s.height is not None or s.width is not None
    if _is_much(frame, w, h) and s.height is None and s.width is None and _may_resize(s.operator, s.simulate):
        shrink = math.sqrt(frame.default[0] * frame.default[1] / (w * h))
        shrink = max(shrink, frame.least / min(w, h))
        size = (round(w * shrink), round(h * shrink))
    least = -(-frame.least // multiple) * multiple
    for option, side in (("--height", s.height), ("--width", s.width)):
        if side is not None and (side % multiple or side < least):
            why = f" and --operator {s.operator.name}" if multiple > frame.multiple else ""
            least_of = f" from {least} on" if side < least > multiple else ""
            raise ConfigError(f"{option} must be a multiple of {multiple}{least_of} for {frame.name}{why}, got {side}; "
                              f"try {max(side // multiple * multiple, least)}")  # fmt: skip
    height, width = fitting_size(size, s.height, s.width, multiple)
    if not _may_resize(s.operator, s.simulate):
        _check_as_it_is(job, frame, height, width)
    elif min(height, width) < least or (min(w, h) < 2 and not asked):
        raise ConfigError(
            f"a picture of {w}x{h} pixels is too small: {frame.name} makes no side below {least}; give a larger one, "
            f"or -H {max(height, least)} -W {max(width, least)} to have it enlarged first"
        )
    return height, width


def _check_as_it_is(job: Job, frame: Frame, height: int, width: int) -> None:
    """ConfigError if the picture would have to be resized, where that changes what the operator says of it."""
    s, (w, h) = job.settings, job.source.size
    if (width, height) == (w, h) and min(h, w) >= frame.least:
        return
    why = f"resizing it would change what --operator {s.operator.name} says of it"
    clean = "if it is the clean picture, add --simulate"
    if min(h, w) < frame.least:
        raise ConfigError(f"it has {w}x{h} pixels, which is too small: {frame.name} makes no side below {frame.least}, "
                          f"and {why}; give a larger picture, or {clean}")  # fmt: skip
    fits = [side // frame.multiple * frame.multiple for side in (w, h)]
    wanted, crop = f"{frame.name} makes sides that are multiples of {frame.multiple} from {frame.least} on", fits
    if s.height or s.width:
        wanted, crop = f"{width}x{height} pixels were asked for", [width, height]
    if crop[0] > w or crop[1] > h:
        todo = "leave --height and --width out" + ("" if fits == [w, h] else f", and crop it to {fits[0]}x{fits[1]}")
    else:
        todo = f"crop it to {crop[0]}x{crop[1]}"
    raise ConfigError(f"it has {w}x{h} pixels and {wanted}; {why}: {todo}")


def _may_resize(operator: OperatorRef, simulate: bool) -> bool:
    return simulate or operator.name in _RESIZABLE


def _factor(operator: OperatorRef) -> int:
    return operator.operator.factor if operator.name == "sr" else 1


def _for_size(operator: OperatorRef, came: tuple[int, int], size: tuple[int, int]) -> tuple[Any, str]:
    """(the operator, words on what was done to it): a mask of the size that the picture came in is resized alike."""
    if operator.name != "mask":
        return operator.operator, ""
    from ..inverse.operators import InpaintMask

    mask = operator.operator.mask
    if tuple(mask.shape[-2:]) == size:
        return operator.operator, ""
    if tuple(mask.shape[-2:]) != came:
        raise ConfigError(f"the mask of --operator has {mask.shape[-1]}x{mask.shape[-2]} pixels and the picture "
                          f"{came[1]}x{came[0]}: a mask must have the picture's size")  # fmt: skip
    return InpaintMask(_nearest(mask.float(), *size)[0] > 0.5), ", with its mask, by the nearest pixel"


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    """What is measured stays what it was, with its noise, and known and missing pixels do not mix."""
    from torch.nn import functional as F

    return F.interpolate(x, (height, width), mode="nearest-exact")


def _warning(job: Job, frame: Frame, height: int, width: int) -> str | None:
    h, w = frame.default
    if not _is_much(frame, width, height):
        return None
    what = f"{width}x{height} is far larger than the {w}x{h} that {frame.name} was trained at"
    return f"{job.name}: {what}: slow, and seldom good"
