"""Pictures as a model takes them: any PIL image to RGB of the right size, and to pixels. Needs no torch until then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def as_rgb(image: Image) -> Image:
    """The first frame of an image, upright, in 8-bit RGB.

    The camera's orientation (EXIF) is applied. Transparency becomes white. Palettes and grey values become colours; 16
    bits are rounded to 8; CMYK is converted without a colour profile. Profiles are ignored, numbers count as sRGB.
    """
    from PIL import Image as images
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image) or image
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, "white")
        image = images.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image) -> Image:
    """Grey values of 16 or more bits. Whole numbers go to 65535; real numbers are in [0, 1] or have no known range."""
    import numpy as np
    from PIL import Image as images

    values = np.asarray(image, dtype=np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0.0 or values.max() > top:
        raise ConfigError(f"an image of mode {image.mode} must have values from 0 to {top:g}: save it with 8 bits")
    return images.fromarray(np.round(values * (255.0 / top)).astype(np.uint8))


def fitting_size(size: tuple[int, int], height: int | None, width: int | None, multiple: int) -> tuple[int, int]:
    """(height, width) in pixels for an image of `size` = (width, height).

    A side that is given is kept, the other one keeps the proportions; without any the image's own size. Sides that
    nobody gave are rounded to the nearest multiple.
    """
    w, h = size
    factor = height / h if height is not None else width / w if width is not None else 1.0

    def rounded(value: float) -> int:
        return max(multiple, int(value / multiple + 0.5) * multiple)

    return rounded(h * factor) if height is None else height, rounded(w * factor) if width is None else width


def fitted(image: Image, height: int, width: int) -> Image:
    """The image in that size: Lanczos where it has another; proportions change if they differ."""
    from PIL import Image as images

    return image if image.size == (width, height) else image.resize((width, height), images.Resampling.LANCZOS)


def pixels_of(image: Image) -> Tensor:
    """(3, H, W) float32 in [0, 1] of an RGB image."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255.0


def batch_of_images(images: Any, count: int, height: int | None, width: int | None, multiple: int) -> Tensor:
    """(count, 3, H, W) float32 in [0, 1], from what `sample` takes as init_images.

    images: a PIL image, a sequence of PIL images, or a float tensor (3, H, W) or (B, 3, H, W) in [0, 1]; one for all
    prompts or one per prompt. PIL images are converted (`as_rgb`) and brought to the size (`fitting_size`); a tensor
    must have it. Errors: ConfigError for a wrong number, size or value; IncompatibleError for another type.
    """
    import torch

    if isinstance(images, torch.Tensor):
        pixels = _checked(images, height, width)
    else:
        pixels = torch.stack(_converted(images, height, width, multiple))
    if len(pixels) not in (1, count):
        raise ConfigError(f"{len(pixels)} init_images for {count} prompts: give one for all, or one per prompt")
    return pixels.expand(count, -1, -1, -1)


def _checked(pixels: Tensor, height: int | None, width: int | None) -> Tensor:
    if not pixels.is_floating_point():
        raise IncompatibleError(f"init_images must be float in [0, 1], got {pixels.dtype}: divide by 255 first")
    pixels = pixels[None] if pixels.dim() == 3 else pixels
    if pixels.dim() != 4 or pixels.shape[1] != 3 or not pixels.numel():
        raise ConfigError(f"init_images must have the shape (B, 3, H, W), got {tuple(pixels.shape)}")
    got = tuple(pixels.shape[2:])
    if got != (height or got[0], width or got[1]):
        raise ConfigError(f"init_images have {got[1]}x{got[0]} pixels, and {width or got[1]}x{height or got[0]} were "
                          "asked for: resize the tensor first, or give PIL images")  # fmt: skip
    low, high = float(pixels.min()), float(pixels.max())
    if not (0.0 <= low and high <= 1.0):  # false for NaN
        raise ConfigError(f"init_images must be in [0, 1], got values from {low:g} to {high:g}")
    return pixels.float()


def _converted(images: Any, height: int | None, width: int | None, multiple: int) -> list[Tensor]:
    from PIL.Image import Image

    given = [images] if isinstance(images, Image) else images
    if not isinstance(given, Sequence) or not given or not all(isinstance(image, Image) for image in given):
        raise IncompatibleError(f"init_images must be PIL images or a tensor (B, 3, H, W), got {type(images).__name__}")
    upright = [as_rgb(image) for image in given]
    sizes = {fitting_size(image.size, height, width, multiple) for image in upright}
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h}" for h, w in sorted(sizes)[:4])
        raise ConfigError(f"the init_images have different sizes ({shown}): give height and width")
    h, w = sizes.pop()
    return [pixels_of(fitted(image, h, w)) for image in upright]
