"""`restore`: a measurement and a pipeline to pictures that explain it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import IncompatibleError
from ..samplers.backbones import backbone_of
from ..samplers.noise import check_seeds
from .measurement import Measurement
from .posterior import OnTick, Posterior
from .report import Restoration
from .stsl import STSL


def restore(
    model: Any,
    measurement: Measurement,
    method: Posterior | None = None,
    *,
    prompt: str | Sequence[str] = "",
    seeds: Sequence[int] | None = None,
    checkpoint: bool = False,
    on_tick: OnTick | None = None,
) -> Restoration:
    """Restore pictures from a measurement.

    model: a diffusers pipeline of a supported family, or a Backbone.
    method: a posterior; default STSL().       prompt: one for all pictures, or one per picture; default none.
    seeds: one per picture; default 0, 1, ... for every measurement. One measurement with several seeds gives several
    pictures that explain it.       checkpoint: keep no activations for the backward pass; compute them again.
    on_tick: told of every tick, see report.Tick.
    Errors: as Posterior's.
    """
    posterior = STSL() if method is None else method
    for value, wanted, example in (
        (measurement, Measurement, "Measurement(y, operator, sigma_y)"),
        (posterior, Posterior, "STSL()"),
    ):
        if not isinstance(value, wanted):
            got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise IncompatibleError(f"restore needs a {wanted.__name__}, such as {example}, got {got}")
    backbone = model if hasattr(model, "latent_shape") else backbone_of(model)
    seeds = check_seeds(range(measurement.batch) if seeds is None else seeds)
    if not checkpoint:
        return posterior(backbone, measurement, prompt=prompt, seeds=seeds, on_tick=on_tick)
    with backbone.for_gradients(checkpoint=True):
        return posterior(backbone, measurement, prompt=prompt, seeds=seeds, on_tick=on_tick)
