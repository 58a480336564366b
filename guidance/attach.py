"""`attach`: solvers and guidance policies in unmodified diffusers pipelines.

    with fewstep.attach(pipe, guidance=AdaptiveGuidance()) as attached:
        images = pipe("a red circle", guidance_scale=7.5).images
    print(attached.report)

The pipeline keeps its loop, and with it the guidance scale, its callbacks and the dtype between steps. What a policy
saves is evaluations of the denoiser. Between calls nothing but the pipeline object is changed, and of that the class.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from threading import Lock
from typing import Any

from ..errors import ConfigError, IncompatibleError
from ..samplers.policy import Policy
from ..samplers.scheduler import FewstepScheduler
from .attach_layouts import TAKE_OVER, Layout, layout_of
from .attach_session import AttachReport, Session, arguments_of
from .made_for import MadeFor
from .named import policy_of

__all__ = ["Attached", "attach"]

_MARK = "_fewstep_attached"


class Attached:
    """A pipeline with a solver or a policy in it. As a context manager it detaches at the end.

    report: what the newest call cost, None before the first or without a policy. See AttachReport.
    """

    def __init__(
        self, pipe: Any, policy: Policy | None, layout: Layout | None, made_for: MadeFor | None = None
    ) -> None:
        self.pipe, self.policy, self.layout, self.made_for = pipe, policy, layout, made_for
        self.report: AttachReport | None = None
        self._kind: type = type(pipe)
        self._schedulers: tuple[Any, Any] | None = None
        self._running = Lock()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def detach(self) -> None:
        """The pipeline as it was. A scheduler that was put in after ours stays."""
        if getattr(type(self.pipe), _MARK, None) is self:
            self.pipe.__class__ = self._kind
        if self._schedulers is not None and self.pipe.scheduler is self._schedulers[1]:
            self.pipe.scheduler = self._schedulers[0]
        self._schedulers = None

    def _install(self, scheduler: FewstepScheduler | None) -> None:
        if scheduler is not None:
            self._schedulers = (self.pipe.scheduler, scheduler)
            self.pipe.scheduler = scheduler
        self.pipe.__class__ = _subclass(self._kind, self)

    def _call(self, pipe: Any, args: tuple, kwargs: dict) -> Any:
        call: Any = self._kind.__call__
        if self.policy is None or self.layout is None or pipe is not self.pipe:  # a copy has our class too
            return call(pipe, *args, **kwargs)
        if not self._running.acquire(blocking=False):
            raise IncompatibleError("an attached pipeline was called while another call of it runs, and both would "
                                    "share the policy's memory: wait for the first, or attach to a copy")  # fmt: skip
        try:
            self.report = None
            return self._run(call, pipe, args, kwargs, self.policy, self.layout)
        finally:
            self._running.release()

    def _run(self, call: Any, pipe: Any, args: tuple, kwargs: dict, policy: Policy, layout: Layout) -> Any:
        _check_restarts(policy, pipe)
        given, everything = arguments_of(call, pipe, args, kwargs)
        session = Session(pipe, layout, policy, given, everything, self.made_for)
        count = pipe.__dict__.pop("_num_timesteps", None)  # so that it is this call's, if it is there
        try:
            with import_module(f".{TAKE_OVER[layout.kind]}", __package__).taken_over(session) as keywords:
                return call(pipe, *args, **kwargs, **(keywords or {}))
        finally:
            session.end()
            self.report = session.report
            if count is not None:
                pipe.__dict__.setdefault("_num_timesteps", count)


def attach(
    pipe: Any,
    solver: Any = None,
    guidance: Policy | str | PathLike[str] | None = None,
    *,
    grid: str | Mapping[str, Any] | None = None,
) -> Attached:
    """Put a solver, a guidance policy, or both into a pipeline of diffusers.

    pipe: a pipeline; it is changed until `detach()`. Its components may be shared with other pipelines, offloaded and
    compiled, before or after.
    solver, grid: as in FewstepScheduler, which becomes pipe.scheduler.
    guidance: a policy, such as AdaptiveGuidance(), a name ("adaptive:threshold=0.998"), or the file of one, which
    refuses calls for which it was not calibrated. One without a scale takes the guidance scale of each call; where it
    has one, calls must not give another. In a call without guidance it does nothing, and the report says so.
    Returns an Attached, whose report after a call says what it cost.
    Errors: ConfigError for nothing to attach, a pipeline that something is attached to already, two scales that differ,
    a policy that needs solver=; IncompatibleError for a pipeline whose layout is not known.
    """
    if solver is None and guidance is None:
        raise ConfigError("attach needs solver=..., guidance=... or both, got neither")
    if solver is None and grid is not None:
        raise ConfigError(f"grid={grid!r} is the grid of a solver: give solver=... too")
    other = getattr(type(pipe), _MARK, None)
    if other is not None and other.pipe is pipe:
        raise ConfigError(f"something is attached to this {type(pipe).__name__} already: detach() it first, or give "
                          "solver and guidance to one attach")  # fmt: skip
    if other is not None:
        pipe.__class__ = other._kind  # a copy of an attached pipeline, to which nothing is attached
    policy, made_for = (None, None) if guidance is None else policy_of(guidance)
    layout = None if policy is None else layout_of(pipe)
    scheduler = None if solver is None else FewstepScheduler.of(pipe, solver=solver, grid=grid)
    if policy is not None and scheduler is None:
        _check_restarts(policy, pipe)
    attached = Attached(pipe, policy, layout, made_for)
    attached._install(scheduler)
    return attached


def _subclass(kind: type, attached: Attached) -> type:
    """`kind` with another __call__, under its own name: whatever looks at a pipeline's class sees the same.

    Only the one pipeline is of this class: copies of it, and what its class makes (`from_pipe`), are of `kind`.
    """

    @functools.wraps(kind.__call__)  # type: ignore[operator]
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return attached._call(self, args, kwargs)

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        return kind(*args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        _, arguments, *rest = kind.__reduce_ex__(self, max(int(protocol), 2))  # type: ignore[misc]
        arguments = tuple(kind if part is type(self) else part for part in arguments)
        return object.__new__, arguments, *rest

    names = {"__call__": __call__, "__new__": __new__, "__reduce_ex__": __reduce_ex__, _MARK: attached,
             "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}  # fmt: skip
    return type(kind)(kind.__name__, (kind,), names)


def _check_restarts(policy: Policy, pipe: Any) -> None:
    restarts = type(policy).restarts is not Policy.restarts and getattr(policy, "lower_order", True)
    if restarts and not isinstance(pipe.scheduler, FewstepScheduler):
        raise ConfigError(f"{type(policy).__name__} makes the solver forget its history (lower_order), and "
                          f"{type(pipe.scheduler).__name__} cannot: give solver=, or lower_order=False")  # fmt: skip
