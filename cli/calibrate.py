"""``fewstep calibrate``: what a guidance policy saves on a model, and the file that ``sample --guidance`` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, MissingDependencyError
from . import calibrate_options as more
from . import checks, options
from .console import Console, emit
from .guidance_ref import find_file
from .own_files import writable, writing

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..guidance.calibrate import Calibrated, Goal
    from ..guidance.calibrate_runs import Samples
    from ..samplers import Table
    from .model_ref import ModelRef
    from .settings import Settings

EXAMPLES = """\b
Examples:
  fewstep calibrate -o tiny.safetensors
  fewstep calibrate --policy linear --solver 2m --steps 20 -o linear.safetensors
  fewstep calibrate --prompt-file prompts.txt -m owner/name -g 7.5 --target-nfe 30 -o ag.safetensors --plot ag.png
  fewstep sample "a green star" --guidance tiny.safetensors

\b
The table goes to standard output, everything else to standard error.
An interrupted run goes on when the same command is given again.
"""
DEFAULT_PROMPTS = 100


class _Bar:
    """A progress bar whose total grows as more work is known."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar
        bar.total = 0

    def expect(self, ticks: int) -> None:
        self._bar.total += ticks
        self._bar.refresh()

    def passed(self, ticks: int) -> None:
        self._bar.update(min(ticks, max(0, self._bar.total - self._bar.n)))


