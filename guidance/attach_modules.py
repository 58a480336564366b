"""Taking over what a module does when it is called, and putting it back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Forward = Callable[..., Any]


@contextmanager
def replaced(module: Any, call: Callable[[Forward, tuple, dict], Any]) -> Iterator[None]:
    """Within, module(*args, **kwargs) is call(forward, args, kwargs), with `forward` what it did before.

    Taken over is the outermost thing that can be: `forward` of the instance, with whatever hooks of accelerate and
    diffusers are in it, or the compiled call of `module.compile()`, so that no hook of ours is traced into a graph.
    accelerate's offload installs a forward of its own at the end of a pipeline's call; then there is nothing to put
    back, because ours is gone with it.
    """
    name = "_compiled_call_impl" if module.__dict__.get("_compiled_call_impl") is not None else "forward"
    before, had = getattr(module, name), name in module.__dict__

    @functools.wraps(before)
    def ours(*args: Any, **kwargs: Any) -> Any:
        return call(before, args, kwargs)

    setattr(module, name, ours)
    try:
        yield
    finally:
        if module.__dict__.get(name) is ours:
            if had:
                setattr(module, name, before)
            else:
                delattr(module, name)
