"""Taking over what a module does when it is called, for one call of one pipeline, and putting it back."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from weakref import WeakSet

from ..errors import IncompatibleError

Forward = Callable[..., Any]

_lock = threading.Lock()
_taken: WeakSet[Any] = WeakSet()  # modules that a call has taken over now


class Caller:
    """The call of a pipeline that a session belongs to: its thread, and its frame.

    Modules may be shared, and what another pipeline does with them is not the session's business: one that runs in
    another thread, or in a callback of this call. Each pipeline is told by the frame of its `__call__`, which must be
    on the stack, as the innermost one of its kind.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._frame: FrameType | None = None  # of the first call that came, before which no callback can run
        self._known = False

    def calls(self) -> bool:
        """Whether whoever asks was called by it."""
        if threading.get_ident() != self._thread:
            return False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not frame.f_code.co_qualname.endswith("Pipeline.__call__"):
            frame = frame.f_back
        if not self._known:
            self._frame, self._known = frame, True
        return frame is self._frame

    def end(self) -> None:
        """Lets go of the frame, which holds what the pipeline's variables are."""
        self._frame, self._known = None, True


@contextmanager
def replaced(module: Any, call: Callable[[Forward, tuple, dict], Any], caller: Caller) -> Iterator[None]:
    """Within, module(*args, **kwargs) is call(forward, args, kwargs), with `forward` what it did before.

    caller: for whom. To all others the module does what it did before.
    Taken over is the outermost thing that can be: `forward` of the instance, with whatever hooks of accelerate and
    diffusers are in it, or the compiled call of `module.compile()`, so that no hook of ours is traced into a graph.
    accelerate's offload installs a forward of its own at the end of a pipeline's call; then there is nothing to put
    back, because ours is gone with it.
    Errors: IncompatibleError for a module that is taken over already, whose state nobody could put back in order.
    """
    taken = getattr(module, "_orig_mod", module)  # one network, compiled or not
    _take(taken)
    try:
        name = "_compiled_call_impl" if module.__dict__.get("_compiled_call_impl") is not None else "forward"
        before, had = getattr(module, name), name in module.__dict__

        @functools.wraps(before)
        def ours(*args: Any, **kwargs: Any) -> Any:
            return call(before, args, kwargs) if caller.calls() else before(*args, **kwargs)

        setattr(module, name, ours)
        try:
            yield
        finally:
            if module.__dict__.get(name) is ours:
                if had:
                    setattr(module, name, before)
                else:
                    delattr(module, name)
    finally:
        with _lock:
            _taken.discard(taken)


def _take(module: Any) -> None:
    with _lock:
        if module in _taken:
            raise IncompatibleError(f"this {type(module).__name__} is in use by a call of another attached pipeline: "
                                    "wait for that call, or give each pipeline one of its own")  # fmt: skip
        _taken.add(module)
