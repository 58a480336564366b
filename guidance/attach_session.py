"""One call of an attached pipeline: its ticks, the policy that runs in it, and what it cost."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..samplers.guided import Asked, Guided, mixed
from ..samplers.levels import Level
from ..samplers.policy import Images, Line, Policy, Run
from ..samplers.report import Report, TickRecord
from ..samplers.scheduler_schedules import negated
from .attach_layouts import Layout
from .attach_levels import Ticks, ticks_of
from .attach_modules import Caller
from .made_for import EMPTY, GIVEN, MadeFor, check
from .scale import check_scale, own_scale, owns_scale, scale_in_words


def is_number(line: Line, register: str) -> bool:
    """Whether the line is the register itself, known without reading from the device."""
    value = line.get(register) if len(line) == 1 else None
    return value is not None and not isinstance(value, Tensor) and (value == 1.0 or value == (1.0,) * _length(value))


def _length(value: float | tuple[float, ...]) -> int:
    return len(value) if isinstance(value, tuple) else 0


@dataclass
class AttachReport(Report):
    """What a call of an attached pipeline cost, in rows of the denoiser.       scale: the call's keyword for it."""

    scale: str = "guidance_scale"

    @property
    def saved(self) -> float:
        """The part of the evaluations of full guidance that was saved."""
        return 1.0 - self.nfe / self.full if self.full else 0.0

    @property
    def full(self) -> int:
        """The rows of full guidance: two a tick and image, and the further passes that the pipeline makes."""
        others = [v for branch, v in self.nfe_per_branch.items() if branch not in ("uncond", "cond")]
        return 2 * self.batch * self.evaluations + sum(map(sum, others))

    def __str__(self) -> str:
        each, full = (rows / max(self.batch, 1) for rows in (self.nfe, self.full))
        if self.guided is None:
            return (f"guidance: none. The pipeline made no unconditional evaluation ({self.scale} <= 1, or no negative "
                    f"prompt), {each:g} NFE an image; the policy had nothing to do")  # fmt: skip
        steps = self.switched_steps
        known = sorted({k for k in steps if k is not None})
        when = "never switched" if not known else f"switched at step {known[0]}"
        when += f" to {known[-1]}" if len(known) > 1 else ""
        when += f" ({sum(k is None for k in steps)} images never)" if known and None in steps else ""
        return f"guidance: {each:.4g} NFE an image of {full:.4g} ({100 * self.saved:.0f} % saved), {when}"


def arguments_of(call: Any, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict, dict]:
    """(what the caller gave, that and the defaults) of a call of `pipe`, by name."""
    bound = inspect.signature(call).bind(pipe, *args, **kwargs)
    given = _flat(bound)
    bound.apply_defaults()
    return given, _flat(bound)


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    return found


def negative_of(given: Mapping[str, Any]) -> str | None:
    """Whether a call has a negative prompt, for any of the text encoders; None where it gives embeddings, which do not
    say. What the prompt says is not looked at."""
    negative = {name: v for name, v in given.items() if name.startswith("negative_") and v is not None}
    if any("embeds" in name for name in negative):
        return None
    texts = [v for name, v in negative.items() if name.startswith("negative_prompt")]  # of one, two or three encoders
    given_texts = [text for v in texts for text in ([v] if isinstance(v, str) else v) if isinstance(text, str)]
    return GIVEN if any(given_texts) else EMPTY


