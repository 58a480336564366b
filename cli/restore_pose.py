"""From a picture's file to a measurement: of which size the restored picture is, and what is resized for that."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, FewstepError
from .model_ref import ModelRef, default_size, least_side, size_multiple
from .operator_ref import OperatorRef
from .restore_settings import Job

if TYPE_CHECKING:
    from torch import Tensor

    from ..inverse.measurement import Measurement

# Beyond this many times the pixels that a model was trained at, a picture is made smaller unless its size is asked for.
MUCH = 4
_RESIZABLE = ("sr", "denoise", "mask")  # operators that still say what they said of the picture once it is resized


class Frame(NamedTuple):
    """Sizes that a model can make: multiples from `least` on; `default` is what it was trained at, (height, width)."""

    name: str
    multiple: int
    least: int
    default: tuple[int, int]


class Posed(NamedTuple):
    """truth: (1, 3, H, W), where the picture that came in was clean.       note: on what was resized, if anything was.
    warning: of a size that is not the model's."""

    measurement: Measurement
    truth: Tensor | None
    height: int
    width: int
    note: str | None
    warning: str | None


def frame_of_ref(ref: ModelRef) -> Frame | None:
    """As far as a local model's configs tell."""
    multiple, least, default = size_multiple(ref), least_side(ref), default_size(ref)
    if multiple is None or default is None:
        return None
    return Frame(ref.name, multiple, least or multiple, default)


def frame_of(backbone: Any, name: str) -> Frame:
    """Of a loaded model, which has the last word on sizes by `check_size`."""
    return Frame(name, backbone.size_multiple, backbone.size_multiple, backbone.default_size)


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
    return Posed(measurement, truth, height, width, note, _warning(job, frame, height, width))


def _given(job: Job, frame: Frame) -> Posed:
    """The degraded picture as it is; resized only where the operator then says the same of it."""
    from ..guidance.pictures import fitted, pixels_of
    from ..inverse.measurement import Measurement

    s, (w, h) = job.settings, job.source.size
    factor = _factor(s.operator)
    height, width = _fitting(job, frame, (factor * w, factor * h), math.lcm(frame.multiple, factor))
    resized = (height, width) != (factor * h, factor * w)
    if resized:
        _check_resizable(job, frame, height, width)
    image = job.source.open()
    operator, masked = _for_size(s.operator, (h, w), (height, width))
    if not resized or s.operator.name != "mask":
        y = pixels_of(fitted(image, height // factor, width // factor))[None]
    else:
        y = _nearest(pixels_of(image)[None], height, width)
    note = None
    if resized:
        seen = f"{width // factor}x{height // factor} pixels" + (f" to become {width}x{height}" if factor > 1 else "")
        noise = "" if masked else "; --noise-std is that of the resized picture"
        if factor > 1 and width < w:
            noise += " (if this is the clean picture, add --simulate)"
        note = f"{job.name} is resized from {w}x{h} to {seen}{masked}{noise}"
    measurement = Measurement(y, operator, s.noise_std)
    measurement = replace(measurement, y=measurement.seen(y))
    return Posed(measurement, None, height, width, note, _warning(job, frame, height, width))


def _fitting(job: Job, frame: Frame, size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """(height, width) of the restored picture for one of `size` = (width, height)."""
    from ..guidance.pictures import fitting_size

    s, (w, h) = job.settings, size
    much = w * h > MUCH * frame.default[0] * frame.default[1]
    if much and s.height is None and s.width is None and _may_resize(s.operator, s.simulate):
        shrink = math.sqrt(frame.default[0] * frame.default[1] / (w * h))
        shrink = max(shrink, frame.least / min(w, h))
        size = (round(w * shrink), round(h * shrink))
    height, width = fitting_size(size, s.height, s.width, multiple)
    if min(height, width) < frame.least or (min(w, h) < 2 and s.height is None and s.width is None):
        least = -(-frame.least // multiple) * multiple
        raise ConfigError(
            f"a picture of {w}x{h} pixels is too small: {frame.name} makes no side below {least}; give a larger one, "
            f"or -H {max(height, least)} -W {max(width, least)} to have it enlarged first"
        )
    for option, side in (("--height", s.height), ("--width", s.width)):
        if side is not None and side % multiple:
            why = f" and --operator {s.operator.name}" if multiple > frame.multiple else ""
            raise ConfigError(f"{option} must be a multiple of {multiple} for {frame.name}{why}, got {side}; try "
                              f"{max(side // multiple * multiple, frame.least)}")  # fmt: skip
    return height, width


def _check_resizable(job: Job, frame: Frame, height: int, width: int) -> None:
    s, (w, h) = job.settings, job.source.size
    if _may_resize(s.operator, s.simulate):
        return
    down = [max(side // frame.multiple * frame.multiple, frame.least) for side in (w, h)]
    wanted = f"{width}x{height} pixels were asked for" if s.height or s.width else (
        f"{frame.name} makes sides that are multiples of {frame.multiple} from {frame.least} on"
    )  # fmt: skip
    raise ConfigError(
        f"it has {w}x{h} pixels and {wanted}; resizing it would change what --operator {s.operator.name} says of it: "
        f"crop it to {down[0]}x{down[1]}"
    )


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
    if height * width <= MUCH * h * w:
        return None
    what = f"{width}x{height} is far larger than the {w}x{h} that {frame.name} was trained at"
    return f"{job.name}: {what}: slow, and seldom good"
