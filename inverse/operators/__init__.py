"""Measurement operators: inpainting, super-resolution, blur, denoising, JPEG, and one after another.

They are duck-typed to deepinv.physics: `A(x)`, and where they are linear `A_adjoint(y)`, `A_dagger(y)` and
`prox_l2(z, y, gamma)`. All are frozen dataclasses of hyper-parameters. A mask or kernel that is random is a function of
its seed and the picture's size alone, drawn on the CPU, so it is the same on every device.
"""

from .base import LinearOperator, Operator, is_linear, name_of
from .blur import GaussianBlur
from .composed import Composed, guess_of
from .convolution import KernelBlur
from .denoise import Denoise
from .downsample import Downsample
from .inpaint import InpaintBox, InpaintMask, InpaintRandom
from .jpeg import JPEG
from .motion import MotionBlur
from .solve import dagger_by_cg, damped_inverse, prox_by_cg

__all__ = [
    "JPEG",
    "Composed",
    "Denoise",
    "Downsample",
    "GaussianBlur",
    "InpaintBox",
    "InpaintMask",
    "InpaintRandom",
    "KernelBlur",
    "LinearOperator",
    "MotionBlur",
    "Operator",
    "dagger_by_cg",
    "damped_inverse",
    "guess_of",
    "is_linear",
    "name_of",
    "prox_by_cg",
]
