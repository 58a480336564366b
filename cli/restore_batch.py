"""A batch of samples of one picture: restored, measured against what is known, and what to type where that fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import FewstepError, NumericsError
from .operator_ref import MethodRef
from .restore_pose import Posed
from .restore_settings import Job
from .settings import Item

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..inverse.report import Restoration, Tick
    from ..samplers.backbones import Backbone


COARSE = 0.05  # root mean square of y - A(x), pixels from 0 to 1


def restored(
    job: Job, posed: Posed, backbone: Backbone, batch: Sequence[Item], on_tick: Callable[[Tick], None]
) -> Restoration:
    """The pictures of a batch. FewstepError, with what to try, where memory is short; NumericsError where they are no
    numbers."""
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


def shown(bar: tqdm, posed: Posed, where: str, steps: int) -> Callable[[Tick], None]:
    """Moves the bar: a step, and how far the predicted picture is from the measurement, beside the noise."""
    count, noise = int(posed.measurement.count[0]), posed.measurement.sigma_y

    def on_tick(tick: Tick) -> None:
        if tick.tick == 0 and bar.total is not None:
            bar.total += tick.ticks - steps  # some solvers evaluate several times a step
        residual = float(tick.residual.max()) / math.sqrt(count)
        bar.set_description_str(f"{where}: residual {residual:.3f} (noise {noise:g})", refresh=False)
        bar.update(1)

    return on_tick


def quality_of(found: Restoration, posed: Posed, row: int) -> dict[str, Any]:
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


def unexplained(fields: Mapping[str, Any], posed: Posed) -> str | None:
    """Why a picture is far from its measurement, by more than chance: chi^2 varies by sqrt(2 / m) of m numbers.

    Without noise there is no chance; what an autoencoder cannot show is below `COARSE`.
    """
    chi2, residual = fields["chi2"], fields["residual"]
    if chi2 is None:
        far = residual is not None and posed.measurement.sigma_y == 0.0 and residual > COARSE
        return f"residual {residual:.3f}, and there is no noise" if far else None
    far = chi2 > 1.5 + 5.0 * math.sqrt(2.0 / int(posed.measurement.count[0]))
    return f"chi^2 {chi2:.2f}, and about 1 would be right" if far else None


def what_else(job: Job, text: str) -> str:
    """What to do where no seed gives a picture that explains its measurement.       text: as in `with_hint`."""
    s = job.settings
    hint = None if s.method.values.get("weighting") == "polyak" else gentler(s.method, text)
    step = "" if hint is None else f"--method {hint} may be better, or "
    return f"{step}--noise-std is too small, or {s.model.name} cannot show it"


def with_hint(error: NumericsError, job: Job, text: str, together: int) -> str:
    """The error, with what to type.       text: the --method that was given, whose other keys stay."""
    hint = gentler(job.settings.method, text)
    alone = "; --batch-size 1 keeps the others of its batch" if together > 1 else ""
    return f"{error}{'' if hint is None else f': --method {hint}'}{alone}"


def gentler(ref: MethodRef, text: str) -> str | None:
    """`text` with what the method itself has against divergence, else with a quarter of its step size, or the method's
    own if that is less; None if there is no such number."""
    from ..inverse.named import canonical, fields_of, method_of

    options = [part for part in canonical(text or ref.name).partition(":")[2].split(",") if part]

    def changed(key: str, value: str) -> str:
        kept = [part for part in options if part.partition("=")[0] != key]
        return f"{ref.name}:{','.join([*kept, f'{key}={value}'])}"

    for key, value in ref.method.gentler.items():
        if ref.values[key] != value:
            return changed(key, value)
    key = ref.method.step_size
    value, usual = ref.values.get(key), fields_of(method_of(ref.name)).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value:
        return None
    value = value / 4
    if isinstance(usual, int | float) and 0 < usual < value:
        value = usual
    return changed(key, f"{value:g}")
