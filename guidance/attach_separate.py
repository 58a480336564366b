"""Guidance on pipelines that call the denoiser twice a tick, for cond and then for uncond.

The first call of a tick is left alone. The second is made for the images that the policy still guides, or not at all,
and the pipeline gets back u^: it forms u^ + w (c - u^), which is c to the bit where u^ = c. Of a policy with a scale of
its own it gets the u' that makes its prediction of this (`handed`). (QwenImage and Lumina 2
then rescale by the norm of c, which changes c by its rounding.)

Which call is which is told by the name that the pipeline gives its cache context, and by what the denoiser is fed: both
calls of a tick get the same tensor. Where the two disagree the run is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..samplers.feeding import version_of
from ..samplers.guided import Asked
from ..samplers.policy import Line, Policy, Weight
from .attach_arguments import Arguments, Rows, like_output, rows_of, tensor_of
from .attach_batched import check_rows_are_independent
from .attach_modules import replaced
from .attach_session import Session, is_number
from .cfg import CFG
from .interval import Interval
from .planned import PlannedPolicy
from .scale import own_scale, owns_scale, scale_in_words


@contextmanager
def taken_over(session: Session) -> Iterator[dict[str, Any]]:
    """The denoisers of the session's pipeline evaluate what its policy asks for. Gives further keywords for the call:

    the scale of a policy that has one.
    """
    keywords = scale_keywords(session) if owns_scale(session.policy) else {}
    turns = Turns(session)
    modules = {id(m): m for m in (getattr(session.pipe, name, None) for name in session.layout.denoisers)}
    with ExitStack() as stack:
        for module in modules.values():
            if module is not None:  # Wan 2.1 has no second transformer
                stack.enter_context(replaced(module, partial(turns.call, Arguments(module)), session.caller))
                stack.enter_context(named_contexts(module, turns))
        yield keywords
        turns.end_tick()


def scale_keywords(session: Session) -> dict[str, Any]:
    """The policy's scale as the call's. Errors: ConfigError for what the pipeline's formula cannot say."""
    policy, name = session.policy, session.layout.scale
    scale, what = own_scale(policy), type(session.policy).__name__
    if not isinstance(scale, float):
        has = "a scale per step" if scale is not None else scale_in_words(policy)
        raise ConfigError(f"{what} has {has}, and {type(session.pipe).__name__} multiplies by one scale, {name}: give "
                          "the policy one number or None, or use fewstep.sample")  # fmt: skip
    if getattr(policy, "rescale", 0.0):
        raise ConfigError(f"{what}(rescale=...) cannot rescale in {type(session.pipe).__name__}, which combines the "
                          "predictions itself: leave rescale out, or use fewstep.sample")  # fmt: skip
    if scale < 1.0:
        raise ConfigError(f"{what} has the scale {scale:g}, and {type(session.pipe).__name__} does not guide below 1: "
                          "use fewstep.sample")  # fmt: skip
    second = session.given.get(f"{name}_2")
    if second is not None and second != scale:
        raise ConfigError(f"{name}_2={second:g} was given, and {what} has scale {scale!r}: use scale=None")
    return {} if name in session.given else {name: scale}


@contextmanager
def named_contexts(module: Any, turns: Turns) -> Iterator[None]:
    """Within, `turns.name` is the name of the cache context that the pipeline calls the module in."""
    module = getattr(module, "_orig_mod", module)
    before = getattr(module, "cache_context", None)
    if before is None:
        yield
        return

    @wraps(before)
    @contextmanager
    def ours(name: str, **place: Any) -> Iterator[None]:
        own = turns.session.caller.calls()
        turns.name = name if own else turns.name
        try:
            with before(name, **place):
                yield
        finally:
            turns.name = None if own else turns.name

    module.cache_context = ours
    try:
        yield
    finally:
        if vars(module).get("cache_context") is ours:
            del module.cache_context


