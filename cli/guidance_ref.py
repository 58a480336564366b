"""What ``--guidance`` names: a policy by name, or a file of ``fewstep calibrate`` or ``fewstep search``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, FewstepError, IncompatibleError
from ..guidance import named
from ..names import parse_options
from . import checks
from .safetensors_head import read_head

if TYPE_CHECKING:
    from ..guidance.made_for import MadeFor
    from ..samplers import AdaptiveDPM, Policy, Table
    from .model_ref import ModelRef
    from .settings import Settings

MAX_BYTES = 64 << 20
_FORMAT = "fewstep-policy"


@dataclass(frozen=True)
class GuidanceRef:
    """A policy before torch is imported.

    name: "adaptive:threshold=0.998", or of the file, never a path.       digest: of a file's contents.
    scale: the guidance scale that it has or was calibrated with; None if it takes the run's.
    """

    name: str
    digest: str | None = None
    scale: float | None = None
    location: str | None = field(default=None, compare=False)

    def identity(self) -> dict[str, str]:
        return {"name": self.name} | ({} if self.digest is None else {"digest": self.digest})


class Guiding(NamedTuple):
    """The policy of a run.       made_for: what it was calibrated for, if it was.       scale: None if not known.
    nfe: evaluations of a picture, where they are known before the run.
    """

    policy: Policy
    made_for: MadeFor | None
    scale: float | None
    nfe: int | None = None

    def with_scale(self, scale: float) -> Guiding:
        """With the model's own scale, where none is known."""
        from ..guidance.scale import with_scale

        return self if self.scale is not None else self._replace(policy=with_scale(self.policy, scale), scale=scale)


def find_guidance(text: str | None) -> GuidanceRef | None:
    """The policy that `text` means. ConfigError for an unknown name, and for a file that is no policy; the numbers in
    it are checked when it is loaded."""
    if text is None:
        return None
    if named.is_file(text):
        return find_file(text)
    try:
        name = named.canonical(text)
        options = name.partition(":")[2]
        scale = parse_options(options).get("scale") if options else None
    except ConfigError as error:
        raise ConfigError(f"--guidance: {error}") from None
    try:
        number = None if scale is None else float(scale)
    except ValueError:
        raise ConfigError(f"--guidance {text!r}: scale must be a number, got {scale!r}") from None
    checks.scale(number, f"--guidance {text}: scale")
    return GuidanceRef(name, scale=number)


def find_file(location: str, option: str = "--guidance") -> GuidanceRef:
    """The policy file at `location`; errors as in `find_guidance`.       option: what names it, for messages."""
    others = f", or one of {', '.join(named.NAMES)}" if option == "--guidance" else ""
    path = Path(location)
    try:
        if not path.is_file():
            what = checks.not_a_file(location)
            raise ConfigError(f"{option} {location!r} {what}: expected a file of fewstep calibrate or fewstep "
                              f"search{others}")  # fmt: skip
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{option} {path.name!r} is larger than {MAX_BYTES >> 20} MB: it is no policy")
        head, data = read_head(path, option), path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option} {location!r} cannot be read: {reason}") from None
    try:
        marks = head["__metadata__"]
        if marks["format"] != _FORMAT:
            raise KeyError("format")
        return GuidanceRef(path.name, _digest(head, data), _scale_of(marks), location)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise ConfigError(f"{option} {path.name!r} is no policy: expected a file of fewstep calibrate or fewstep "
                          "search") from None  # fmt: skip


def _scale_of(marks: dict[str, str]) -> float | None:
    """The scale that a file was made with, else its policy's own; several, one per step, are none that is known."""
    made_with, own = (json.loads(marks[key]).get("scale") for key in ("made_for", "policy"))
    scale = own if made_with is None and not isinstance(own, list) else made_with
    if isinstance(scale, bool) or not (scale is None or isinstance(scale, int | float)):
        raise TypeError("scale")
    return None if scale is None else float(scale)


def _digest(head: dict[str, Any], data: bytes) -> str:
    """16 hexadecimal digits of what the file says, whatever order safetensors wrote it in."""
    marks, body = head["__metadata__"], data[8 + int.from_bytes(data[:8], "little") :]
    told = [json.loads(marks[key]) for key in ("policy", "made_for")]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(set(head) - {"__metadata__"}):
        start, end = head[name]["data_offsets"]
        digest.update(f"\n{name} {head[name]['dtype']} {head[name]['shape']}\n".encode() + body[start:end])
    return digest.hexdigest()[:16]


def check_scales(guidance: GuidanceRef | None, scale: float | None) -> None:
    """ConfigError for two guidance scales that differ."""
    if guidance is not None and None not in (guidance.scale, scale) and guidance.scale != scale:
        raise ConfigError(f"--guidance-scale {scale:g} and --guidance {guidance.name}, which has the scale "
                          f"{guidance.scale:g}, were both given: leave one of the two out")  # fmt: skip


