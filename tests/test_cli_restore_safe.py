"""``fewstep restore``: files that must stay, pictures that are missing or another run's, and what fails alone."""

from __future__ import annotations

import errno
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import png
from fewstep.cli.model_ref import OF_PIXELS
from fewstep.cli.operator_ref import find_method
from fewstep.cli.restore_batch import gentler
from fewstep.inverse.restore import restore
from fewstep.samplers.backbones.load import FAMILIES
from fewstep.samplers.backbones.unet2d import UNet2D

from . import cli_runs
from .tiny_pixels import tiny_pixels

cli, model = cli_runs.cli, cli_runs.model

QUICK = ("--method", "stsl:K=1", "--steps", 2)
SR = ("--operator", "sr:factor=2", "--simulate")


def draw(name: str, width: int = 16, height: int = 16, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(name)
    return Path(name)


@pytest.fixture
def ours(cli, model) -> Path:
    """A picture that fewstep made, which a run may replace where it is not its input."""
    draw("a.png")
    code, _, err = cli("restore", "a.png", "-m", model, *SR, *QUICK, "-o", "ours.png", "--side-by-side")
    assert code == 0, err
    return Path("ours.png")


def test_no_input_is_replaced(cli, model, ours, monkeypatch):
    """By its own name, through a link, as a side-by-side picture or a mean, and a mask as little as a picture."""
    monkeypatch.setattr("fewstep.samplers.backbones.load_backbone", None)  # no weight is read for any of it
    Path("link.png").hardlink_to(ours)
    Path("b-side-by-side.png").write_bytes(ours.read_bytes())
    before = {path: path.read_bytes() for path in Path(".").iterdir()}
    how = ("restore", "-m", model, *QUICK)
    for words in (
        (ours, *SR, "-o", ours),
        (ours, *SR, "-o", "link.png"),
        (ours, *SR, "-o", f"./{ours}", "--dry-run"),
        ("b-side-by-side.png", *SR, "-o", "b.png", "--side-by-side"),
        ("a.png", "--operator", f"mask:file={ours}", "-o", ours),
    ):
        code, out, err = cli(*how, *words)
        assert (code, out) == (2, "") and "which would be replaced; choose another --output" in err, words
    assert "the file of --operator" in err
    assert {path: path.read_bytes() for path in Path(".").iterdir()} == before
    made = Path("ours-side-by-side.png")
    code, _, err = cli(*how, made, *SR, "-o", ours, "--side-by-side")
    assert code == 2 and f"INPUT '{made}' itself" in err


def test_an_input_that_cannot_be_read_is_not_replaced_either(cli, model, ours):
    text = next(value for key, value in Image.open(ours).info.items() if key == "fewstep")
    damaged = png.encode(Image.new("RGB", (16, 16)), {"fewstep": text})
    start = damaged.index(b"IDAT")
    body = b"IDAT" + bytes(int.from_bytes(damaged[start - 4 : start]))
    damaged = damaged[:start] + body + zlib.crc32(body).to_bytes(4) + damaged[start + len(body) + 4 :]
    ours.write_bytes(damaged)
    code, out, err = cli("restore", "a.png", ours, "-m", model, *SR, *QUICK, "-o", ours)
    assert (code, out) == (2, "") and f"INPUT '{ours}' itself" in err and ours.read_bytes() == damaged


def test_what_is_missing_is_made_without_knowing_the_model(cli):
    """A pixel model's sizes are not known before it is loaded, and nothing here needs it."""
    tiny_pixels().save_pretrained("pixels", safe_serialization=True)
    how = ("restore", draw("a.png", 12, 8), "-m", "pixels", *SR, "--method", "dps", "--steps", 2, "--samples", 2)
    code, out, err = cli(*how)
    assert code == 0, err
    beside = [Path(line) for line in out.split()[2:]]
    before = {path: path.read_bytes() for path in beside}
    for path in beside:
        path.unlink()
    code, again, err = cli(*how)
    assert code == 0 and again == out and "loading" not in err
    assert {path: path.read_bytes() for path in beside} == before


def test_a_side_by_side_picture_of_another_run_is_made_again(cli, model, ours):
    sheet = Path("ours-side-by-side.png")
    stale = sheet.read_bytes()
    how = ("restore", "a.png", "-m", model, "--operator", "denoise", *QUICK, "-o", ours)
    assert cli(*how)[0] == 0 and sheet.read_bytes() == stale
    code, out, err = cli(*how, "--side-by-side")
    assert code == 0 and "loading" not in err and out.split() == [str(ours), str(sheet)]
    assert sheet.read_bytes() != stale


def test_a_dry_run_goes_on_where_the_run_does(cli, model):
    draw("even.png")
    draw("odd.png", 15)
    how = ("restore", "-m", model, "--operator", "jpeg", *QUICK, "--dry-run")
    code, out, _ = cli(*how, "odd.png", "even.png")
    assert code == 3 and "even.png: 16x16 pixels" in out and "crop it to 14x16" in out
    found = json.loads(cli(*how, "odd.png", "even.png", "--format", "json")[1])
    assert [image["input"] for image in found["images"]] == ["even.png"]
    (why,) = found["broken"]
    assert why.startswith("INPUT 'odd.png'")
    draw("odder.png", 15, 15)
    code, out, err = cli(*how, "odd.png", "odder.png")
    assert (code, out) == (2, "") and "none of the 2 INPUTs can be restored so; the first: INPUT 'odd.png'" in err


def test_a_dry_run_finds_a_kernel_that_is_too_large(cli, model):
    how = ("restore", draw("a.png"), "-m", model, "--operator", "blur-gaussian:size=61", *QUICK)
    told = cli(*how)
    assert told[0] == 2 and told == cli(*how, "--dry-run")


@pytest.mark.parametrize("reason", [MemoryError(), RuntimeError("CUDA out of memory")])
def test_one_picture_without_enough_memory_ends_no_folder(cli, model, monkeypatch, reason):
    for k, name in enumerate(("a.png", "b.png")):
        draw(name, seed=k)
    calls = iter(range(10))

    def first(*arguments, **options):
        if next(calls) == 0:
            raise reason
        return restore(*arguments, **options)

    monkeypatch.setattr("fewstep.inverse.restore.restore", first)
    how = ("restore", "a.png", "b.png", "-m", model, *SR, *QUICK, "--no-side-by-side", "--quiet")
    code, out, err = cli(*how)
    assert code == 3 and Path(out.strip()).name.startswith("b-")
    assert err.startswith("warning: a.png, seed 0, failed: there is not enough memory")
    assert err.count("\n") == 1 + err.count("does not explain its measurement")
    assert cli(*how)[0] == 0


def test_what_refuses_every_picture_is_bad_input(cli):
    tiny_pixels().save_pretrained("pixels", safe_serialization=True)
    draw("a.png", 8, 8)
    draw("b.png", 8, 8, seed=1)
    how = ("restore", "a.png", "b.png", "-m", "pixels", "--operator", "jpeg", "--method", "tmpd", "--steps", 2)
    for dry in ((), ("--dry-run",)):
        code, out, err = cli(*how, *dry)
        assert (code, out) == (2, "") and "error: none of the 2 INPUTs can be restored so" in err and "linear" in err


@pytest.mark.parametrize(
    "how, what",
    [
        (("--method", "dps", "-p", "fox"), "cannot follow a --prompt"),
        (("--method", "dps", "-g", 2), "nothing to guide with"),
        (("--method", "p2l"), "tunes the prompt's embedding"),
        (("--method", "dps:grid=flow"), "--method dps, grid flow: this grid is for flow models"),
        (("--method", "dps", "-H", 9), "--height must be a multiple of"),
    ],
)
def test_what_a_model_of_pixels_cannot_do_is_said_before_it_is_loaded(cli, monkeypatch, how, what):
    tiny_pixels().save_pretrained("pixels", safe_serialization=True)
    monkeypatch.delattr("fewstep.cli.restore_run.Runner._load")
    draw("a.png", 8, 8)
    for dry in ((), ("--dry-run",)):
        code, out, err = cli("restore", "a.png", "-m", "pixels", *SR, *how, *dry)
        assert (code, out) == (2, "") and what in err


def test_the_size_for_a_model_of_pixels_is_known_before_it_is_loaded(cli):
    tiny_pixels().save_pretrained("pixels", safe_serialization=True)
    draw("a.png", 8, 8)
    how = ("restore", "a.png", "-m", "pixels", *SR, "--method", "dps", "--dry-run", "--format", "json")
    code, out, _ = cli(*how)
    image = json.loads(out)["images"][0]
    assert code == 0 and (image["height"], image["width"], image["measured"]) == (8, 8, 3 * 4 * 4)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("stsl:K=1,zeta=1e30", "stsl:K=1,zeta=%g"),  # the method's own, which is less than a quarter
        ("stsl:zeta=0.01,solver=2m", "stsl:solver=2m,zeta=0.0025"),
        ("stsl : K = 2, zeta=0.004", "stsl:K=2,zeta=0.001"),
        ("pigdm:zeta=0.5", "pigdm:zeta=0.5,weight=released"),  # what its own docstring says
        ("pigdm:zeta=0.5,weight=released", "pigdm:weight=released,zeta=0.125"),
    ],
)
def test_the_hint_keeps_the_other_settings(text, expected):
    usual = find_method("stsl", None, None).values["zeta"]
    ref = find_method(text, 3, None)
    assert gentler(ref, text) == (expected % usual if "%" in expected else expected)


