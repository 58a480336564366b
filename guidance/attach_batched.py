"""Guidance on pipelines that evaluate [uncond, cond] in one forward of 2 B rows.

While every image is guided, the denoiser gets what the pipeline passed, so the result is the pipeline's to the bit.
Otherwise only the rows that the policy asks for are evaluated, and the pipeline gets back u^ in place of u: it forms
u^ + w (c - u^), which is c where u^ = c.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..kernels.upload import to_device
from ..samplers import feeding
from ..samplers.guided import Asked
from ..samplers.policy import Line
from .attach_layouts import Signature, signature_of
from .attach_modules import replaced
from .attach_session import Session, is_number, owns_scale

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
                call = partial(hook, session, _Arguments(module))
                stack.enter_context(replaced(module, call))
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


class Rows(NamedTuple):
    """Some rows of a batch of `total`. index: ascending; a slice where they are neighbours."""

    index: Tensor | slice
    total: int

    def take(self, tensor: Tensor) -> Tensor:
        return tensor[self.index]

    def put(self, part: Tensor) -> Tensor:
        """`part` as rows of the whole batch; nobody may read the others."""
        index = self.index
        whole = feeding.unfilled(part.new_empty((self.total, *part.shape[1:])))
        whole[index] = part
        return whole


def rows_of(asked: Asked, order: Sequence[str], batch: int, device: torch.device) -> Rows | None:
    """The rows of [order[0], order[1]] that are asked for; None for all."""
    images = dict(zip(asked.branches, asked.images, strict=True))
    found: list[int] = []
    for place, branch in enumerate(order):
        wanted = images.get(branch, ())
        found += [place * batch + k for k in (range(batch) if wanted is None else wanted)]
    total = batch * len(order)
    if len(found) == total:
        return None
    if found == list(range(found[0], found[-1] + 1)):
        return Rows(slice(found[0], found[-1] + 1), total)
    return Rows(to_device(found, device, torch.int64), total)


def needed(session: Session, asked: Asked) -> Asked:
    """What is evaluated: c for every image too, where the pipeline forms u^ + w (c - u^)."""
    if owns_scale(session.policy):
        return asked
    images = {**dict(zip(asked.branches, asked.images, strict=True)), "cond": None}
    return Asked(tuple(images), tuple(images.values()))


# --- the hooks ------------------------------------------------------------------------------------------------------


def _denoise(session: Session, known: _Arguments, forward: Callable, args: tuple, kwargs: dict) -> Any:
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
    tensor = _tensor_of(out)
    whole = tensor if rows is None else rows.put(tensor)
    halves = dict(zip(layout.order, whole.chunk(2), strict=True))
    latents = min(sample.shape[known.signature.channels], tensor.shape[known.signature.channels])
    x, *outputs = (_first(t, latents, known.signature.channels)
                   for t in (sample[:batch], *(halves[b] for b in asked.branches)))  # fmt: skip
    line = session.observed(x, outputs, evaluated)
    if rows is None and is_number(line, "uncond") and not owns_scale(session.policy):
        return out
    return _like(out, _guided(session, evaluated, line, halves, known.signature.channels))


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


def _control(session: Session, known: _Arguments, forward: Callable, args: tuple, kwargs: dict) -> Any:
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


def _tensor_of(out: Any) -> Tensor:
    if isinstance(out, tuple) and len(out) != 1:
        raise IncompatibleError(f"the denoiser returned {len(out)} values, expected one tensor")
    return out[0]


def _like(out: Any, tensor: Tensor) -> Any:
    """`tensor` in the place of the output `out`, a tuple or a ModelOutput."""
    return (tensor,) if isinstance(out, tuple) else type(out)(sample=tensor)


# --- arguments ------------------------------------------------------------------------------------------------------


class _Arguments:
    """The arguments of a module's forward, by name."""

    def __init__(self, module: Any) -> None:
        self.kind = type(getattr(module, "_orig_mod", module))
        self.signature: Signature = signature_of(module)

    def named(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        named = {**dict(zip(_names(self.kind), args, strict=False)), **kwargs}
        missing = {self.signature.sample, self.signature.time} - set(named)
        if missing:
            raise IncompatibleError(f"{self.kind.__name__} was called without {min(missing)}: its forward is not the "
                                    "one that is known, or something without its signature wraps it")  # fmt: skip
        return named

    def taken(self, rows: Rows, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments for some rows. Errors: IncompatibleError for one that is not known to have the batch or not."""
        names = _names(self.kind)
        placed = tuple(self._one(rows, name, value) for name, value in zip(names, args, strict=False))
        return placed, {name: self._one(rows, name, value) for name, value in kwargs.items()}

    def _one(self, rows: Rows, name: str, value: Any) -> Any:
        known = self.signature
        if name == known.time:
            single = not isinstance(value, Tensor) or value.dim() == 0 or tuple(value.shape) == (1,)
            return value if single else self._rows(rows, name, value)
        if name == known.sample or name in known.rows:
            return self._rows(rows, name, value)
        if name in known.nested and value is not None:
            return {key: self._rows(rows, f"{name}[{key!r}]", v) if key in known.nested[name] else
                    self._without(f"{name}[{key!r}]", v) for key, v in value.items()}  # fmt: skip
        return value if name in known.whole else self._without(name, value)

    def _rows(self, rows: Rows, name: str, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list | tuple):
            return type(value)(self._rows(rows, name, v) for v in value)
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != rows.total:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise IncompatibleError(f"{self.kind.__name__} got {name} of {got}, expected {rows.total} rows, as the "
                                    "sample has: a policy cannot evaluate some of them")  # fmt: skip
        return rows.take(value)

    def _without(self, name: str, value: Any) -> Any:
        if _holds_tensor(value):
            raise IncompatibleError(f"{self.kind.__name__} was called with the tensor argument {name}, and whether it "
                                    "has one row per image is not known here, so a policy cannot evaluate some of "
                                    "them; leave it out, or detach() for such calls")  # fmt: skip
        return value


@lru_cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]  # type: ignore[attr-defined]


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)
