"""``--init-image``: which files are taken, what they become, and what the metadata keeps of them."""

from __future__ import annotations

import hashlib
import json
import shlex
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep.cli import png
from fewstep.cli.init_image import MAX_PIXELS
from fewstep.samplers.backbones import load_backbone

from . import cli_runs
from .cli_runs import pixels

cli, model = cli_runs.cli, cli_runs.model


def draw(name: str, width: int = 16, height: int = 16, mode: str = "RGB") -> Path:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(name)
    return Path(name)


def fields_of(path: str) -> dict:
    return json.loads(png.read_text(Path(path)).texts["fewstep"])


def test_a_picture_to_start_from(cli, model, tmp_path):
    """The picture is the library's own; all steps run; the metadata has a digest and no path."""
    source = draw("holiday.png")
    how = ("--steps", 3, "--seed", 4, "-g", 2)
    code, out, err = cli("sample", "x", "-m", model, *how, "--init-image", source, "--strength", 0.5, "-v")
    assert code == 0 and "3 evaluations a picture" in err
    ours = fewstep.sample(
        load_backbone(model), "x", steps=3, seeds=(4,), guidance_scale=2.0, init_images=Image.open(source), strength=0.5
    ).images
    expected = (ours[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(out.strip()), expected)
    fields = fields_of(out.strip())
    assert fields["strength"] == 0.5 and fields["steps"] == fields["evaluations"] == 3
    assert fields["init_image"] == {"sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert "Denoising strength: 0.5" in png.read_text(Path(out.strip())).texts["parameters"]
    for file in (Path(out.strip()), Path("outputs/run.jsonl")):
        assert b"holiday" not in file.read_bytes()


def test_the_command_makes_it_again_once_it_knows_the_picture(cli, model):
    source = draw("a.png")
    arguments = ("sample", "x", "-m", model, "--steps", 2, "--init-image", source)
    first = cli(*arguments)[1].strip()
    assert fields_of(first)["strength"] == 0.8
    words = shlex.split(json.loads(cli("inspect", first, "--format", "json")[1])["command"])
    human = cli("inspect", first)[1]
    stand_in = words[words.index("--init-image") + 1]
    assert f"put the path of the local folder tiny, of the picture {stand_in} into the command" in human
    words[words.index("--model") + 1], words[words.index("--init-image") + 1] = model, str(source)
    assert np.array_equal(pixels(cli(*words[1:], "-o", "again")[1].strip()), pixels(first))


def test_another_picture_is_another_run(cli, model):
    """The same command finds its own by what the file says, wherever it lies."""
    arguments = ("sample", "x", "-m", model, "--steps", 1, "--init-image")
    first = cli(*arguments, draw("a.png"))[1]
    Path("a.png").rename("b.png")
    assert cli(*arguments, "b.png")[1:] == (first, "made before by the same command: nothing to do\n")
    Image.new("RGB", (16, 16), "red").save("b.png")
    assert cli(*arguments, "b.png")[1] != first
    assert cli("sample", "x", "-m", model, "--steps", 1)[1] != first


def test_strength_one_is_text_to_image(cli, model):
    plain = cli("sample", "x", "-m", model, "--steps", 2)[1].strip()
    with_image = cli("sample", "x", "-m", model, "--steps", 2, "--init-image", draw("a.png"), "--strength", 1)[
        1
    ].strip()
    assert with_image != plain and np.array_equal(pixels(with_image), pixels(plain))


def test_sizes(cli, model):
    source = draw("a.png", 23, 36)
    _, out, err = cli("sample", "x", "-m", model, "--steps", 1, "--init-image", source)
    assert pixels(out.strip()).shape == (36, 24, 3) and "resized from 23x36 to 24x36 pixels" in err
    _, out, err = cli("sample", "x", "-m", model, "--steps", 1, "--init-image", source, "-H", 18)
    assert pixels(out.strip()).shape == (18, 12, 3)
    _, out, err = cli("sample", "x", "-m", model, "--steps", 1, "--init-image", draw("b.png", 40, 40))
    assert "warning: 40x40 is far larger than the 16x16" in err and "resized" not in err


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK", "1"])
def test_kinds_of_pictures(cli, model, mode):
    source = draw("a.tif", mode=mode)
    code, out, _ = cli("sample", "x", "-m", model, "--steps", 1, "--init-image", source, "--strength", 0.02)
    assert code == 0 and pixels(out.strip()).shape == (16, 16, 3)


def write_bad_pictures() -> None:
    Path("text.png").write_text("no picture")
    Path("empty.png").write_bytes(b"")
    whole = draw("whole.png", 64, 64).read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    draw("whole.jpg", 64, 64)
    Path("cut.jpg").write_bytes(Path("whole.jpg").read_bytes()[:900])
    Path("folder").mkdir()
    for name, side in (("large.png", 12_000), ("huge.png", 100_000)):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        head = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        Path(name).write_bytes(png.SIGNATURE + head + struct.pack(">I", 9) + b"IDAT and no pixels")
    Image.new("1", (9000, 1)).save("wide.png")
    draw("dot.png", 1, 1)
    draw("drawing.eps")


BAD = {
    "--init-image no.png": "does not exist",
    "--init-image folder": "is a folder",
    "--init-image text.png": "is no picture that can be read",
    "--init-image empty.png": "is no picture that can be read",
    "--init-image cut.png": "is damaged",
    "--init-image cut.jpg": "is damaged",
    "--init-image wide.png": "9000x1 pixels: at most 8192 a side",
    "--init-image large.png": "12000x12000 pixels: at most 8192 a side",
    "--init-image huge.png": "is too large: at most 67,108,864 pixels",
    "--init-image whole.png --strength 0": "--strength must be a number above 0",
    "--init-image whole.png --strength nan": "--strength must be a number above 0",
    "--init-image whole.png --strength 1.5": "--strength must be a number above 0",
    "--init-image whole.png --strength 0.001": "at least 0.002",
    "--init-image whole.png -H 17": "multiple of 2",
    "--init-image dot.png": "of 1x1 pixels would become 2x2, and tiny makes no side below 4: give -H 4 -W 4",
    "--init-image drawing.eps": "is no picture that can be read",
    "--strength 0.5": "--strength belongs to --init-image",
}


def test_bad_pictures_are_refused_before_the_model_loads(cli, model, monkeypatch):
    monkeypatch.setattr(
        "fewstep.samplers.backbones.load_backbone", lambda *_, **__: pytest.fail("the model was loaded")
    )
    write_bad_pictures()
    for words, message in BAD.items():
        code, out, err = cli("sample", "x", "-m", model, *words.split())
        lines = [line for line in err.splitlines() if not line.startswith("loading")]
        assert (code, out) == (2, "") and len(lines) == 1 and message in lines[0], (words, err)


def test_the_largest_picture_is_what_the_model_may_make():
    assert MAX_PIXELS == 8192**2
