"""Which implementation runs, Triton's or plain torch's: the environment variable FEWSTEP_KERNELS.

auto (the default): Triton (3.4 or newer) on CUDA devices that it supports, torch elsewhere.       torch: never Triton.
triton: Triton or an error. Without a GPU that takes Triton's interpreter (TRITON_INTERPRET=1, set before the start).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError, MissingDependencyError

VARIABLE = "FEWSTEP_KERNELS"
CHOICES = ("auto", "torch", "triton")
_VOLTA = (7, 0)  # the oldest that Triton compiles for


def _constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """For torch.compile a constant, as it cannot trace all of these: torch.compiler.assume_constant_result without the
    import of the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def use_triton(where: Tensor | torch.device) -> bool:
    """Whether tensors like `where` go to the Triton kernels.

    Errors: ConfigError for a FEWSTEP_KERNELS that is none; with `triton`, MissingDependencyError where it is not
    installed and IncompatibleError for tensors that it cannot take.
    """
    return _decide(where.device if isinstance(where, Tensor) else where, _forced or requested())


@cache
@_constant
def requested() -> str:
    """The environment's choice. It is read once."""
    return _checked(os.environ.get(VARIABLE, "auto"))


_forced: str | None = None


@contextmanager
def forced(value: str) -> Iterator[None]:
    """Inside it `value` counts instead of the environment's: to compare both in one process. In every thread."""
    global _forced
    before, _forced = _forced, _checked(value)
    try:
        yield
    finally:
        _forced = before


def _checked(value: str) -> str:
    if value not in CHOICES:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {value!r}")
    return value


@cache
@_constant
def _decide(device: torch.device, choice: str) -> bool:
    if choice == "torch":
        return False
    installed = find_spec("triton") is not None
    if choice == "auto":
        return device.type == "cuda" and installed and _new_enough() and _supported(device)
    if not installed or not _new_enough():
        raise MissingDependencyError(f"{VARIABLE}=triton needs Triton 3.4 or newer: pip install 'fewstep[triton]'")
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        raise IncompatibleError(
            f"{VARIABLE}=triton, but the tensors are on {device.type!r}: Triton's kernels need CUDA tensors, or on the "
            f"CPU its interpreter (TRITON_INTERPRET=1); {VARIABLE}=auto uses torch there"
        )
    return True


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _new_enough() -> bool:
    from .triton_version import is_new_enough

    return is_new_enough()


def _supported(device: torch.device) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _VOLTA
