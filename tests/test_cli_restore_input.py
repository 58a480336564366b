"""What ``fewstep restore`` is given: sizes, kinds of pictures, and what is refused, before any weight is read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli.init_image import find_image
from fewstep.cli.model_ref import find_model
from fewstep.cli.operator_ref import find_method, find_operator
from fewstep.cli.png import SIGNATURE
from fewstep.cli.restore_pose import Frame, pose
from fewstep.cli.restore_settings import Job, RestoreSettings
from fewstep.errors import ConfigError
from fewstep.guidance.pictures import pixels_of
from fewstep.inverse.named import METHODS, OPERATOR_NAMES
from fewstep.inverse.operators.named import OPERATORS
from fewstep.inverse.stsl import STSL

from . import cli_runs

cli = cli_runs.cli
FRAME = Frame("a model", 8, 16, (64, 64))


def draw(name: str, width: int = 64, height: int = 64, mode: str = "RGB") -> Path:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(name)
    return Path(name)


def huge(name: str, side: int = 20_000) -> Path:
    """A PNG that says it has side x side pixels, in 100 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    Path(name).write_bytes(SIGNATURE + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))
    return Path(name)


def job(source: Path, operator: str, **more) -> Job:
    method = find_method("stsl", None, None)
    settings = RestoreSettings(find_model("tiny-sd"), find_operator(operator), method, 0.05, **more)
    return Job(settings.check(), find_image(str(source), "INPUT"))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, operator, more, expected",
    [
        ((64, 64), "sr", {}, (64, 64)),
        ((60, 70), "denoise", {}, (72, 64)),  # to the nearest multiples of 8
        ((60, 60), "sr:factor=3", {}, (72, 72)),  # and of the factor: 24
        ((800, 400), "blur-gaussian", {}, (48, 88)),  # as many pixels as 64x64: 90.5 x 45.3
        ((4000, 50), "denoise", {}, (16, 1280)),  # but no side below 16
        ((100, 100), "inpaint-box", {"height": 32}, (32, 32)),
    ],
)
def test_clean_pictures_are_brought_to_a_size_that_fits(tmp_path, size, operator, more, expected):
    posed = pose(job(draw(str(tmp_path / "a.png"), *size), operator, simulate=True, **more), FRAME)
    assert (posed.height, posed.width) == expected == tuple(posed.truth.shape[2:])
    assert (posed.note is None) == (expected == (size[1], size[0]))
    assert posed.measurement.guess().shape == posed.truth.shape


def test_degraded_pictures_stay_as_they_are_where_they_can(tmp_path):
    source = draw(str(tmp_path / "a.png"), 16, 24)
    posed = pose(job(source, "sr:factor=4"), FRAME)
    assert (posed.height, posed.width, posed.note, posed.truth) == (96, 64, None, None)
    assert torch.equal(posed.measurement.y, pixels_of(Image.open(source))[None])


def test_degraded_pictures_are_resized_where_the_operator_still_holds(tmp_path):
    posed = pose(job(draw(str(tmp_path / "a.png"), 17, 24), "sr:factor=4"), FRAME)
    assert posed.measurement.y.shape == (1, 3, 24, 18) and (posed.height, posed.width) == (96, 72)
    assert "resized from 17x24 to 18x24 pixels to become 72x96; --noise-std is that of the resized" in posed.note
    posed = pose(job(draw(str(tmp_path / "b.png"), 1000, 1000), "denoise"), FRAME)
    assert posed.measurement.y.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("operator", ["inpaint-box", "inpaint-random", "blur-gaussian", "blur-motion", "jpeg"])
def test_degraded_pictures_are_not_resized_where_that_changes_what_was_done(tmp_path, operator):
    with pytest.raises(ConfigError, match=rf"INPUT 'a.png': it has 60x70 .* --operator {operator} .*crop it to 56x64"):
        pose(job(draw(str(tmp_path / "a.png"), 60, 70), operator), FRAME)


def test_a_measurement_that_is_made_smaller_says_how_to_keep_it(tmp_path):
    source = draw(str(tmp_path / "a.png"), 60, 64)
    posed = pose(job(source, "sr"), FRAME)
    assert (posed.height, posed.width, posed.note) == (64, 64, None)  # most of it is lost: more than a note
    assert "resized from 60x64 to 16x16 pixels to become 64x64" in posed.warning
    assert "(if this is the clean picture, add --simulate; -H 256 -W 240 keeps all of it)" in posed.warning
    assert posed.resized_from == {"height": 64, "width": 60}
    posed = pose(job(source, "sr", height=256, width=240), FRAME)
    assert posed.note is posed.resized_from is None
    assert torch.equal(posed.measurement.y, pixels_of(Image.open(source))[None])
    posed = pose(job(source, "sr", height=64, width=64), FRAME)
    assert "--simulate" in posed.warning and "keeps all" not in posed.warning  # the size is what was asked for
    posed = pose(job(draw(str(tmp_path / "b.png"), 199, 200), "denoise"), FRAME)
    assert "(-H 200 -W 200 keeps all of it)" in posed.warning
    posed = pose(job(draw(str(tmp_path / "c.png"), 140, 140), "sr:factor=64"), FRAME)
    assert "keeps all" not in posed.warning  # > 8192