class Turns:
    """The calls of one run, in turn.       name: of the cache context that the pipeline is in."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.name: str | None = None
        self._fed: Any = None  # what the first call of the tick got and gave; None between ticks
        self._version = 0
        self._out: Any = None
        self._time: Any = None
        self._checked: Arguments | None = None

    def call(self, known: Arguments, forward: Callable, args: tuple, kwargs: dict) -> Any:
        named = known.named(args, kwargs)
        sample = named[known.signature.sample]
        second = self._is_second(sample, named[known.signature.time])
        if self.name is not None and self.name != self.session.layout.order[second]:
            raise IncompatibleError(f"{type(self.session.pipe).__name__} called its denoiser for {self.name!r} where "
                                    f"{self.session.layout.order[second]!r} was due: this is not the layout that is "
                                    "known; use fewstep.sample, or attach(pipe, solver=...) alone")  # fmt: skip
        if second:
            return self._second(known, forward, args, kwargs, sample)
        self.end_tick()
        self._out = forward(*args, **kwargs)
        self._fed, self._version, self._time = sample, version_of(sample), named[known.signature.time]
        return self._out

    def _is_second(self, sample: Any, time: Any) -> bool:
        """Whether the denoiser is fed what the first call of the tick was fed."""
        if sample is not self._fed or version_of(sample) != self._version:
            return False
        if not sample.is_inference():
            return True
        if self.name is not None:  # an inference tensor does not count how often it was written to
            return self.name == self.session.layout.order[1]
        return torch.equal(torch.as_tensor(time), torch.as_tensor(self._time))

    def end_tick(self) -> None:
        """A tick without a second call: the pipeline does not guide there."""
        if self._fed is not None:
            self.session.unguided(self._fed.shape[0], self._time)
            self._fed = self._out = None

    def _second(self, known: Arguments, forward: Callable, args: tuple, kwargs: dict, sample: Tensor) -> Any:
        session, batch = self.session, sample.shape[0]
        cond = tensor_of(self._out)
        if self._checked is not known and batch > 1 and may_differ(session.policy):
            # what cannot be cut is refused before anything is saved, not where it is
            check_rows_are_independent(session)
            known.taken(Rows(slice(None), batch), args, kwargs)
            self._checked = known
        asked = session.asked(batch, self._time)
        session.goes_on_with(known)
        images = dict(zip(asked.branches, asked.images, strict=True)).get("uncond", ())
        found, out, rows, evaluated = {"cond": cond}, self._out, None, Asked(("cond",), (None,))
        if images is None or images:
            evaluated = Asked(("cond", "uncond"), (None, images))
            rows = rows_of(asked, ("uncond",), batch, sample.device)
            if rows is not None:
                args, kwargs = known.taken(rows, args, kwargs)
            out = forward(*args, **kwargs)
            found["uncond"] = tensor_of(out) if rows is None else rows.put(tensor_of(out))
        self._fed = self._out = None
        with session.without_lost():
            line = session.observed(latents(sample, cond), [found[b] for b in asked.branches], evaluated)
            if owns_scale(session.policy):
                line = handed(line, session.policy, asked)
            if is_number(line, "cond"):
                return like_output(out, cond)
            if rows is None and is_number(line, "uncond"):
                return out
            return like_output(out, session.prediction(line).to(cond.dtype))


def handed(line: Line, policy: Policy, asked: Asked) -> Line:
    """u' of a policy that has the scale w: u' + w (c - u'), which the pipeline forms, is the prediction of `line`.

    u' = (line - w c) / (1 - w). Where `line` is u + w (c - u) that is u, whose weight is exactly 1 then, as c's is for
    the line c.
    """
    w = own_scale(policy)
    if "cond" not in asked.branches:
        raise IncompatibleError(f"{type(policy).__name__} does not ask for 'cond' at a tick, and the pipeline, which "
                                "combines the predictions itself, needs it: use fewstep.sample")  # fmt: skip
    if not isinstance(w, float) or w == 1.0:
        raise IncompatibleError(f"the pipeline guides, and {type(policy).__name__} has scale {w!r}")
    found = {name: _shifted(weight, w if name == "cond" else 0.0, 1.0 - w)
             for name, weight in {"cond": 0.0, **line}.items()}  # fmt: skip
    return {name: v for name, v in found.items() if isinstance(v, Tensor) or any(v if isinstance(v, tuple) else (v,))}


def _shifted(weight: Weight, by: float, over: float) -> Weight:
    """(weight - by) / over, without negative zeros."""
    if isinstance(weight, tuple):
        return tuple((number - by) / over + 0.0 for number in weight)
    return (weight - by) / over + 0.0


def may_differ(policy: Policy) -> bool:
    """Whether images of one batch may evaluate different branches."""
    return not isinstance(policy, PlannedPolicy | CFG | Interval) and getattr(policy, "batch", None) != "all"


def latents(fed: Any, like: Tensor) -> Tensor:
    """What is denoised, of the denoiser's input: its first channels, or all of it."""
    x = fed
    if isinstance(x, Tensor) and x.ndim == like.ndim > 2 and x.shape != like.shape:
        x = x[:, : like.shape[1]]
    if not isinstance(x, Tensor) or x.shape != like.shape:
        got = tuple(fed.shape) if isinstance(fed, Tensor) else type(fed).__name__
        raise IncompatibleError(f"the denoiser got {got} and returned {tuple(like.shape)}: expected the same shape, or "
                                "more channels; guidance policies are not supported here")  # fmt: skip
    return x
