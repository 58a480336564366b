"""What a run will be, checked as far as that needs torch or a scheduler config, but no weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

from ..errors import ConfigError, FewstepError, IncompatibleError
from .model_ref import ModelRef
from .settings import Settings

if TYPE_CHECKING:
    from ..samplers import AdaptiveDPM, NoiseSchedule, Table
    from .guidance_ref import Guiding
    from .table_ref import TableRef


class Plan(NamedTuple):
    """What will run, and where.       steps: None for a solver that chooses them.       guiding: None for plain CFG."""

    device: str
    how: Table | AdaptiveDPM
    steps: int | None
    guiding: Guiding | None = None


def is_table(how: Table | AdaptiveDPM) -> TypeGuard[Table]:
    from ..samplers import Table

    return isinstance(how, Table)


def evaluations_of(how: Table | AdaptiveDPM) -> int | None:
    """Of a picture, if that is known before the run."""
    return how.evaluations if is_table(how) else None


def plan(settings: Settings) -> Plan:
    """Every check that needs torch, or a hub's scheduler config, but no weights."""
    from ..samplers.backbones import check_model
    from .guidance_ref import guiding

    device = check_device_of(settings)
    check_model(settings.model.location)
    how, steps = _how(settings)
    found = None if settings.guidance is None else guiding(settings, how, schedule_of(settings.model)[1])
    return Plan(device, how, steps, found)


def _how(settings: Settings) -> tuple[Table | AdaptiveDPM, int | None]:
    """What will run, and its steps."""
    if settings.table is not None:
        table = saved_table(settings.model, settings.table, from_noise=settings.init_image is None)
        return table, settings.steps
    if settings.schedule == "adaptive":
        return _adaptive(settings), None
    steps = settings.steps if settings.nfe is None else _steps_for(settings)
    table = trace_of(settings.model, settings.solver, settings.schedule, steps, strength=settings.share)
    return table, steps


def check_device_of(settings: Settings) -> str:
    """The device that is used, if it can be."""
    return usable_device(settings.device, settings.offload)


def usable_device(device: str, offload: str | None = None) -> str:
    """The device of ``--device``, if it can be used."""
    import torch

    from ..kernels import choice
    from ..samplers.backbones import check_device
    from ..samplers.backbones.placement import check_offload

    device = resolve_device(device)
    check_offload(offload, check_device(device).type)
    choice.use_triton(torch.device(device))  # raises where FEWSTEP_KERNELS asks for what cannot be
    return device


def _steps_for(settings: Settings) -> int:
    """What the budget pays for."""
    from ..guidance.layout import steps_for
    from ..samplers.solver_config import solver_of

    assert settings.nfe is not None
    noise, _ = schedule_of(settings.model)
    with broken(settings.model), _told("--"):
        with _told(f"--solver {settings.solver}: "):
            rule = solver_of(settings.solver)
        _check_levels(noise, settings.schedule, 1, settings.share)
        return steps_for(
            settings.nfe, noise, rule,
            grid=settings.schedule, branches=settings.branches, strength=settings.share,
        )  # fmt: skip


def _adaptive(settings: Settings) -> AdaptiveDPM:
    from ..guidance.layout import shortened
    from ..samplers.solver_config import adaptive_of

    noise, _ = schedule_of(settings.model)
    with _told("--"):
        shortened(noise, settings.share)  # refuses a strength that leaves nothing to do
    with _told(f"--solver {settings.solver}: "):
        found = adaptive_of(settings.solver)
    assert found is not None, settings.solver
    return found


def budget_line(settings: Settings, plan: Plan) -> str:
    """What a budget was found to pay for."""
    cost = (evaluations_of(plan.how) or 0) * settings.branches
    steps = counted(plan.steps or 0, "step")
    most = "" if settings.guidance is None else "at most "
    verb = f"cost{'s' * (plan.steps == 1)}"
    return f"--nfe {settings.nfe}: {steps} of {settings.solver}, which {verb} {most}{cost} a picture"


