"""A solver as `pipe.scheduler` of an unmodified diffusers pipeline.

    pipe.scheduler = FewstepScheduler.of(pipe, solver=UniPC(3), grid="lambda")

The pipeline keeps its loop and calls `step` once per network evaluation, so a step of a solver with inner stages is
several ticks here: `order` is 1, and `num_inference_steps` and `timesteps` count ticks. A run is a `Table`, its state
one `State` that every `step` replaces; the arithmetic is `advance`, exactly as in `solve`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..kernels import ops
from .engine import Outputs, State, advance_and_feed, edit, start
from .feeding import version_of
from .from_config import parametrisation_from_config, schedule_from_config
from .from_config import with_defaults as config_with_defaults
from .levels import Level
from .noise import GeneratorTape
from .ragged import restart, row_of
from .scheduler_fields import own_fields, usable, written
from .scheduler_levels import Asked, run_levels, sigmas_of
from .scheduler_pipelines import scheduler_config_of
from .scheduler_schedules import PreconditionedVE
from .scheduler_ticks import tick_of
from .solver import Solver
from .solver_config import grid_of, solver_and_grid
from .table import Table, trace

_REMEMBERED_RUNS = 8  # earlier timesteps tensors kept, to recognise a pipeline that shares this scheduler


class FewstepScheduler(SchedulerMixin, ConfigMixin):
    """Any fewstep solver on any fewstep grid, for diffusers pipelines.

    solver: a Solver, a name ("2m", "DPM++ 2M Karras"), or {"name": "UniPC", "order": 3}, which the config keeps.
    grid: a name of `samplers.GRIDS`, {"name": "karras", "rho": 5.0}, or None: "lambda", for flow models the evenly
    spaced times 1, 1 - 1/n, ... of their pipelines.
    The other fields are the model's noise schedule, named as in diffusers; `from_config` takes them from the scheduler
    that the pipeline came with.       shift: constant time shift of a flow model.
    sigma_time: for preconditioned networks, the function of sigma that they are fed ("log" or "atan").
    Errors: ConfigError for anything that cannot be honoured exactly.
    """

    order = 1
    _compatibles: ClassVar[list[str]] = [  # whose fields `from_config` leaves aside without a warning
        *(e.name for e in KarrasDiffusionSchedulers),
        "FlowMatchEulerDiscreteScheduler",
        "LCMScheduler",
        "TCDScheduler",
    ]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        use_flow_sigmas: bool = False,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        invert_sigmas: bool = False,
        snr_shift_scale: float | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        sigma_time: str | None = None,
        thresholding: bool = False,
        solver: Solver | str | Mapping[str, Any] = "2m",
        grid: str | Mapping[str, Any] | None = None,
    ) -> None:
        rule, implied = solver_and_grid(usable(solver))  # "DPM++ 2M Karras" says both
        self.solver, grid = usable(rule), implied if grid is None else grid
        self._grid = None if grid is None else grid_of(grid)
        self.register_to_config(
            solver=written(self.solver),
            grid=dict(grid) if isinstance(grid, Mapping) else grid,
            trained_betas=None if trained_betas is None else [float(beta) for beta in trained_betas],
        )
        self.schedule = schedule_from_config(self.config, preconditioned=True)
        self.parametrisation = parametrisation_from_config(self.config)
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1, dtype=torch.float32)
        self.num_inference_steps: int | None = None
        self._table: Table | None = None
        self._state: State | None = None
        self._begin: int | None = None
        self._returned: tuple[Tensor, int] | None = None  # what `step` returned last, and its version then
        self._issued: deque[Tensor] = deque(maxlen=_REMEMBERED_RUNS)  # timesteps of the runs so far, newest last

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler for the model that `config` (of any diffusers scheduler, or ours) belongs to.

        kwargs: fields of __init__ that override the config's; `solver` and `grid` above all. What the config says of
        its own method and grid (solver_order, use_karras_sigmas, timestep_spacing, sigma_min of a grid) is not taken.
        """
        if not isinstance(config, Mapping):
            return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        # The values that the original scheduler took by default are the model's all the same.
        config = {k: v for k, v in config_with_defaults(config).items() if k != "_use_default_values"}
        ours = cls._get_init_keys(cls)
        overrides = {k: kwargs.pop(k) for k in tuple(kwargs) if k in ours or k in config}
        if kwargs and not return_unused_kwargs:
            raise ConfigError(
                f"unknown field {next(iter(kwargs))!r}: expected one of {', '.join(sorted(ours - {'self'}))}"
            )
        config |= overrides
        schedule_from_config(config, preconditioned=True)  # refuse by the names of the original's fields
        return super().from_config(own_fields(config), return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def of(cls, pipe: Any, **fields: Any) -> FewstepScheduler:
        """The scheduler for `pipe`, of the config of the one that it has; `pipe` is not changed.

        fields: `solver`, `grid`, and whatever else shall override the config.
        Errors: IncompatibleError for a pipeline that cannot run with another scheduler, with the reason and the way out
        (see scheduler_pipelines); ConfigError as `from_config`.
        """
        return cls.from_config(scheduler_config_of(pipe), **fields)

    # --- the run ----------------------------------------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The run that `set_timesteps` laid out."""
        if self._table is None:
            raise ConfigError("there is no run yet: call set_timesteps(num_inference_steps) first (pipelines do)")
        return self._table

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies N(0, I) latents by: 1 unless noise is added to an unscaled image (alpha = 1)."""
        top = self.schedule.noisiest if self._table is None else self._table.plan.nodes[0]
        return float(top.sigma) if float(top.alpha) == 1.0 else 1.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Lay out a run. Give one of

        num_inference_steps: at most this many ticks on the scheduler's grid. (A solver with two ticks a step and one in
            the last, such as DPMpp2S, has an odd number of them: 20 gives 10 steps, 19 ticks.)
        timesteps: the model times of the steps' beginnings, noisiest first, real-valued; the run ends at sigma = 0.
        sigmas: the noise levels of the steps' beginnings, noisiest first; a last 0 may be there or not. For flow models
            t in (0, 1], before the time shift; for others sigma / alpha, as EulerDiscreteScheduler takes. The evenly
            spaced ones that pipelines pass by themselves count as num_inference_steps; any others are used as they are,
            even where the scheduler has a grid.
        timesteps and sigmas: flow models only; the timesteps are num_train_timesteps times the sigmas, before or after
            the shift (CogView4: before).
        mu: the dynamic time shift of a flow model; ignored where its config has a constant one, as in diffusers.
        Sets `timesteps` (ticks,) float32 on `device`, `num_inference_steps` to its length, `sigmas` (ticks + 1,) to
        sigma of a flow model or else sigma / alpha, on the CPU as in diffusers, and forgets any earlier run.
        """
        asked = Asked.of(num_inference_steps, sigmas, mu, timesteps)
        levels, schedule = run_levels(self.config, self.schedule, self.solver, self._grid, asked)
        table = trace(self.solver, levels, schedule)
        for i, row in enumerate(table.rows):  # a level that the parametrisation does not know fails here, not at tick i
            table.fold(i, len(row.inputs) - 4, self.parametrisation, (1.0,))
        self._table = table
        self.timesteps = torch.tensor([float(v.time) for v in table.plan.nodes], dtype=torch.float32, device=device)
        self.num_inference_steps = len(table)
        self.sigmas = sigmas_of(table, self.config, self.schedule)
        self._issued.append(self.timesteps)
        self._begin = self._state = self._returned = None

    # --- diffusers' interface ---------------------------------------------------------------------------------------

    @property
    def begin_index(self) -> int | None:
        """The tick that the run begins at, where a pipeline has said so."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """The tick that the next `step` performs; None before the first."""
        return None if self._state is None else self._state.tick

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this tick (image to image), even in the middle of a step; forgets the state of an earlier run."""
        if self._table is not None and not 0 <= begin_index < len(self._table):
            raise ConfigError(f"the run has {len(self._table)} ticks, so it cannot begin at tick {begin_index}; raise "
                              "strength or num_inference_steps")  # fmt: skip
        self._begin = begin_index
        self._state = self._returned = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is fed: the state itself, or scaled for preconditioned networks."""
        if not isinstance(self.schedule, PreconditionedVE):
            return sample
        return sample * self.schedule.input_scale(self.table.plan.nodes[self._tick(timestep)])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One tick: from the sample (B, ...) at `timestep` and the network's output there to the sample at the next.

        The state is kept in float32; the result has the sample's dtype. If the sample is not what the last `step`
        returned (inpainting, a callback), the change is integrated, see `engine.edit`.
        generator: noise for stochastic solvers, one or one per image. Flow pipelines pass none; then it is torch's
        global one, which torch.manual_seed sets.
        Errors: ConfigError for a call that does not belong to this run, IncompatibleError for shapes that differ.
        """
        table = self.table
        if model_output.shape != sample.shape:
            raise IncompatibleError(f"the network's output has the shape {tuple(model_output.shape)}, the sample "
                                    f"{tuple(sample.shape)}; drop the channels of a learned variance")  # fmt: skip
        tick = self._tick(timestep)
        state = start(table, sample, tick) if self._state is None else self._state
        if self._edited(sample):
            state = edit(table, state, sample)
        level = table.plan.nodes[tick]
        noise = None
        if row_of(table, state).needs_noise:
            noise = GeneratorTape(generator).normal(tick, level, table.plan.targets[tick], state.x)
        prediction = Outputs(state.x, level, (model_output,), self.parametrisation)
        batch = None if sample.dtype == state.x.dtype else (sample.dtype, 1)  # the cast is part of the launch
        self._state, result = advance_and_feed(table, state, prediction, noise, batch)
        result = self._state.x.to(sample.dtype) if result is None else result
        kept = result.clone() if result.is_inference() else result  # such tensors do not say that they were written to
        self._returned = (kept, version_of(kept))
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def restart(self, images: Sequence[int]) -> None:
        """From the next `step` on, the solver has forgotten what it remembered of these rows of the sample."""
        if self._state is not None:
            self._state = restart(self.table, self._state, images)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps, of original_samples' shape (B, ...) and dtype.

        timesteps: (B,) or (1,) model times, real-valued; they decide unless a pipeline has set the begin index. Then it
        is the level of the next tick: the one that the run begins at, or within a run (inpainting) the current one.
        """
        if self._begin is None:
            levels = [self.schedule.level(t) for t in torch.as_tensor(timesteps).double().flatten().tolist()]
        else:
            levels = [self._level_at(self._begin if self._state is None else self._state.tick)]
        rows = [(float(v.alpha), float(v.sigma)) for v in levels]
        C: Any = (rows[0],)
        if any(row != rows[0] for row in rows):
            C = torch.tensor(rows, dtype=torch.float64, device=original_samples.device).unsqueeze(1)
        noise = noise.to(original_samples.device)
        return ops.combine(C, (original_samples, noise), (original_samples.dtype,))[0]

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name and argument order of flow-matching pipelines."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        if self._returned is not None:  # a copied tensor counts its versions anew
            self._returned = (self._returned[0], version_of(self._returned[0]))

    def _tick(self, timestep: float | Tensor) -> int:
        due = self._begin if self._state is None else self._state.tick
        return tick_of(timestep, self.table.plan, due, self._issued)

    def _level_at(self, tick: int) -> Level:
        plan = self.table.plan
        return plan.nodes[tick] if tick < len(plan) else plan.targets[-1]

    def _edited(self, sample: Tensor) -> bool:
        """Whether `sample` is another value than the state that the last `step` returned."""
        if self._returned is None:
            return False
        returned, version = self._returned
        told = not returned.is_inference()
        if told and (sample is returned or version_of(returned) != version):  # the latter: written to in place
            return version_of(returned) != version
        # A copy is no edit. Telling costs a read-back on a GPU, so ask only where an edit would cost the history.
        return (told and self.table.keeps_edits) or sample.shape != returned.shape or not torch.equal(sample, returned)