def test_the_device_that_auto_means_is_the_same_run(cli, model):
    how = ("restore", draw("a.png"), "-m", model, *SR, *QUICK, "--dry-run")
    assert cli(*how)[1] == cli(*how, "--device", "cpu")[1]


def test_settings_that_do_nothing_are_named(cli, model):
    how = ("restore", draw("a.png"), "-m", model, "--operator", "denoise", *QUICK, "--dry-run")
    code, _, err = cli(*how, "--noise-seed", 7)
    assert code == 2 and "there is no --simulate" in err
    code, _, err = cli(*how, "-g", 3)
    assert code == 0 and "--guidance-scale 3 without --prompt" in err
    assert cli(*how, "-g", 3, "-p", "red circle")[2] == ""


def test_a_write_that_fails_names_the_file(cli, model, monkeypatch):
    def fail(path, data):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr("fewstep.cli.restore_run.write_atomic", fail)
    code, _, err = cli("restore", draw("a.png"), "-m", model, *SR, *QUICK, "-o", "b.png")
    assert code == 1 and "error: File too large (b.png)" in err


def test_one_picture_that_is_passed_over(cli, model, ours):
    code, _, err = cli("restore", ".", "-m", model, *SR, *QUICK, "--dry-run")
    assert code == 0 and "2 pictures that fewstep restore made are passed over" in err
    Path("ours-side-by-side.png").unlink()
    assert "1 picture that fewstep restore made is passed over" in cli("restore", ".", "-m", model, *SR, "--dry-run")[2]


def test_the_models_of_pixels_that_are_known_by_name_are_those_that_are_loaded():
    assert {name for name, (_, backbone) in FAMILIES.items() if backbone is UNet2D} == set(OF_PIXELS)
