"""A picture that a command is given: opened, measured and decoded before anything heavy is loaded. Needs no torch."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from . import checks

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 256 << 20
MAX_PIXELS = 1 << 26  # 8192 x 8192
# No vector formats: Pillow would start Ghostscript for them.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO", "QOI")


@dataclass(frozen=True)
class InitImage:
    """A picture to start from, or to restore: its file by digest, never by path.

    size: (width, height) as it stands upright.       location: what is opened, not part of any identity.
    option: that named it, for messages.       transparent: in places, which become white.
    """

    sha256: str
    size: tuple[int, int]
    location: str = field(compare=False)
    option: str = field(default="--init-image", compare=False)
    transparent: bool = field(default=False, compare=False)

    def identity(self) -> dict[str, Any]:
        return {"sha256": self.sha256}

    def open(self) -> Image:
        """The picture in RGB, upright. ConfigError if the file has changed since it was found."""
        data = checks.content(self.option, self.location, "a picture", MAX_BYTES)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ConfigError(f"{self.option} {Path(self.location).name!r} has changed while the model was loading")
        return _decoded(data, self.location, self.option)[0]


def find_image(location: str, option: str = "--init-image") -> InitImage:
    """The picture at `location`. ConfigError, in one line, for what is not there, no picture, broken or too large."""
    data = checks.content(option, location, "a picture", MAX_BYTES)
    image, transparent = _decoded(data, location, option)
    return InitImage(hashlib.sha256(data).hexdigest(), image.size, location, option, transparent)


def _decoded(data: bytes, location: str, option: str) -> tuple[Image, bool]:
    """(in RGB, whether any of it was transparent). The size is looked at before a pixel is decoded."""
    from PIL import Image, UnidentifiedImageError

    from ..guidance.pictures import as_rgb

    what = f"{option} {Path(location).name!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures: the limit below is ours
            Image.init()
            image = Image.open(BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        _check_size(image.size, what)
        with image:
            image.load()
            return as_rgb(image), _is_transparent(image)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(option) else f"{what}: {text}") from None
    except UnidentifiedImageError:
        raise ConfigError(
            f"{what} is no picture that can be read: expected PNG, JPEG, WebP, TIFF or the like"
        ) from None
    except Image.DecompressionBombError:
        raise ConfigError(f"{what} is too large: at most {MAX_PIXELS:,} pixels") from None
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError, MemoryError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(f"{what} is damaged: {reason}") from None


def _is_transparent(image: Image) -> bool:
    return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255  # type: ignore[index]


def _check_size(size: tuple[int, int], what: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS or max(size) > checks.MAX_SIDE or min(size) < 1:
        raise ConfigError(f"{what} has {width}x{height} pixels: at most {checks.MAX_SIDE} a side; make it smaller")
