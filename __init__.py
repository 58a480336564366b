"""The same picture for fewer network evaluations, with the diffusion and flow models you already have.

The public names below are loaded when they are first used, so that ``import fewstep`` costs no import of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, guidance, inverse, kernels, models, samplers
    from .guidance.attach import attach
    from .guidance.sampling import sample
    from .inverse.restore import restore
    from .samplers import solve, trace

# Public name -> the module that defines it. A new name is one line here and one above, for type checkers.
_HOME = {
    "attach": ".guidance.attach",
    "restore": ".inverse.restore",
    "sample": ".guidance.sampling",
    "solve": ".samplers",
    "trace": ".samplers",
}
_SUBMODULES = ("errors", "guidance", "inverse", "kernels", "models", "samplers")

__all__ = [
    "attach", "errors", "guidance", "inverse", "kernels", "models", "restore", "sample", "samplers", "solve", "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name], __name__), name)
    elif name in _SUBMODULES:
        value = import_module(f".{name}", __name__)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("fewstep")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