def test_a_mask_is_resized_with_its_picture_and_mixes_nothing(tmp_path):
    """Every measured pixel of the small picture is one of the large one's known pixels."""
    source = draw(str(tmp_path / "a.png"), 100, 100)
    holes = np.zeros((100, 100), np.uint8)
    holes[:, :50] = 255
    Image.fromarray(holes).save(tmp_path / "m.png")
    posed = pose(job(source, f"mask:file={tmp_path / 'm.png'}", height=40, width=40), FRAME)
    full = pixels_of(Image.open(source))
    rows = ((torch.arange(40) + 0.5) * 2.5).long()
    known = full[:, rows][:, :, rows] * (rows < 50)
    assert torch.equal(posed.measurement.y[0], known)
    assert posed.measurement.count == 3 * 40 * 20 and "with its mask" in posed.warning
    with pytest.raises(ConfigError, match="mask of --operator has 100x100 pixels and the picture 64x64"):
        pose(job(draw(str(tmp_path / "b.png")), f"mask:file={tmp_path / 'm.png'}"), FRAME)


def test_what_is_too_small_or_does_not_divide(tmp_path):
    for operator in ("sr", "denoise"):
        with pytest.raises(ConfigError, match=r"too small: a model makes no side below 16"):
            pose(job(draw(str(tmp_path / "a.png"), 1, 1), operator), FRAME)
    with pytest.raises(ConfigError, match="--height must be a multiple of 8 for a model, got 30; try 24"):
        pose(job(draw(str(tmp_path / "b.png")), "sr", simulate=True, height=30), FRAME)
    posed = pose(job(draw(str(tmp_path / "c.png"), 256, 200), "blur-gaussian"), FRAME)
    assert "far larger than the 64x64" in posed.warning


@pytest.mark.parametrize(
    "size, operator, more, said",
    [
        ((64, 64), "sr:factor=3", {"height": 20, "simulate": True}, "multiple of 24 for .*, got 20; try 24$"),
        ((64, 64), "sr:factor=64", {"width": 40}, "multiple of 64 for .*, got 40; try 64$"),
        ((64, 64), "denoise", {"height": 8}, "--height must be a multiple of 8 from 16 on for a model, got 8; try 16$"),
        ((12, 40), "inpaint-box", {}, "12x40 pixels, which is too small: .* no side below 16, .*or .*add --simulate$"),
        ((10, 10), "inpaint-box", {}, "10x10 pixels, which is too small: .* give a larger picture, or .*--simulate$"),
        ((10, 10), "inpaint-box", {"height": 16, "width": 16}, "too small.*; give a larger picture, or .*--simulate$"),
        ((10, 10), "denoise", {}, "too small.* or -H 16 -W 16 to have it enlarged first$"),
        ((60, 70), "jpeg", {"height": 32, "width": 24}, "24x32 pixels were asked for.*: crop it to 24x32$"),
        ((64, 64), "jpeg", {"height": 128}, "128x128 pixels were asked for.*: leave --height and --width out$"),
        ((64, 70), "jpeg", {"height": 128, "width": 64}, "leave --height and --width out, and crop it to 64x64$"),
    ],
)
def test_advice_on_sizes_can_be_followed(tmp_path, size, operator, more, said):
    with pytest.raises(ConfigError, match=said):
        pose(job(draw(str(tmp_path / "a.png"), *size), operator, **more), FRAME)


def test_the_noise_of_a_simulation_is_the_pictures_own(tmp_path):
    """It depends on --noise-seed and the picture, not on --seed, whose noise the run uses."""
    a, b = draw(str(tmp_path / "a.png")), draw(str(tmp_path / "b.png"), 65, 65)
    y = [
        pose(j, FRAME).measurement.y
        for j in (job(a, "denoise", simulate=True), job(a, "denoise", simulate=True, seed=5))
    ]
    assert torch.equal(*y)
    other = pose(job(a, "denoise", simulate=True, noise_seed=1), FRAME).measurement.y
    noise = (y[0] - other) / (0.05 * 2**0.5)
    assert abs(noise.std() - 1) < 4 / (2 * noise.numel()) ** 0.5 + 1e-6  # 4 standard errors
    assert job(a, "denoise", simulate=True).measurement_seed != job(b, "denoise", simulate=True).measurement_seed


# --- kinds of pictures -----------------------------------------------------------------------------------------------


def test_conversions(tmp_path):
    """Alpha on white, 16 bits as they are up to 8, CMYK and grey as RGB, turned as the camera was held."""
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(grey).save(tmp_path / "sixteen.png")
    half = np.zeros((64, 64, 4), np.uint8)
    half[..., 3] = 128
    Image.fromarray(half).save(tmp_path / "alpha.png")
    draw(str(tmp_path / "cmyk.jpg"), mode="CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((64, 72, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    y = {name: pose(job(tmp_path / name, "denoise"), FRAME).measurement.y
         for name in ("sixteen.png", "alpha.png", "cmyk.jpg", "turned.jpg")}  # fmt: skip
    assert y["sixteen.png"].shape == (1, 3, 64, 64)
    error = y["sixteen.png"][0, 0] - torch.from_numpy(grey.astype(np.float32)) / 65535
    assert error.abs().max() <= 0.5 / 255 + 1e-6
    assert y["alpha.png"].unique().tolist() == pytest.approx([127 / 255])
    assert y["cmyk.jpg"].shape == (1, 3, 64, 64)
    assert y["turned.jpg"].shape == (1, 3, 72, 64)


