"""Guidance on pipelines that call the denoiser twice a tick, for cond and then for uncond.

The first call of a tick is left alone. The second is made for the images that the policy still guides, or not at all,
and the pipeline gets back u^: it forms u^ + w (c - u^), which is c to the bit where u^ = c. (QwenImage and Lumina 2
then rescale by the norm of c, which changes c by its rounding.)

Which call is which is told by the name that the pipeline gives its cache context, and by what the denoiser is fed: both
calls of a tick get the same tensor. Where the two disagree the run is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial, wraps
from typing import Any

from torch import Tensor

from ..errors import ConfigError, IncompatibleError
from ..samplers.feeding import version_of
from ..samplers.guided import Asked
from .attach_arguments import Arguments, like_output, rows_of, tensor_of
from .attach_modules import replaced
from .attach_session import Session, is_number, owns_scale


@contextmanager
def taken_over(session: Session) -> Iterator[dict[str, Any]]:
    """The denoisers of the session's pipeline evaluate what its policy asks for. Gives further keywords for the call:

    the scale of a policy that has one. The policy's part is then u^ alone.
    """
    keywords = {}
    if owns_scale(session.policy):
        keywords = scale_keywords(session)
        session.policy = replace(session.policy, scale=None)  # type: ignore[type-var]
    turns = Turns(session)
    with ExitStack() as stack:
        for name in session.layout.denoisers:
            module = getattr(session.pipe, name, None)
            if module is not None:  # Wan 2.1 has no second transformer
                stack.enter_context(named_contexts(module, turns))
                stack.enter_context(replaced(module, partial(turns.call, Arguments(module))))
        yield keywords
        turns.end_tick()


def scale_keywords(session: Session) -> dict[str, Any]:
    """The policy's scale as the call's. Errors: ConfigError for what the pipeline's formula cannot say."""
    policy, name = session.policy, session.layout.scale
    scale, what = getattr(policy, "scale", None), type(session.policy).__name__
    if not isinstance(scale, float):
        has = "a scale per step" if scale is not None else "its scales in its table"
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
        turns.name = name
        try:
            with before(name, **place):
                yield
        finally:
            turns.name = None

    module.cache_context = ours
    try:
        yield
    finally:
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
        self._denoiser: Arguments | None = None
        self._lost: tuple[str, ...] = ()

    def call(self, known: Arguments, forward: Callable, args: tuple, kwargs: dict) -> Any:
        named = known.named(args, kwargs)
        sample = named[known.signature.sample]
        second = sample is self._fed and version_of(sample) == self._version
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

    def end_tick(self) -> None:
        """A tick without a second call: the pipeline does not guide there."""
        if self._fed is not None:
            self.session.unguided(self._fed.shape[0], self._time)
            self._fed = self._out = None

    def _second(self, known: Arguments, forward: Callable, args: tuple, kwargs: dict, sample: Tensor) -> Any:
        session, batch = self.session, sample.shape[0]
        cond = tensor_of(self._out)
        asked = session.asked(batch, self._time)
        if self._denoiser not in (None, known):  # Wan 2.2: decisions stay, predictions of the other denoiser do not
            self._lost = session.forget_predictions()
        self._denoiser = known
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
        with session.without(self._lost):
            line = session.observed(latents(sample, cond), [found[b] for b in asked.branches], evaluated)
            if is_number(line, "cond"):
                return like_output(out, cond)
            if rows is None and is_number(line, "uncond"):
                return out
            return like_output(out, session.prediction(line).to(cond.dtype))


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