def guiding(settings: Settings, how: Table | AdaptiveDPM, parametrisation: str) -> Guiding | None:
    """The policy of a run, checked as far as that needs no loaded model.       parametrisation: of the model."""
    ref = settings.guidance
    if ref is None:
        return None
    from ..guidance.made_for import check
    from ..guidance.scale import with_scale

    where = f"--guidance {ref.name}"
    try:
        policy, made_for = named.policy_of(ref.name if ref.location is None else Path(ref.location))
        scale = ref.scale if settings.guidance_scale is None else settings.guidance_scale
        scale = settings.model.default_scale if scale is None else scale
        _check_range(policy, where)
        if isinstance(getattr(policy, "scale", None), tuple):
            raise ConfigError("this policy has a guidance scale for every step, and a run has one here: use "
                              "fewstep.sample(..., guidance=FILE)")  # fmt: skip
        if hasattr(policy, "scale"):
            policy = with_scale(policy, scale)
        check(policy, made_for, _here(settings, how, parametrisation), where)
        nfe = _checked_run(policy, how, parametrisation)
    except FewstepError as error:
        text = str(error)
        if text.startswith(f"{ref.name} "):  # an error of the file itself begins with its name
            where, text = "--guidance", f"--guidance {text}"
        raise type(error)(text if text.startswith(where) else f"{where}: {text}") from None
    return Guiding(policy, made_for, scale, nfe)


def _check_range(policy: Policy, where: str) -> None:
    """The scales in a file are those that the command line takes."""
    own = getattr(policy, "scale", None)
    for w in (*(own if isinstance(own, tuple) else (own,)), *getattr(policy, "choices", ())):
        if not isinstance(w, str):
            checks.scale(w, f"{where}: scale")


def _here(settings: Settings, how: Table | AdaptiveDPM, parametrisation: str) -> MadeFor:
    from ..guidance.made_for import EMPTY, GIVEN, MadeFor
    from .plan import is_table

    others = {
        "model": settings.model.name,
        "weights": weights_of(settings.model, bool(settings.loras)),
        "prediction": parametrisation,
        "negative": EMPTY if settings.negative_prompt is None else GIVEN,
        "scale": settings.guidance_scale,
    }
    return MadeFor.of_table(how, **others) if is_table(how) else MadeFor(**others)


def weights_of(ref: ModelRef, with_loras: bool = False) -> Any:
    """The fingerprint of a model that is not loaded, if it is a folder; with a LoRA it is another model's."""
    from ..guidance import fingerprint

    if with_loras:
        return fingerprint.Fingerprint("with a LoRA", ())
    return fingerprint.of_folder(Path(ref.location) / "unet") if ref.kind in ("embedded", "folder") else None


def _checked_run(policy: Policy, how: Table | AdaptiveDPM, parametrisation: str) -> int | None:
    """The evaluations of a picture, where the policy knows them. Errors are what it says of such a run."""
    from ..samplers import PARAMETRISATIONS, Run
    from .plan import is_table

    kind = PARAMETRISATIONS[parametrisation]
    if not is_table(how):
        if policy.varies != "never":
            raise IncompatibleError(f"{type(policy).__name__} needs to know the steps, and this --solver chooses them "
                                    "while it runs: choose another solver, or --guidance cfg")  # fmt: skip
    elif getattr(policy, "scale", 1.0) is not None:
        memory = policy.begin(Run(1, how.plan.nodes, how.plan.step, how.plan.stage, kind))
        if policy.varies != "by data":
            return sum(len(policy.branches(i, memory)) for i in range(len(how.plan.nodes)))
    return None


def check_loaded(settings: Settings, found: Guiding, backbone: Any) -> None:
    """The check of the weights that are loaded; IncompatibleError if the policy was calibrated for others."""
    from ..guidance import fingerprint
    from ..guidance.made_for import MadeFor, check

    assert settings.guidance is not None
    weights = fingerprint.of_pipeline(getattr(backbone, "pipe", None))
    here = MadeFor(model=settings.model.name, weights=weights, scale=found.scale)
    check(found.policy, found.made_for, here, f"--guidance {settings.guidance.name}")


def nothing_to_save(settings: Settings, scale: float | None, found: Guiding | None, ticks: int | None) -> str | None:
    """A line for a run that has no guidance to save evaluations of, or whose policy is known to guide nothing or all.

    ticks: of the run, if it knows them.
    """
    if settings.guidance is None or found is None:
        return None
    name, policy = f"--guidance {settings.guidance.name}", found.policy
    if scale == 1.0:
        return f"guidance scale 1 is no guidance and takes one evaluation a tick already: {name} changes nothing"
    if found.nfe is not None and found.nfe == ticks:
        return f"{name} evaluates one branch a tick here: no step is guided"
    threshold = getattr(policy, "threshold", 0.0)
    never = threshold > 1.0 and getattr(policy, "max_fraction", 1.0) >= 1.0
    if never or (found.nfe == 2 * (ticks or -1) and type(policy).__name__ != "CFG"):
        return f"{name} guides every step here: it saves nothing"
    return f"{name}: every cosine is above {threshold:g}, so that guidance ends at once" if threshold < -1.0 else None


def described(policy: Any) -> str:
    """A policy in a line: what of it is not as it is by default, without its scale."""
    if hasattr(policy, "choices"):
        return f"{type(policy).__name__}, " + " ".join(f"{c:g}" if isinstance(c, float) else c for c in policy.choices)
    if hasattr(policy, "kinds"):
        return f"{type(policy).__name__}, " + " ".join(policy.kinds)
    given = {f.name: getattr(policy, f.name) for f in fields(policy) if f.name != "scale"}
    defaults = {f.name: f.default for f in fields(policy) if f.default is not MISSING}
    told = [f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in given.items() if name == "threshold" or value != defaults.get(name)]  # fmt: skip
    return ", ".join([type(policy).__name__, *told])
