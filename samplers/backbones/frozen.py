"""A pipeline's parts while gradients are sent through them to their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def frozen(pipe: Any, parts: Sequence[str], checkpoint: bool, *, float32: Sequence[str] = ()) -> Iterator[None]:
    """Parameters of `parts` take no gradients inside, and activations are recomputed where `checkpoint` says so.

    float32: parts that are float32 inside if they are float16, because they overflow there.
    May be nested; on leaving, every part is as it was when its own context began.
    """
    with ExitStack() as stack:
        for name in parts:
            module = getattr(pipe, name)
            stack.enter_context(_without_parameter_gradients(module))
            if checkpoint:
                stack.enter_context(_checkpointed(module))
            if name in float32 and module.dtype == torch.float16:
                stack.callback(module.to, torch.float16)
                module.to(torch.float32)
        yield


@contextmanager
def _without_parameter_gradients(module: Any) -> Iterator[None]:
    wanted = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


@contextmanager
def _checkpointed(module: Any) -> Iterator[None]:
    before = module.is_gradient_checkpointing
    if not before:
        module.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if not before:
            module.disable_gradient_checkpointing()
