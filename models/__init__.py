"""The embedded world and the small pipelines trained on it.

Importing this package loads neither torch nor diffusers.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

_WEIGHTS = Path(__file__).parent / "weights"

EMBEDDED: dict[str, Path] = {"tiny-sd": _WEIGHTS / "tiny-sd"}
"""Name of each embedded pipeline -> its folder in diffusers format."""

DEFAULT_SCALE = 2.0
"""The guidance scale at which ``tiny-sd`` is meant to be used (diffusers' convention: 1 = no guidance)."""


def embedded(name: str) -> Path:
    """The folder of an embedded pipeline, for ``StableDiffusionPipeline.from_pretrained`` and the like.

    Raises ConfigError when the name is unknown or the folder is not there.
    """
    folder = EMBEDDED.get(name)
    if folder is None:
        raise ConfigError(f"no embedded model is called {name!r}; expected one of: {', '.join(EMBEDDED)}")
    if not (folder / "model_index.json").is_file():
        raise ConfigError(f"the files of the embedded model {name!r} are missing; reinstall fewstep")
    return folder
