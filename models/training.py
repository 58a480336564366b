"""What both training scripts share: the time budget, the learning rate, averaged weights, checkpoints, the log."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU when there is one; anything else is torch's own name of a device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu or cuda") from error


class Budget:
    """A time budget in minutes that survives a restart: progress runs from 0 to 1 over the time really trained."""

    def __init__(self, minutes: float, used: float = 0.0) -> None:
        if not minutes > 0:
            raise ConfigError(f"got --minutes {minutes}; expected a positive number")
        if used >= 60 * minutes:
            raise ConfigError(
                f"the checkpoint has used {used / 60:.1f} of {minutes:g} minutes; --minutes counts from the beginning"
            )
        self.seconds, self._start = 60 * minutes, time.monotonic() - used

    @property
    def used(self) -> float:
        """Seconds trained so far."""
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """Part of the budget used, 0 to 1."""
        return min(1.0, self.used / self.seconds)

    def exclude(self, seconds: float) -> None:
        """Do not count time spent on something else than training."""
        self._start += seconds


def learning_rate(peak: float, step: int, progress: float, warmup: int = 100) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine from ``peak`` down to 1 % of it at the end of the budget."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * min(1.0, (step + 1) / warmup) * cosine


class Averaged:
    """Exponential moving average of a module's parameters (buffers are copied); float32."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """One step; early on the average forgets faster, so that it does not remember the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        ours, theirs = [], []
        for key, value in self.values.items():
            if value.is_floating_point():
                ours.append(value)
                theirs.append(state[key])
            else:
                value.copy_(state[key])
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    def copy_to(self, module: nn.Module) -> nn.Module:
        """Load the averaged weights into ``module`` and return it."""
        module.load_state_dict(self.values)
        return module


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """The same learning rate for every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = value


class Log:
    """One JSON object a line, on standard output and in ``log.jsonl`` of the output folder."""

    def __init__(self, folder: Path, fresh: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        if fresh:
            self.path.unlink(missing_ok=True)

    def write(self, **values: Any) -> None:
        """Append one line; floats are rounded to five digits."""
        rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in values.items()}
        line = json.dumps(rounded)
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")