def calibrate(
    prompt: options.Prompts = None,
    prompt_file: options.PromptFile = None,
    negative_prompt: more.Negative = None,
    prompts: more.PromptCount = None,
    seed: options.Seed = 0,
    height: options.Height = None,
    width: options.Width = None,
    solver: options.TableSolver = None,
    schedule: options.Schedule = None,
    steps: options.Steps = None,
    guidance_scale: options.Scale = None,
    policy: more.Policy = "adaptive",
    target_nfe: more.TargetNfe = None,
    target_fidelity: more.TargetFidelity = None,
    space: more.Space = None,
    plan: more.Plan = None,
    window: more.Window = None,
    ridge: more.Ridge = None,
    batch_size: more.CalibrationBatch = 4,
    model: options.Model = "tiny-sd",
    variant: options.Variant = None,
    revision: options.Revision = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    offload: options.Offload = None,
    output: more.PolicyOutput = None,
    plot: more.Plot = None,
    format: options.Format = "human",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> int:
    """Choose a guidance policy for a model and write it to a file."""
    from .how import choose
    from .model_ref import find_model
    from .settings import Settings

    checks.one_of("--format", format, checks.FORMATS)
    how = choose(solver, schedule, steps)
    if how.schedule == "adaptive":
        raise ConfigError(f"--solver {how.solver} chooses its steps while it runs, and a calibration is of a fixed run")
    ref, target = find_model(model, variant, revision), target_of(output)
    told, about = prompts_for(ref, prompt, prompt_file, prompts, seed)
    settings = Settings(
        ref, told, negative_prompt, how.solver, how.schedule, how.steps, guidance_scale, seed,
        batch_size=batch_size, height=height, width=width, dtype=dtype, device=device, offload=offload,
    ).check()  # fmt: skip
    picture = None if plot is None else plottable(plot)
    console = Console(quiet, verbose)
    with console.hushed():
        goal = _goal(policy, target_nfe, target_fidelity, plan, window, ridge, space)
        _check_target(goal, settings)
        samples = _samples(settings, space or "x0", console)
    for note in how.notes:
        console.note(note)
    found = _run(samples, goal, settings, about, target, console)
    if found.policy is not None:
        _write(found, target)
    if picture is not None and found.gamma is not None:
        from .calibrate_plot import draw

        draw(found, samples, picture)
    _report(found, samples, settings, target, format)
    if found.why is not None:
        console.warn(found.why)
    if found.policy is not None:
        words = ["fewstep", "sample", "a prompt", *ref.words]
        words += [] if policy == "adaptive" else _how_words(solver, schedule, steps, negative_prompt)
        console.note(f"{target} holds this policy: run it with {_shown([*words, '--guidance', str(target)])}")
    return 0


def prompts_for(
    ref: ModelRef, given: Sequence[str] | None, file: str | None, count: int | None, seed: int
) -> tuple[tuple[str, ...], str]:
    """The prompts of a calibration, and what they are in words.

    An embedded model has its own: captions of its training world, which no test prompt is. Others need the user's,
    which begin again where more are asked for: every one has a seed of its own.
    """
    if count is not None:
        checks.whole("--prompts", count, 1, checks.MAX_IMAGES)
    checks.whole("--seed", seed, 0, checks.MAX_SEED)
    if not given and file is None:
        if ref.kind != "embedded":
            raise ConfigError(f"there is no prompt, and none are known for {ref.name}: give some that are like yours, "
                              "or --prompt-file FILE; 100 or more are good")  # fmt: skip
        return training_captions(count or DEFAULT_PROMPTS, seed), "of the training world"
    found = checks.prompts(given, file)
    count = len(found) if count is None else count
    return tuple(found[k % len(found)] for k in range(count)), "of the user's"


def training_captions(count: int, seed: int) -> tuple[str, ...]:
    """Captions that the embedded models were trained on; never a test prompt (see models.captions.prompts)."""
    import numpy as np

    from ..models.scenes import sample_scene

    rng = np.random.default_rng(seed)
    return tuple(sample_scene(rng, "train").caption() for _ in range(count))


def target_of(output: str | None) -> Path:
    """Where ``--output`` points. ConfigError unless a policy may be written there; an older one is replaced."""
    if output is None:
        raise ConfigError("there is no file for the policy: give one, as in -o policy.safetensors")
    return writable("--output", output, "policy", find_file)


def plottable(plot: str) -> Path:
    """Where ``--plot`` points, if matplotlib is there."""
    path = Path(plot)
    if path.suffix.lower() != ".png" or "\0" in plot or not path.parent.is_dir():
        raise ConfigError(f"--plot {plot!r}: expected the name of a .png file in a folder that exists")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("--plot needs matplotlib: pip install 'fewstep[bench]', or leave --plot out")
    return path


def _goal(policy: str, nfe: Any, fidelity: Any, plan: Any, window: Any, ridge: Any, space: Any) -> Goal:
    """Options that the policy has no use for are refused, at their defaults too: whoever gives one expects something
    of it."""
    from ..guidance.calibrate import KINDS, PLANS, Goal
    from ..guidance.named import SPACES

    checks.one_of("--policy", policy, KINDS)
    fit = {"plan": plan, "window": window, "ridge": ridge}
    for name, value in {**fit, "space": space}.items():
        owner = "adaptive" if name == "space" else "linear"
        if value is not None and policy != owner:
            raise ConfigError(f"--{name} belongs to the policy {owner}, and the policy is {policy}: leave one of the "
                              "two out")  # fmt: skip
    for name, value, among in (("--plan", plan, PLANS), ("--space", space, SPACES)):
        if value is not None:
            checks.one_of(name, value, among)
    given = {name: value for name, value in fit.items() if value is not None}
    try:
        return Goal(policy, nfe, fidelity, **given)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(in_options(str(error))) from None


def _check_target(goal: Goal, settings: Settings) -> None:
    """Before weights are loaded. At scale 1 there is nothing to meet."""
    from ..guidance.calibrate import check_target
    from .plan import evaluations_of, plan

    ticks = evaluations_of(plan(settings).how)
    try:
        if settings.branches > 1 and ticks is not None:
            check_target(goal, ticks)
    except ConfigError as error:
        raise ConfigError(in_options(str(error))) from None


def in_options(text: str) -> str:
    """A message of the library in the words of the command line."""
    for name in ("target_nfe", "target_fidelity", "window must", "ridge must"):
        text = text.replace(name, f"--{name.replace('_', '-')}")
    return text


def _samples(settings: Settings, space: str, console: Console) -> Samples:
    """The loaded model and the run; what needs no weights was checked before."""
    from ..guidance.calibrate_runs import Samples
    from .load import load

    loaded = load(settings, console)
    table: Table = loaded.plan  # type: ignore[assignment]
    return Samples(
        loaded.backbone, table, settings.prompts, tuple(item.seed for item in settings.items), loaded.scale, space,
        settings.negative_prompt, (loaded.height, loaded.width), settings.batch_size,
    )  # fmt: skip


def _run(samples: Samples, goal: Goal, settings: Any, about: str, target: Path, console: Console) -> Calibrated:
    from ..guidance.calibrate import calibrate as choose_policy

    checkpoint = target.with_name(f"{target.name}.checkpoint")
    try:
        with console.hushed(), console.progress(0) as bar:
            return choose_policy(
                samples, goal, name=settings.model.name, about=about, checkpoint=checkpoint, key=settings.dtype,
                watch=_Bar(bar), on_note=console.note,
            )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(in_options(str(error))) from None
    except KeyboardInterrupt:
        console.note(f"interrupted; {checkpoint.name} has what was measured, and the same command goes on from there")
        raise


def _write(found: Calibrated, target: Path) -> None:
    from ..guidance.policy_file import save

    assert found.policy is not None
    with writing("--output", target):
        save(found.policy, target, found.made_for)


def _how_words(solver: str | None, schedule: str | None, steps: int | None, negative: str | None) -> list[str]:
    """The options of the run that a policy belongs to."""
    given = {"--solver": solver, "--schedule": schedule, "--steps": None if steps is None else str(steps)}
    given["--negative-prompt"] = negative
    return [word for option, value in given.items() if value is not None for word in (option, value)]


def _shown(words: list[str]) -> str:
    from .shell import shown

    return shown(words)


def _report(found: Calibrated, samples: Samples, settings: Any, target: Path, format: str) -> None:
    from .calibrate_report import as_json, as_text

    file = None if found.policy is None else str(target)
    if format == "json":
        head = {"model": settings.model.identity(), "solver": settings.solver, "schedule": settings.schedule}
        head |= {"steps": settings.steps, "guidance_scale": samples.scale, "file": file}
        emit(json.dumps({**head, **as_json(found, samples)}, allow_nan=False))
    else:
        for line in as_text(found, samples):
            emit(line)