@pytest.fixture
def files(tmp_path) -> None:
    draw("good.png")
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:2000])
    draw("one.png", 1, 1)
    huge("huge.png")
    values = np.full((64, 64), 0.5, np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save("nan.tiff")
    Image.fromarray(np.full((32, 32), 255, np.uint8) * np.eye(32, dtype=np.uint8)).save("mask.png")
    Path("zero.txt").write_text("0 0 0\n0 0 0\n0 0 0\n")
    Path("empty").mkdir()


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "there is no INPUT"),
        (("good.png", "--operator", ""), "unknown operator"),
        (("good.png", "--no-such"), "no option --no-such"),
        (("good.png", "--solver", "2m"), "--method NAME:solver=SOLVER"),
        (("good.png", "--num-images", "2"), "did you mean --samples?"),
        (("text.png",), "'text.png' is no picture"),
        (("cut.png",), "'cut.png' is damaged"),
        (("one.png",), "too small"),
        (("huge.png",), "too large"),
        (("nan.tiff",), "must have values from 0 to 1"),
        (("none.png",), "'none.png' does not exist"),
        (("empty",), "a folder with no picture"),
        (("good.png", "--operator", "mask:file=mask.png"), "mask must have the picture's size"),
        (("good.png", "--operator", "mask:file=text.png"), "no picture"),
        (("good.png", "--operator", "mask:file=none.png"), "no mask file"),
        (("good.png", "--operator", "blur-kernel:file=zero.txt"), "kernel"),
        (("good.png", "--operator", "super-resolution"), "'super-resolution': did you mean sr?"),
        (("good.png", "--operator", "sr:scale=4"), "no key 'scale'"),
        (("good.png", "--operator", "sr:factor=x"), "must be a whole number"),
        (("good.png", "--operator", "blur-gaussian:size=4"), "odd"),
        (("good.png", "--noise-std", "-0.1"), "a number from 0 to 10, got -0.1"),
        (("good.png", "--noise-std", "nan"), "a number from 0 to 10, got nan"),
        (("good.png", "--noise-std", "12.75"), "0.05 is 12.75 of 255"),
        (("good.png", "--method", "stls"), "did you mean stsl?"),
        (("good.png", "--method", "stsl:k=2"), "did you mean K?"),
        (("good.png", "--method", "stsl:K=0"), "K is the number"),
        (("good.png", "--method", "psld", "--operator", "jpeg"), "needs a linear operator"),
        (("good.png", "--method", "psld", "--operator", "jpeg", "--dry-run"), "needs a linear operator"),
        (("good.png", "--method", "stsl:weighting=gaussian", "--noise-std", "0"), "divides by sigma_y, which is 0"),
        (("good.png", "--method", "stsl:steps=5", "--steps", "6"), "leave one of the two out"),
        (("good.png", "--steps", "0"), "--steps must be"),
        (("good.png", "--samples", "0"), "--samples must be"),
        (("good.png", "-p", "a fox"), "has never seen 'fox'"),
        (("good.png", "--samples", "2", "-o", "a.png"), "2 pictures need a folder"),
        (("good.png", "-o", "a.jpg"), "pictures are PNG"),
        (("good.png", "-m", "tiny-ds"), "did you mean tiny-sd?"),
        (("good.png", "-H", "20", "--simulate"), "must be a multiple of"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(cli, files, words, said, monkeypatch):
    monkeypatch.setattr("fewstep.samplers.backbones.load_backbone", None)  # no weight is read for any of it
    before = sorted(Path(".").rglob("*"))
    operator = () if "--operator" in words else ("--operator", "denoise")
    code, out, err = cli("restore", *words, *operator)
    assert (code, out) == (2, "") and said in err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert sorted(Path(".").rglob("*")) == before


def test_no_operator_says_which_there_are(cli, files):
    code, _, err = cli("restore", "good.png")
    assert code == 2 and "inpaint-box" in err and "--operator sr:factor=4" in err


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_that_help_shows_are_those_that_there_are(cli):
    assert tuple(OPERATORS) == OPERATOR_NAMES
    code, out, _ = cli("restore", "--operator", "help")
    assert code == 0 and all(f"\n{name} " in "\n" + out for name in OPERATORS) and "factor=4" in out
    code, out, _ = cli("restore", "--method", "help")
    assert code == 0 and all(f"\n{name} " in "\n" + out for name in METHODS) and f"zeta={STSL().zeta!r}" in out
    starts = {line.index(METHODS[line.split()[0]][2]) for line in out.splitlines() if not line.startswith(" ")}
    assert len(starts) == 1  # one column
