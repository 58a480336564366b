r"""A k-diffusion or ComfyUI style denoiser as a `Network`.

Such a denoiser is called as model(xbar, sbar, **extra_args) and returns the predicted clean image, with

    xbar = x / alpha,        sbar = sigma / alpha, of shape (B,),

the variance-exploding form of any model. ComfyUI's flow models are called with x and t = sigma themselves.
Source: Katherine Crowson, k-diffusion, https://github.com/crowsonkb/k-diffusion, external.py and sampling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..errors import ConfigError, IncompatibleError, NumericsError
from .levels import Level, NoiseSchedule, RectifiedFlow
from .prediction import X0, Parametrisation


@dataclass(frozen=True)
class KDiffusionNetwork:
    """model: called as above, once a branch; x keeps its dtype, and the model casts.

    schedule: the noise levels that the model was trained on.
    extra_args: per branch, the keyword arguments of the model's call.
    convention: "ve", or "flow" for a model that is called with x and t (RectifiedFlow only).
    At alpha = 0, where a flow run begins, xbar does not exist: "ve" refuses that level by name.
    """

    model: Callable[..., Tensor]
    schedule: NoiseSchedule
    extra_args: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"cond": {}})
    convention: Literal["ve", "flow"] = "ve"
    parametrisation: ClassVar[Parametrisation] = X0

    def __post_init__(self) -> None:
        if self.convention not in ("ve", "flow"):
            raise ConfigError(f"convention must be 've' or 'flow', got {self.convention!r}")
        if self.convention == "flow" and not isinstance(self.schedule, RectifiedFlow):
            raise ConfigError(f"convention 'flow' goes with RectifiedFlow, got {self.schedule!r}; use 've'")

    def __call__(
        self, x: Tensor, level: Level, branches: tuple[str, ...], rows: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """One predicted clean image (B, ...) per branch.       rows: not known to such a model, refused."""
        if rows is not None:
            raise IncompatibleError("a k-diffusion style denoiser evaluates the whole batch; rows must be None")
        missing = [branch for branch in branches if branch not in self.extra_args]
        if missing:
            raise ConfigError(f"extra_args has no branch {missing[0]!r}: it has {', '.join(self.extra_args)}; "
                              f"pass extra_args={{{missing[0]!r}: {{...}}}}")  # fmt: skip
        alpha = 1.0 if self.convention == "flow" else float(level.alpha)
        if alpha == 0.0:
            raise NumericsError(f"x / alpha does not exist at time {float(level.time):g} (alpha 0); begin at a level "
                                "where it does, or pass convention='flow' for a model that takes x itself")  # fmt: skip
        xbar = x if alpha == 1.0 else x / alpha
        sbar = x.new_full((x.shape[0],), float(level.sigma) / alpha)
        return tuple(self.model(xbar, sbar, **self.extra_args[branch]) for branch in branches)
