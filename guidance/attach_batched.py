"""Guidance on pipelines that evaluate [uncond, cond] in one forward of 2 B rows.

While every image is guided, the denoiser gets what the pipeline passed, so the result is the pipeline's to the bit.
Otherwise only the rows that the policy asks for are evaluated, and the pipeline gets back u^ in place of u: it forms
u^ + w (c - u^), which is c where u^ = c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..samplers.guided import Asked
from ..samplers.policy import Line
from .attach_arguments import Arguments, Rows, like_output, rows_of, tensor_of
from .attach_modules import replaced
from .attach_session import Session, is_number
from .scale import owns_scale

MIXING_PROCESSORS = ("PAG", "CrossFrame")
"""Parts of the names of attention processors of diffusers that cut the batch into branches or frames."""


@contextmanager
def taken_over(session: Session) -> Iterator[None]:
    """The denoiser and ControlNet of the session's pipeline evaluate what its policy asks for."""
    check_rows_are_independent(session)
    hooks = ((session.layout.controls, _control), (session.layout.denoisers, _denoise))
    with ExitStack() as stack:
        for names, hook in hooks:
            for name in names:
                module = getattr(session.pipe, name)
                call = partial(hook, session, Arguments(module))
                stack.enter_context(replaced(module, call, session.caller))
        yield


def check_rows_are_independent(session: Session) -> None:
    """IncompatibleError for denoisers that keep or mix what they know of the rows of a batch."""
    for name in session.layout.denoisers:
        module = getattr(session.pipe, name)
        if getattr(module, "is_cache_enabled", False):
            raise IncompatibleError(f"a cache is enabled on {name}, which keeps something of every row, and "
                                    f"a policy leaves rows out: pipe.{name}.disable_cache(), or detach()")  # fmt: skip
        kinds = {type(processor).__name__ for processor in getattr(module, "attn_processors", {}).values()}
        mixing = sorted(kind for kind in kinds if any(part in kind for part in MIXING_PROCESSORS))
        if mixing:
            raise IncompatibleError(f"{name} has attention processors that mix rows ({mixing[0]}), and "
                                    f"a policy leaves rows out: pipe.{name}.set_default_attn_processor()")  # fmt: skip


def needed(session: Session, asked: Asked) -> Asked:
    """What is evaluated: c for every image too, where the pipeline forms u^ + w (c - u^)."""
    if owns_scale(session.policy):
        return asked
    images = {**dict(zip(asked.branches, asked.images, strict=True)), "cond": None}
    return Asked(tuple(images), tuple(images.values()))


# --- the hooks ------------------------------------------------------------------------------------------------------


def _denoise(session: Session, known: Arguments, forward: Callable, args: tuple, kwargs: dict) -> Any:
    layout, named = session.layout, known.named(args, kwargs)
    sample, timestep = named[known.signature.sample], named[known.signature.time]
    if layout.more is not None and named.get(layout.more) is not None:
        session.more(layout.more)
        return forward(*args, **kwargs)
    if not session.guidance_is_on():
        session.unguided(sample.shape[0], timestep)
        return forward(*args, **kwargs)
    batch = _half(session, sample)
    if session.tick == 0:  # what cannot be cut is refused before anything is saved, not where it is
        known.taken(Rows(slice(None), 2 * batch), args, kwargs)
    asked = session.asked(batch, timestep)
    evaluated = needed(session, asked)
    rows = rows_of(evaluated, layout.order, batch, sample.device)
    if rows is not None:
        args, kwargs = known.taken(rows, args, kwargs)
    out = forward(*args, **kwargs)
    tensor = tensor_of(out)
    whole = tensor if rows is None else rows.put(tensor)
    halves = dict(zip(layout.order, whole.chunk(2), strict=True))
    latents = min(sample.shape[known.signature.channels], tensor.shape[known.signature.channels])
    x, *outputs = (_first(t, latents, known.signature.channels)
                   for t in (sample[:batch], *(halves[b] for b in asked.branches)))  # fmt: skip
    line = session.observed(x, outputs, evaluated)
    if rows is None and is_number(line, "uncond") and not owns_scale(session.policy):
        return out
    return like_output(out, _guided(session, evaluated, line, halves, known.signature.channels))


def _guided(session: Session, evaluated: Asked, line: Line, halves: dict[str, Tensor], channels: int) -> Tensor:
    """The output (2 B, ...) of which the pipeline's formula makes the guided prediction."""
    complete = [b for b, images in zip(evaluated.branches, evaluated.images, strict=True) if images is None]
    if is_number(line, "cond") and "cond" in complete:
        return torch.cat([halves["cond"]] * 2)
    source = "cond" if "cond" in complete else next(iter(complete), None)
    if source is None:
        raise IncompatibleError(f"{type(session.policy).__name__} evaluates no branch for all images at a tick, and a "
                                "pipeline needs one")  # fmt: skip
    like = halves[source]
    guided = session.prediction(line).to(like.dtype)
    count = guided.shape[channels]
    if count < like.shape[channels]:  # a learned variance, which the pipeline drops
        guided = torch.cat([guided, like.narrow(channels, count, like.shape[channels] - count)], dim=channels)
    cond = guided if owns_scale(session.policy) else like
    return torch.cat([cond if b == "cond" else guided for b in session.layout.order])


def _control(session: Session, known: Arguments, forward: Callable, args: tuple, kwargs: dict) -> Any:
    """A ControlNet, called before the denoiser in the same tick, for the same rows."""
    named = known.named(args, kwargs)
    if named.get("guess_mode") or not session.guidance_is_on():  # the conditional rows alone
        return forward(*args, **kwargs)
    sample = named[known.signature.sample]
    batch = _half(session, sample)
    asked = needed(session, session.asked(batch, named[known.signature.time]))
    rows = rows_of(asked, session.layout.order, batch, sample.device)
    if rows is None:
        return forward(*args, **kwargs)
    args, kwargs = known.taken(rows, args, kwargs)
    found = forward(*args, **kwargs)
    if not isinstance(found, tuple):
        raise IncompatibleError(f"the ControlNet returned {type(found).__name__}, expected a tuple (return_dict=False)")
    down, middle = found
    return [rows.put(tensor) for tensor in down], rows.put(middle)


def _half(session: Session, sample: Tensor) -> int:
    if sample.shape[0] % 2:
        raise IncompatibleError(f"the denoiser of {type(session.pipe).__name__} got {sample.shape[0]} rows where "
                                "[uncond, cond] has an even number: this is not the layout that is known")  # fmt: skip
    return sample.shape[0] // 2


def _first(tensor: Tensor, count: int, channels: int) -> Tensor:
    """The latents' channels."""
    return tensor if tensor.shape[channels] == count else tensor.narrow(channels, 0, count).contiguous()