class Session:
    """What the hooks on the denoiser share during one call.

    Of each tick, in this order: `asked`, then `observed`; or `unguided` alone where the pipeline evaluates the
    conditional prediction by itself.
    given: the arguments that the caller wrote.       arguments: those and the defaults.
    made_for: what the policy was calibrated for, if it is from a file.
    """

    def __init__(
        self,
        pipe: Any,
        layout: Layout,
        policy: Policy,
        given: dict[str, Any],
        arguments: dict[str, Any],
        made_for: MadeFor | None = None,
    ) -> None:
        self.pipe, self.layout, self.policy, self.made_for = pipe, layout, policy, made_for
        self.given, self.arguments = given, arguments
        self.report: AttachReport | None = None
        self._ticks: Ticks | None = None
        self._guided: Guided | None = None
        self._asked: Asked | None = None
        self._more: dict[str, Images] = {}
        self._guides = True  # whether every tick so far was guided
        self._denoiser: object = None
        self._lost: tuple[str, ...] = ()
        self._clock = time.perf_counter()
        self.caller = Caller()
        self.check_scales()

    def check_scales(self) -> None:
        """ConfigError for a scale of the policy beside another one of the call, or what only works with the call's."""
        if not owns_scale(self.policy):
            return
        name, own = self.layout.scale, own_scale(self.policy)
        given = self.given.get(name)
        if given is not None and check_scale(given) != own:
            raise ConfigError(f"{name}={given:g} was given, and {type(self.policy).__name__} has "
                              f"{scale_in_words(self.policy)}: give one of them (scale=None leaves it to the "
                              "pipeline)")  # fmt: skip
        for other in ("guidance_rescale", "skip_guidance_layers", "use_dynamic_cfg"):
            if self.given.get(other):
                raise ConfigError(f"{other}={self.given[other]!r} needs the pipeline's own scale, and "
                                  f"{type(self.policy).__name__} has one: use scale=None and {name}=...")  # fmt: skip

    # --- what the hooks ask ------------------------------------------------------------------------------------------

    def guidance_is_on(self) -> bool:
        """Whether the pipeline evaluates both branches at this tick."""
        if self.layout.is_on == "property":
            return bool(self.pipe.do_classifier_free_guidance)
        scale = self.arguments.get(self.layout.scale)
        return scale is not None and scale > 1.0

    @property
    def tick(self) -> int:
        """The tick that is due."""
        return len(self.report.ticks) if self.report is not None else 0

    @property
    def level(self) -> Level:
        assert self._ticks is not None
        return self._ticks.nodes[self.tick]

    def asked(self, batch: int, timestep: Any) -> Asked:
        """What this tick evaluates. The same until `observed`.

        batch: images.       timestep: what the denoiser is called with; read at the first tick only, if at all.
        """
        if self._asked is None:
            self._begin(batch, timestep)
            if self._guided is None or not self._guides:
                raise IncompatibleError("the pipeline turned guidance on in mid-run, and a policy must see a run from "
                                        "its first tick; detach() before such a call")  # fmt: skip
            self._asked = self._guided.asked(self.tick)
            unknown = set(self._asked.branches) - set(self.layout.order)
            if unknown:
                raise IncompatibleError(f"{type(self.policy).__name__} asks for the branch {min(unknown)!r}, and "
                                        f"{type(self.pipe).__name__} has {', '.join(self.layout.order)}")  # fmt: skip
            restarted = self.policy.restarts(self.tick, self._guided.memory)
            if restarted:
                twice = tuple(batch + k for k in restarted) if self.layout.doubled else ()
                self.pipe.scheduler.restart((*restarted, *twice))
        return self._asked

    def observed(self, x: Tensor, tensors: Sequence[Tensor], evaluated: Asked | None = None) -> Line:
        """Ends the tick. x: what the network was fed; tensors: one (B, ...) of x's shape per branch asked for.

        evaluated: what was, where that is more than what was asked for.
        """
        assert self._guided is not None and self._asked is not None and self._ticks is not None
        if self._ticks.input_scales is not None:
            x = x.float() / self._ticks.input_scales[self.tick]
        line = self._guided.observed(self.tick, x, tensors)
        self._record(self._asked if evaluated is None else evaluated)
        self._asked = None
        return line

    def prediction(self, line: Line) -> Tensor:
        """The tensor of a line over the registers of the newest tick, of their shape, float32 at least."""
        assert self._guided is not None
        tensors, weights = self._guided.tensors_of(line)
        return mixed(dict(zip(line, weights, strict=True)), dict(zip(line, tensors, strict=True)))

    def goes_on_with(self, denoiser: object) -> None:
        """Which denoiser this tick's is, after `asked`. Wan 2.2 has two: decisions stay, predictions of the other do
        not."""
        assert self._guided is not None
        if self._denoiser not in (None, denoiser):
            self._lost, self._guided.recalled = tuple(self._guided.recalled), {}
        self._denoiser = denoiser

    @contextmanager
    def without_lost(self) -> Iterator[None]:
        """Within, IncompatibleError where the policy needs a prediction that another denoiser made."""
        try:
            yield
        except KeyError as error:
            if error.args[0] not in self._lost:
                raise
            raise IncompatibleError(f"{type(self.policy).__name__} needs a prediction that another denoiser made, "
                                    "before the pipeline went on with this one: use a policy that remembers none, or "
                                    "let it guide beyond that point") from error  # fmt: skip

    @property
    def batch(self) -> int:
        """Images of the run that was begun."""
        assert self.report is not None
        return self.report.batch

    def unguided(self, batch: int, timestep: Any) -> None:
        """A tick at which the pipeline itself evaluates the conditional prediction alone."""
        self._begin(batch, timestep, guided=False)
        self._guides = False
        self._record(Asked(("cond",), (None,)))

    def more(self, branch: str) -> None:
        """A pass of its own that belongs to the newest tick, for all images."""
        if self.report is None or not self.report.ticks:
            raise IncompatibleError(f"the pass {branch!r} came before the first tick of the run")
        last = self.report.ticks[-1]
        images = last.images or (None,) * len(last.branches)
        self.report.ticks[-1] = last._replace(branches=(*last.branches, branch), images=(*images, None))

    def end(self) -> None:
        """The call is over: what the report does not say is let go of."""
        self.caller.end()
        if self._guided is not None:
            self._guided.end()

    # --- the run -----------------------------------------------------------------------------------------------------

    def _begin(self, batch: int, timestep: Any, guided: bool = True) -> None:
        """At the first tick. Errors: IncompatibleError at a later one that is not of the run that was begun."""
        if self._ticks is not None:
            if self.tick >= len(self._ticks.nodes):
                raise IncompatibleError("the denoiser was called more often than this run has ticks "
                                        f"({len(self._ticks.nodes)})")  # fmt: skip
            if batch != self.batch:
                raise IncompatibleError(f"the batch changed in mid-run: it began with {self.batch} images, and tick "
                                        f"{self.tick} has {batch}; a policy needs the same in all")  # fmt: skip
            return
        ticks = self._ticks = ticks_of(self.pipe, timestep)
        if guided:
            kind = negated(ticks.parametrisation) if self.layout.negated else ticks.parametrisation
            run = Run(batch, ticks.nodes, ticks.step, ticks.stage, kind, caller_scales=True)
            if self.made_for is not None:
                check(self.policy, self.made_for, self._here(run))
            self._guided = Guided(self.policy, run)
        self.report = AttachReport(batch, guided=self._guided, scale=self.layout.scale)

    def _here(self, run: Run) -> MadeFor:
        """This run, as far as it is known."""
        table = getattr(self.pipe.scheduler, "table", None)
        of_table = {} if table is None else {"solver": table.solver, "schedule": table.schedule}
        scale = None if owns_scale(self.policy) else self.arguments.get(self.layout.scale)
        return MadeFor.of_run(run, self.pipe, scale=scale, negative=negative_of(self.given), **of_table)

    def _record(self, asked: Asked) -> None:
        assert self.report is not None
        now = time.perf_counter()
        self.report.ticks.append(
            TickRecord(self.tick, self.level, asked.branches, 1e3 * (now - self._clock), asked.images)
        )
        self._clock = now
