"""Operators as text, and masks and kernels from files."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli import init_image
from fewstep.errors import ConfigError
from fewstep.inverse.operators import (
    JPEG,
    Composed,
    Denoise,
    Downsample,
    GaussianBlur,
    InpaintBox,
    InpaintMask,
    InpaintRandom,
    KernelBlur,
    MotionBlur,
    named,
)
from fewstep.inverse.operators import files as operator_files
from fewstep.inverse.operators.named import OPERATORS, described, operator_of

from .operator_rows import pictures
from .test_cli_restore_input import huge

NAMES = [
    "inpaint-box",
    "inpaint-random",
    "mask",
    "sr",
    "blur-gaussian",
    "blur-motion",
    "blur-kernel",
    "denoise",
    "jpeg",
]


def test_the_names():
    assert list(OPERATORS) == NAMES
    for one in OPERATORS.values():
        assert one.help and "\n" not in one.help and isinstance(one.operator, type)
    assert OPERATORS["sr"].usage == "factor=4, filter=bicubic" and OPERATORS["denoise"].usage == ""
    assert OPERATORS["mask"].usage == "file=PATH, known=white"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sr", Downsample(4)),
        ("sr:factor=8,filter=average", Downsample(8, "average")),
        (" SR : factor = 2 ", Downsample(2)),
        ("inpaint-box", InpaintBox()),
        ("inpaint_box:size=0.3,place=random,seed=4", InpaintBox(0.3, "random", seed=4)),
        ("inpaint-box:size=32", InpaintBox(32)),
        ("inpaint-random:fraction_missing=0.4", InpaintRandom(0.4)),
        ("blur-gaussian", GaussianBlur()),
        ("blur-gaussian:std=2.5,size=21,padding=circular,rcond=1e-2", GaussianBlur(2.5, 21, "circular", 0.01)),
        ("blur-motion:intensity=1,seed=7,size=none", MotionBlur(None, 1.0, 7)),
        ("denoise", Denoise()),
        ("jpeg:quality=20,chroma=4:4:4", JPEG(20, "4:4:4")),
    ],
)
def test_there_and_back(text, expected):
    operator = operator_of(text)
    assert operator == expected
    assert operator_of(described(operator)) == operator
    assert described(operator_of(described(operator))) == described(operator)
    assert all(f"{key}=" in described(operator) for key, default in
               OPERATORS[described(operator).partition(":")[0]].keys.items() if default is not None)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mask", "blur-kernel")])
@pytest.mark.parametrize("side", [64, 512])
def test_a_name_alone_suits_any_size(name, side):
    x = pictures(1, torch.float32, size=(3, side, side))
    operator = operator_of(name)
    y = operator.A(x)
    assert operator.guess(y).shape == x.shape and bool(y.isfinite().all())


WRONG = {
    "unknown operator 'inpaint': did you mean inpaint-box? There are inpaint-box, inpaint-random, mask": "inpaint",
    "unknown operator 'x9': there are inpaint-box": "x9",
    "operator sr has no key 'facter': did you mean factor? it has factor=4, filter=bicubic": "sr:facter=8",
    "operator denoise has no key 'std': it has no keys": "denoise:std=3",
    "factor of operator sr must be a whole number, got 'four'": "sr:factor=four",
    "factor must be a whole number from 1 to 64, got -2": "sr:factor=-2",
    "padding of operator blur-motion must be one of reflect, circular, got 'zero'": "blur-motion:padding=zero",
    "written key=value, got 'factor': it has factor=4": "sr:factor",
    "written key=value, got '4': did you mean sr:factor=4? it has factor=4": "sr:4",
    "did you mean sr:filter=average?": "sr:factor=8,average",
    "did you mean mask:file=holes.png?": "mask:holes.png",
    "got '3': it has no keys": "denoise:3",
    "unknown operator 'super-resolution': did you mean sr? There are": "super-resolution",
    "unknown operator 'Super_Resolution:factor=4': did you mean sr?": "Super_Resolution:factor=4",
    "unknown operator 'upscale:4': did you mean sr?": "upscale:4",
    "unknown operator 'motion blur': did you mean blur-motion?": "motion blur",
    "factor is given twice": "sr:factor=2,factor=4",
    "operator mask needs a file: type mask:file=PATH (file=PATH, known=white)": "mask",
    "operator blur-kernel needs a file": "blur-kernel:padding=circular",
    "there is no mask file nowhere.png": "mask:file=nowhere.png",
    "there is no kernel file nowhere.npy": "blur-kernel:file=nowhere.npy",
    "file is given twice": "mask:file=a.png,file=b.png",
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_said(message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        operator_of(WRONG[message])


def test_every_hint_is_a_name():
    assert set(named._MEANT.values()) <= set(OPERATORS) and not set(named._MEANT) & set(OPERATORS)


def test_what_has_no_text():
    for operator in (Composed(Denoise(), Denoise()), object()):
        with pytest.raises(ConfigError, match="has no text: only inpaint-box"):
            described(operator)
    for operator, name in ((InpaintMask(torch.eye(3)), "mask"), (KernelBlur(torch.eye(3)), "blur-kernel")):
        with pytest.raises(ConfigError, match=f"given as a tensor.*{name}:file=PATH"):
            described(operator)


# --- masks ------------------------------------------------------------------------------------------------------------

MASK = np.array([[0, 255, 255], [255, 0, 100]], dtype=np.uint8)
KNOWN = torch.tensor([[[[False, True, True], [True, False, False]]]])


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "P", "CMYK", "I;16"])
def test_mask_files_of_every_kind(mode, tmp_path):
    file = tmp_path / ("holes, two.tiff" if mode == "CMYK" else "holes, two.png")
    picture = Image.fromarray(MASK)
    if mode == "I;16":
        picture = Image.fromarray(MASK.astype(np.uint16) * 257)
    elif mode == "1":
        picture = picture.point(lambda v: 255 * (v > 127)).convert("1")
    elif mode in ("CMYK", "RGBA"):
        picture = picture.convert("RGB").convert(mode)
    else:
        picture = picture.convert(mode)
    picture.save(file)
    operator = operator_of(f"mask:file={file}")
    assert torch.equal(operator.mask, KNOWN)
    assert described(operator) == f"mask:file={file},known=white"
    again = operator_of(described(operator))
    assert torch.equal(again.mask, KNOWN)
    assert torch.equal(operator_of(f"mask:known=black,file={file}").mask, ~KNOWN)


def test_mask_files_that_cannot_be(tmp_path):
    picture = Image.fromarray(MASK)
    whole = tmp_path / "mask.png"
    picture.resize((64, 64)).save(whole)
    cases = {
        "is no picture that can be read": b"not a picture",
        "is damaged": whole.read_bytes()[:-40],
        "no white pixel .* both, what is known and what is missing$": Image.new("L", (4, 4)),
        "no black pixel .* both": Image.new("L", (4, 4), 255),
        "greys from 0 to 0.00392 .* multiply it by 255": Image.fromarray(np.eye(4, dtype=np.uint8)),
        "is transparent in places": Image.fromarray(np.dstack([MASK] * 4), "RGBA"),
    }
    for message, content in cases.items():
        file = tmp_path / "case.png"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            content.save(file)
        with pytest.raises(ConfigError, match=message):
            operator_of(f"mask:file={file}")
    with pytest.raises(ConfigError, match="known of operator mask must be one of white, black"):
        operator_of(f"mask:file={whole},known=grey")
    with pytest.raises(ConfigError, match=r"64x64 pixels .* and the picture 32x32"):
        operator_of(f"mask:file={whole}").A(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("suffix", ["eps", "png"])
def test_no_vector_format_is_opened(suffix, tmp_path):
    """Pillow would start Ghostscript for it, whatever the file is called."""
    Image.fromarray(MASK).save(tmp_path / f"m.{suffix}", "EPS")
    for operator in ("mask", "blur-kernel"):
        with pytest.raises(ConfigError, match="is no picture that can be read"):
            operator_of(f"{operator}:file={tmp_path / f'm.{suffix}'}")
    assert operator_files.FORMATS == init_image.FORMATS


@pytest.mark.parametrize("side", [9_000, 11_000, 20_000])
def test_pictures_that_are_too_large_are_so_called(side, tmp_path, recwarn):
    huge(str(tmp_path / "huge.png"), side)
    for operator, what in (("mask", "mask"), ("blur-kernel", "kernel")):
        with pytest.raises(ConfigError, match=f"the {what} .* is too large: .*at most 67,108,864 pixels"):
            operator_of(f"{operator}:file={tmp_path / 'huge.png'}")
    assert not recwarn.list


def test_masks_are_turned_as_exif_says(tmp_path):
    picture = Image.fromarray(MASK)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(operator_of(f"mask:file={tmp_path / 'turned.png'}").mask, KNOWN.rot90(-1, (2, 3)))


# --- kernels ----------------------------------------------------------------------------------------------------------

KERNEL = np.array([[0, 51, 0], [102, 255, 51], [0, 51, 0]])


@pytest.mark.parametrize("suffix", ["png", "npy", "txt", "csv"])
def test_kernel_files(suffix, tmp_path):
    file = tmp_path / f"kernel.{suffix}"
    if suffix == "png":
        Image.fromarray(KERNEL.astype(np.uint8)).save(file)
    elif suffix == "npy":
        np.save(file, KERNEL.astype(np.float32) / 7)
    else:
        np.savetxt(file, KERNEL, delimiter="," if suffix == "csv" else " ")
    operator = operator_of(f"blur-kernel:file={file},padding=circular,rcond=0.01")
    expected = torch.from_numpy(KERNEL / KERNEL.sum())
    assert torch.allclose(operator.kernel, expected, rtol=0, atol=1e-7)
    again = operator_of(described(operator))
    assert torch.equal(again.kernel, operator.kernel)
    assert (again.padding, again.rcond, again.iterations) == ("circular", 0.01, 100)


def test_kernel_files_that_cannot_be(tmp_path):
    cases = {
        "cannot be read as rows of numbers": ("a.txt", b"1 2 x"),
        "cannot be read as rows of numbers: it is empty": ("b.txt", b" \n"),
        "cannot be read as rows": ("c.npy", b"\x93NUMPY\x01"),
        "c.txt: .*sums to 0": ("c.txt", b"1 -2 1"),
        "d.txt: .*odd sides": ("d.txt", b"1 2\n3 4"),
        "e.txt: .*not finite": ("e.txt", b"1 nan 1"),
        "is no picture that can be read: expected PNG or the like, .npy, .txt, .csv": ("f.bin", b"1 2 1"),
    }
    for message, (name, content) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            operator_of(f"blur-kernel:file={tmp_path / name}")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a file was unpickled",)

    np.save(tmp_path / "bomb.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read as rows of numbers"):
        operator_of(f"blur-kernel:file={tmp_path / 'bomb.npy'}")
    np.savez(tmp_path / "many.npz", a=np.eye(3))
    (tmp_path / "many.npz").rename(tmp_path / "many.npy")
    with pytest.raises(ConfigError, match="is no array of real numbers"):
        operator_of(f"blur-kernel:file={tmp_path / 'many.npy'}")
