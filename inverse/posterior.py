"""What all posteriors share: a run of a table in which a measurement has its say at every tick."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError, NumericsError
from ..samplers import (
    DDIM,
    Level,
    Prediction,
    Solver,
    State,
    Table,
    advance,
    edit,
    initial_noise,
    renoise,
    start,
    trace,
)
from ..samplers.grids import check_steps
from ..samplers.noise import check_seeds
from ..samplers.solver_config import grid_of, solver_of
from .checks import check_number
from .measurement import Measurement
from .problem import Problem
from .report import Restoration, RestorationReport, Tick, TickLine

Init = Literal["noise", "gaussian", "inversion"]
OnTick = Callable[[Tick], State | None]
DETERMINISTIC = DDIM()
LARGEST = 1e4  # root mean square of a state, in units of its noise level's, that no run in order comes near


class Done(NamedTuple):
    """What a posterior made of one tick.

    state: at the next tick.       prediction: that led there.       residual: [B], |y - A(x)| of the picture it saw.
    memory: what the method remembers for its next tick.
    """

    state: State
    prediction: Prediction
    residual: Tensor
    memory: Any = None


@dataclass(frozen=True, kw_only=True)
class Posterior(ABC):
    """A sampler of pictures that explain a measurement; frozen hyper-parameters, nothing else.

    steps: of the run.       solver: an instance or a name, "sde-2m:eta=0.5".       grid: a name, "karras:rho=5".
    guidance_scale: 1 evaluates the prompt's branch alone; another number also the one of the empty prompt.
    init: where the run begins. "noise": the first guess of the picture (Measurement.guess), encoded, with as much noise
    as belongs to the first level; "gaussian": noise alone; "inversion": the same guess, taken up the levels by the
    deterministic first-order rule, one evaluation a step.
    """

    steps: int
    solver: Solver | str = DETERMINISTIC
    grid: str = "time"
    guidance_scale: float = 1.0
    init: Init = "noise"

    step_size: ClassVar[str] = ""  # the field to lower where a run diverges, if there is one
    remedy: ClassVar[str] = "take more steps"  # what else may help then
    gentler: ClassVar[Mapping[str, str]] = {}  # fields, with their values, that help before a smaller step does
    pixels_only: ClassVar[bool] = False  # whether the model's states must be pixels
    needs_text: ClassVar[bool] = False  # whether the network must be conditioned on a text

    def __post_init__(self) -> None:
        if self.init not in get_args(Init):
            raise ConfigError(f"init {self.init!r} does not exist: expected {', '.join(get_args(Init))}")
        object.__setattr__(self, "solver", solver_of(self.solver))
        grid_of(self.grid)
        check_steps(self.steps)
        check_number(self.guidance_scale, "guidance_scale", 1.0, zero=True)

    @abstractmethod
    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        """One tick: evaluate at state.x, heed the measurement, advance."""

    def check(self, measurement: Measurement) -> None:  # noqa: B027 - a hook
        """Refuse a measurement that the method cannot use, whatever the model: before anything is loaded."""

    def begin(self, problem: Problem) -> Any:
        """What the method remembers at its first tick; refuses a model that it cannot work with."""
        return None

    def __call__(
        self,
        backbone: Any,
        measurement: Measurement,
        *,
        prompt: str | Sequence[str] = "",
        seeds: Sequence[int] = (0,),
        on_tick: OnTick | None = None,
    ) -> Restoration:
        """Restore: one picture per seed.

        backbone: see samplers.backbones.Backbone.       measurement: one for all seeds, or one per seed.
        prompt: one for all, or one per seed.       on_tick: told of every tick; may return another State for it.
        Errors: ConfigError for numbers that do not fit; IncompatibleError for a backbone without gradients, or one
        that the method cannot use; NumericsError, with the step, where a run diverges.
        """
        if not hasattr(backbone, "to_pixels"):
            raise IncompatibleError(f"{type(backbone).__name__} has no to_pixels and to_latents: restoring needs a "
                                    "Backbone that has them, or a pipeline for fewstep.restore")  # fmt: skip
        self.check(measurement)
        clock = time.perf_counter()
        with torch.inference_mode(False), backbone.for_gradients(), torch.no_grad():
            problem, guess = self._pose(backbone, measurement, prompt, seeds)
            report = RestorationReport(self, problem.measurement.batch, problem.ledger)
            memory = self.begin(problem)  # it may refuse: before anything is spent
            state = start(problem.table, self._first(problem, guess, seeds))
            state = self._run(problem, state, memory, report, on_tick)
            x = problem.decode(state.x)
            report.chi2 = tuple(problem.measurement.chi2(x.to(problem.measurement.y)).tolist())
        report.seconds = time.perf_counter() - clock
        return Restoration(x, report)

    def _pose(
        self, backbone: Any, measurement: Measurement, prompt: str | Sequence[str], seeds: Sequence[int]
    ) -> tuple[Problem, Tensor]:
        seeds = check_seeds(seeds)
        if not seeds:
            raise ConfigError("there is no seed: give one per picture, such as seeds=(0,)")
        if prompt is None:
            raise ConfigError('prompt is a text, or one per seed; without one it is ""')
        prompts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(seeds):
            raise ConfigError(f"{len(prompts)} prompts for {len(seeds)} seeds: give one for all, or one per seed")
        measurement = measurement.to(backbone.device).images(len(seeds))
        guess = measurement.guess()
        height, width = guess.shape[-2:]
        network = backbone.encode(prompts, None, height=height, width=width)
        table = trace(solver_of(self.solver), grid_of(self.grid)(backbone.schedule, self.steps), backbone.schedule)
        return Problem(backbone, measurement, network, table, seeds, self.guidance_scale), guess

    def _first(self, problem: Problem, guess: Tensor, seeds: Sequence[int]) -> Tensor:
        """x at the first level."""
        level, dtype = problem.level(0), problem.measurement.y.dtype
        shape = problem.backbone.latent_shape(*guess.shape[-2:])
        noise = initial_noise(tuple(seeds), shape).to(guess.device, dtype)
        if self.init == "gaussian":
            return noise if problem.backbone.schedule.noisiest.sigma <= 1.0 else noise * float(level.sigma)
        pixels = guess.clamp(0.0, 1.0) if problem.pixel_range == 2.0 else guess
        z = problem.to_latents(pixels)
        return renoise(z, noise, level) if self.init == "noise" else _inverted(problem, z)

    def _run(
        self, problem: Problem, state: State, memory: Any, report: RestorationReport, on_tick: OnTick | None
    ) -> State:
        ticks = len(problem.table)
        for i in range(ticks):
            clock, level = time.perf_counter(), problem.level(i)
            done = self._done(problem, self.tick(problem, state, memory), i)
            state, memory, residual = done.state, done.memory, done.residual.cpu().double()
            self._check(problem, state, residual, i)
            report.ticks.append(TickLine(i, level, tuple(residual.tolist()), 1e3 * (time.perf_counter() - clock)))
            if on_tick is not None:
                changed = on_tick(Tick(i, ticks, level, residual, state, done.prediction))
                state = state if changed is None else edit(problem.table, state, _changed(changed, state).x)
        return state

    def _done(self, problem: Problem, done: Any, i: int) -> Done:
        """What `tick` returned, if it can be that."""
        name, batch = f"{type(self).__name__}.tick", problem.measurement.batch
        if not (isinstance(done, Done) and isinstance(done.state, State)):
            raise IncompatibleError(f"{name} must return Done(state, prediction, residual), got {type(done).__name__}")
        if done.state.tick != i + 1:
            raise IncompatibleError(f"{name} must return the state of tick {i + 1}, got that of {done.state.tick}: it "
                                    "is what problem.advance(state, prediction) gives")  # fmt: skip
        if not isinstance(done.residual, Tensor) or done.residual.shape != (batch,):
            got = tuple(done.residual.shape) if isinstance(done.residual, Tensor) else type(done.residual).__name__
            raise IncompatibleError(f"{name} must return a residual of shape ({batch},), one per image, got {got}")
        return done

    def _check(self, problem: Problem, state: State, residual: Tensor, i: int) -> None:
        """NumericsError where an image has left every reasonable range, NaN included."""
        target = problem.table.plan.targets[i]
        size = state.x.flatten(1).square().mean(1).sqrt() / max(1.0, float(target.sigma))
        sound = (size.cpu() < LARGEST) & torch.isfinite(residual)
        if not bool(sound.all()):
            name, k = type(self).__name__, int((~sound).nonzero()[0])
            lower = f"lower {self.step_size}, which is {getattr(self, self.step_size)}, or " if self.step_size else ""
            top = float(problem.measurement.y.abs().max())
            far = problem.pixel_range == 2.0 and top > 10.0
            scale = f" (y reaches {top:g}, and pixels are in [0, 1])" if far else ""
            raise NumericsError(
                f"{name} diverged at step {problem.table.plan.step[i] + 1} of {self.steps} (time {float(target.time):g}"
                f", image {k}): {lower}{self.remedy}{scale}"
            )


def _changed(changed: Any, state: State) -> State:
    if not isinstance(changed, State) or changed.tick != state.tick:
        got = f"tick {changed.tick}" if isinstance(changed, State) else type(changed).__name__
        raise IncompatibleError(f"on_tick must return None or a State of tick {state.tick}, such as "
                                f"tick.state._replace(x=...); got {got}")  # fmt: skip
    return changed


def _inverted(problem: Problem, z: Tensor) -> Tensor:
    """z at sigma = 0 taken up the run's levels: DDIM's rule backwards (Song et al. 2020, arXiv:2010.02502, 4.3)."""
    nodes: tuple[Level, ...] = tuple(dict.fromkeys((*problem.table.plan.nodes, problem.table.plan.targets[-1])))
    upward: Table = trace(DETERMINISTIC, tuple(reversed(nodes)), problem.backbone.schedule)
    state = start(upward, z)
    for i in range(len(upward)):
        state = advance(upward, state, problem.predict(state.x, upward.plan.nodes[i]))
    return state.x
