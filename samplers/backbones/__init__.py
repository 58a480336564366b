"""What differs per model family: loading, text and size conditioning, latents and pixels.

Names load on first use, so that the scheduler adapter does not pull in every family.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Backbone, UNetNetwork
    from .load import backbone_of, check_device, check_dtype, check_model, load_backbone, read_schedule

_HOME = {
    "Backbone": ".base",
    "UNetNetwork": ".base",
    "backbone_of": ".load",
    "check_device": ".load",
    "check_dtype": ".load",
    "check_model": ".load",
    "load_backbone": ".load",
    "read_schedule": ".load",
}

__all__ = [
    "Backbone",
    "UNetNetwork",
    "backbone_of",
    "check_device",
    "check_dtype",
    "check_model",
    "load_backbone",
    "read_schedule",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
