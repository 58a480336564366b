"""Masks and kernels from files. Pictures are read by Pillow, which is imported only here; nothing is unpickled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from .convolution import KernelBlur
from .inpaint import InpaintMask
from .solve import DAGGER_ITERATIONS

MAX_PIXELS = 1 << 26  # 8,192 x 8,192: more is an accident, or wants to fill the memory
MAX_BYTES = 1 << 28
# No vector formats: Pillow would start Ghostscript for them. As in cli.init_image.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO", "QOI")
_TEXT, _ARRAY = (".txt", ".csv"), (".npy",)


def mask_of_file(file: str, known: Literal["white", "black"] = "white") -> InpaintMask:
    """The mask in a picture, usually a PNG, of the size of the pictures it is for.

    known: which half of the greys is known; below half of full brightness is black. Editors that paint what is to be
    replaced in white write "black".
    Errors: ConfigError for a file that is no picture, that has transparency, or in which nothing is known or missing.
    """
    if known not in ("white", "black"):
        raise ConfigError(f"known must be white or black, got {known!r}")
    grey = _grey(Path(file), "mask")
    white = grey >= 0.5
    if not bool(white.any()) or bool(white.all()):
        what = "no black pixel" if bool(white.any()) else "no white pixel"
        low, high = float(grey.min()), float(grey.max())
        hint = "; if its 1 of 255 stands for white, multiply it by 255" if 0.0 < high <= 1.5 / 255.0 else ""
        raise ConfigError(f"the mask {file} has {what} (greys from {low:.3g} to {high:.3g} of white): it must have "
                          f"both, what is known and what is missing{hint}")  # fmt: skip
    mask = white if known == "white" else ~white
    return InpaintMask(mask, text=f"file={file},known={known}")


def kernel_of_file(
    file: str, padding: Literal["reflect", "circular"] = "reflect", rcond: float = 1e-6,
    iterations: int = DAGGER_ITERATIONS,
) -> KernelBlur:  # fmt: skip
    """The blur whose kernel is in a picture (its greys), a .npy, or a text of numbers (.txt, .csv), one row a line.

    Errors: ConfigError for a file that cannot be read so, and for a kernel that cannot be.
    """
    path = Path(file)
    kernel = _numbers(path) if path.suffix.lower() in (*_TEXT, *_ARRAY) else _grey(path, "kernel")
    text = f"file={file},padding={padding},rcond={rcond!r},iterations={iterations}"
    try:
        return KernelBlur(kernel, padding, rcond, iterations, text)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _grey(path: Path, what: str) -> Tensor:
    """(H, W) float64 from 0 to 1, turned upright as EXIF says. The size is looked at before a pixel is decoded."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    _check_file(path, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures: the limit below is ours
            Image.init()
            image = Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
        with image:
            if image.width * image.height > MAX_PIXELS:
                size = f"it has {image.width}x{image.height}"
                raise ConfigError(f"the {what} {path} is too large: {size}, expected at most {MAX_PIXELS:,} pixels")
            return _greys(ImageOps.exif_transpose(image), path, what)
    except ConfigError:
        raise
    except UnidentifiedImageError:
        others = f", {', '.join(_ARRAY + _TEXT)}" if what == "kernel" else ""
        raise ConfigError(
            f"the {what} {path} is no picture that can be read: expected PNG or the like{others}"
        ) from None
    except Image.DecompressionBombError:
        raise ConfigError(f"the {what} {path} is too large: expected at most {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, MemoryError) as error:
        raise ConfigError(f"the {what} {path} is damaged: {error or type(error).__name__}") from None


def _greys(image: Any, path: Path, what: str) -> Tensor:
    import numpy as np

    if "A" in image.getbands() or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            raise ConfigError(f"the {what} {path} is transparent in places, which could mean either: save it in black "
                              "and white without transparency")  # fmt: skip
    if image.mode.startswith("I"):  # 16 bits
        return torch.from_numpy(np.asarray(image).astype(np.float64)) / 65535.0
    if image.mode == "F":
        return torch.from_numpy(np.asarray(image).astype(np.float64))
    return torch.from_numpy(np.asarray(image.convert("RGB" if image.mode == "P" else image.mode).convert("L")) / 255.0)


def _numbers(path: Path) -> Tensor:
    """(h, w) float64."""
    import numpy as np

    _check_file(path, "kernel")
    try:
        if path.suffix.lower() in _ARRAY:
            array = np.load(path, allow_pickle=False)
        else:
            text = path.read_text(encoding="utf-8")
            if not text.strip():
                raise ValueError("it is empty")
            array = np.loadtxt(text.replace(",", " ").replace(";", " ").splitlines(), dtype=np.float64, ndmin=2)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"the kernel {path} cannot be read as rows of numbers: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise ConfigError(f"the kernel {path} is no array of real numbers")
    return torch.from_numpy(array.astype(np.float64))


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise ConfigError(f"there is no {what} file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"the {what} file {path} has {path.stat().st_size} bytes, expected {MAX_BYTES} at most")