def counted(count: int, what: str) -> str:
    """ "1 step", "2 steps"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def trace_of(ref: ModelRef, solver: str, schedule: str, steps: int | None, *, strength: float = 1.0) -> Table:
    """The table of a run, from the model's scheduler config."""
    from ..guidance.layout import table_of
    from ..samplers.solver_config import solver_of

    noise, _ = schedule_of(ref)
    with broken(ref), _told("--"):
        with _told(f"--solver {solver}: "):
            rule = solver_of(solver)
        _check_levels(noise, schedule, steps, strength)
        return table_of(noise, rule, grid=schedule, steps=steps, strength=strength)


def _check_levels(noise: NoiseSchedule, schedule: str, steps: int | None, strength: float) -> None:
    """Lays the grid, so that an error names the option."""
    from ..guidance.layout import DEFAULT_STEPS, levels_of, shortened

    shortened(noise, strength)
    with _told(f"--schedule {schedule}{'' if strength == 1.0 else f' with --strength {strength:g}'}: "):
        levels_of(noise, schedule, DEFAULT_STEPS if steps is None else steps, strength)


@contextmanager
def _told(option: str) -> Iterator[None]:
    """ConfigErrors inside begin with the option; "--" is for those that begin with an option's plain name."""
    try:
        yield
    except ConfigError as error:
        text = str(error).replace("or guidance scale 1", "or -g 1")
        wanted = text.startswith(("strength ", "nfe ")) if option == "--" else not text.startswith("--")
        raise ConfigError(f"{option}{text}" if wanted else text) from None


def schedule_of(ref: ModelRef) -> tuple[NoiseSchedule, str]:
    """(noise schedule, name of the parametrisation) of a model."""
    from ..samplers.backbones import read_schedule

    with broken(ref):
        noise, parametrisation = read_schedule(ref.location, revision=ref.revision)
        return noise, parametrisation.name


def saved_table(ref: ModelRef, table: TableRef, *, from_noise: bool) -> Table:
    """The table of a file, if it was made for this model's noise levels and its kind of prediction.

    from_noise: the run begins without a picture, so the table must begin in noise.
    """
    from ..guidance.layout import check_begins_in_noise
    from ..samplers import Table

    noise, parametrisation = schedule_of(ref)
    if table.parametrisation not in (None, parametrisation):
        raise IncompatibleError(
            f"--table {table.name!r} was saved for a model that predicts {table.parametrisation}, and {ref.name} "
            f"predicts {parametrisation}: make it again with fewstep table --save, with the same --model as here"
        )
    try:
        found = Table.load(table.location, noise)
        first = found.plan.nodes[0]
        if from_noise and table.strength not in (None, "1"):
            raise ConfigError(f"{table.name!r} was made with --strength {table.strength} and begins at time "
                              f"{float(first.time):.4g}, from a picture: give --init-image FILE, or make the table "
                              "again without --strength")  # fmt: skip
        if from_noise:
            check_begins_in_noise(first, found.plan.step[-1] + 1, noise)
    except FewstepError as error:
        raise type(error)(f"--table: {error}") from None
    return found


@contextmanager
def broken(ref: ModelRef) -> Iterator[None]:
    """What a config with wrong values makes Python raise is bad input; torch's RuntimeError is a failure."""
    try:
        yield
    except FewstepError as error:
        if _is_offline(error):
            what = "needs configs from the hub: a single file has none" if ref.kind == "file" else "is on the hub"
            raise FewstepError(f"the model {ref.name} {what}, and the hub cannot be reached; try again with a network, "
                               "or give a diffusers folder") from error  # fmt: skip
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"the model {ref.name} cannot be used, as if a config of it is wrong: {what[:300]}"
        ) from error


def _is_offline(error: BaseException) -> bool:
    """Whether a connection failed beneath this error; by name, for the hub's client has changed its library."""
    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(below)
    return any(type(one).__name__ in _NO_NETWORK for one in chain)


_NO_NETWORK = ("ConnectError", "ConnectTimeout", "ConnectionError", "LocalEntryNotFoundError", "OfflineModeIsEnabled")


def resolve_device(device: str) -> str:
    """The device that "auto" means: the first CUDA device where there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
