"""``fewstep restore``: what it writes, what it reports, and how it goes on after an interruption."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from fewstep.cli import png
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.metrics import psnr, ssim
from fewstep.inverse.operators import Downsample
from fewstep.inverse.restore import restore
from fewstep.inverse.stsl import STSL
from fewstep.samplers.backbones import load_backbone

from . import cli_runs
from .cli_runs import pixels
from .tiny_pixels import TINY, tiny_pixels

cli, model = cli_runs.cli, cli_runs.model

QUICK = ("--method", "stsl:K=1", "--steps", 2)


def draw(name: str, width: int = 16, height: int = 16, seed: int = 0) -> Path:
    """A smooth picture."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR).save(name)
    return Path(name)


def fields_of(path: Path | str) -> dict:
    return json.loads(png.read_text(Path(path)).texts["fewstep"])


def as_tensor(path: Path | str) -> torch.Tensor:
    return torch.from_numpy(pixels(path).copy()).permute(2, 0, 1)[None].float() / 255.0


def test_simulated_samples_are_the_librarys_own(cli, model):
    """Degraded, restored twice, compared: pixels, metrics, costs, mean, standard deviation; a digest and no path."""
    source = draw("holiday.png")
    how = ("--operator", "sr:factor=2", "--noise-std", 0.1, "--simulate", "--samples", 2, "--seed", 3)
    code, out, err = cli("restore", source, "-m", model, *how, *QUICK)
    assert code == 0, err
    first, second, mean, std, side = (Path(line) for line in out.split())
    fields = fields_of(first)
    truth = as_tensor(source)
    text = f"measurement 0 {hashlib.sha256(source.read_bytes()).hexdigest()}"
    noise_seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
    y = Measurement.simulate(Downsample(2), truth, 0.1, seeds=(noise_seed,))
    ours = restore(load_backbone(model), y, STSL(steps=2, K=1), seeds=(3,))
    assert np.array_equal(pixels(first), (ours.x[0] * 255).round().byte().permute(1, 2, 0).numpy())
    assert fields["psnr"] == psnr(ours.x, truth).item() and fields["ssim"] == ssim(ours.x, truth).item()
    assert fields["psnr_before"] == psnr(y.guess().clamp(0, 1), truth).item()
    assert fields["chi2"] == ours.report.chi2[0]
    # chi^2 = |r|^2 / (m sigma^2) in float64 from float32 residuals
    assert fields["residual"] == pytest.approx(0.1 * ours.report.chi2[0] ** 0.5, rel=1e-6)
    assert fields["cost"] == vars(ours.report.ledger) and fields["nfe"] == fields["cost"]["forward"] == 6
    assert fields["method"] | {"name": "stsl", "K": 1, "steps": 2, "solver": "ddim"} == fields["method"]
    assert fields["input"] == {"sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert b"holiday" not in first.read_bytes() and first.name.startswith("holiday-")

    both = np.stack([pixels(first), pixels(second)]).astype(float) / 255
    assert np.abs(pixels(mean) / 255 - both.mean(0)).max() <= 0.5 / 255 + 1e-6
    spread = np.sqrt(both.var(0, ddof=1).mean(-1)) / 0.25
    assert np.abs(pixels(std)[..., 0] / 255 - spread.clip(max=1)).max() <= 0.5 / 255 + 1e-6
    assert Image.open(side).size[0] > 6 * 256  # degraded, two samples, mean, standard deviation, truth
    lines = [json.loads(line) for line in Path("outputs/run.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [first.name, second.name] and all(line["seconds"] > 0 for line in lines)
    assert f"PSNR {fields['psnr']:.2f} dB" in err and "chi^2" in err


def test_the_same_command_goes_on_and_inspect_prints_it(cli, model):
    source = draw("a.png")
    how = ("restore", source, "-m", model, "--operator", "sr:factor=2", "--simulate", *QUICK, "--samples", 3)
    code, out, err = cli(*how)
    assert code == 0, err
    files = [Path(line) for line in out.split()]
    before = {file: file.read_bytes() for file in files}
    for gone in (files[1], files[3]):  # a sample and the mean
        gone.unlink()
    code, out, err = cli(*how)
    assert code == 0 and "2 of 3 pictures are there already" in err
    assert {file: file.read_bytes() for file in files} == before
    assert len(Path("outputs/run.jsonl").read_text().splitlines()) == 3
    code, out, err = cli(*how)
    assert code == 0 and "loading" not in err and out.split() == [str(file) for file in files]

    code, out, err = cli("inspect", files[1])
    assert code == 0 and "PSNR" in out and "sr:factor=2" in out
    command = next(line for line in out.splitlines() if line.startswith("command")).partition(" ")[2]
    words = shlex.split(command)[1:]
    words = [str(source) if w.startswith("IMAGE-") else model if w == "tiny" else w for w in words]
    code, out, err = cli(*words)
    assert code == 0 and "there already" in err and out.split()[0] == str(files[1])
    code, out, err = cli(*words, "-o", "again")
    assert code == 0, err
    assert np.array_equal(pixels(out.split()[0]), pixels(files[1]))


def test_interrupted(cli, model, monkeypatch):
    """What was made stays, whole, and the same command goes on."""
    how = ("restore", draw("a.png"), "-m", model, "--operator", "sr:factor=2", *QUICK, "--samples", 2)
    calls = iter(range(10))

    def second(*arguments, **options):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return restore(*arguments, **options)

    monkeypatch.setattr("fewstep.inverse.restore.restore", second)
    code, out, err = cli(*how)
    assert code == 130 and "interrupted with 1 of 2 pictures" in err
    (first,) = Path("outputs").glob("*.png")
    assert not list(Path("outputs").glob(".*"))
    before = first.read_bytes()
    code, out, _ = cli(*how)
    assert code == 0 and len(out.split()) == 5 and first.read_bytes() == before


@pytest.mark.parametrize("noise, wrong", [(0.02, True), (5.0, False), (0.0, True)])
def test_a_picture_that_does_not_explain_the_measurement_is_said_to(cli, model, noise, wrong):
    """A model with random weights explains nothing, unless the noise may be anything."""
    code, out, err = cli("restore", draw("a.png"), "-m", model, "--operator", "denoise", "--noise-std", noise, *QUICK)
    chi2 = fields_of(out.split()[0])["chi2"]
    assert code == 0 and (chi2 is None) == (noise == 0.0) and (chi2 is None or (chi2 > 2.0) == wrong)
    assert ("warning: a.png, seed 0, does not explain its measurement" in err) == wrong
    assert ("is more than half of what pixels range over" in err) == (noise == 5.0)


def test_a_degraded_picture_becomes_larger_by_the_factor(cli, model):
    source = draw("small.png", 10, 8)
    code, out, err = cli("restore", source, "-m", model, "--operator", "sr:factor=2", *QUICK, "-o", "large.png")
    assert code == 0, err
    assert out.split() == ["large.png"] and Image.open("large.png").size == (20, 16)
    fields = fields_of("large.png")
    assert fields["simulate"] is None and "psnr" not in fields and not Path("run.jsonl").exists()
    assert fields["chi2"] == pytest.approx((fields["residual"] / 0.05) ** 2, rel=1e-6)


def test_batches_seeds_and_names(cli, model):
    """Seed k is alone what it is in a batch, up to last bits; another batch size is another run."""
    source = draw("a.png")
    how = ("restore", source, "-m", model, "--operator", "inpaint-box", "--simulate", *QUICK, "--no-side-by-side")
    alone = cli(*how, "--samples", 3)[1].split()
    together = cli(*how, "--samples", 3, "--batch-size", 2)[1].split()
    assert not set(alone) & set(together)
    for a, b in zip(alone[:3], together[:3], strict=True):
        assert np.abs(pixels(a).astype(int) - pixels(b)).max() <= 1
    assert fields_of(together[1])["batch"] == {"size": 2, "row": 1, "seed": 0}
    assert fields_of(together[2])["batch"] == {"size": 1, "row": 0}
    more = cli(*how, "--samples", 4)
    assert "3 of 4 pictures are there already" in more[2]
    before = [Path(file).read_bytes() for file in together[:3]]
    _, out, err = cli(*how, "--samples", 4, "--batch-size", 2)  # the third was alone in its batch, and stays
    assert "3 of 4 pictures are there already" in err and out.split()[:3] == together[:3]
    assert [Path(file).read_bytes() for file in together[:3]] == before
    assert fields_of(out.split()[3])["batch"] == {"size": 2, "row": 1, "seed": 2}
    other = cli(*how, "--noise-seed", 1)[1].split()
    assert other[0] not in alone and not np.array_equal(pixels(other[0]), pixels(alone[0]))


def test_a_folder_with_a_broken_picture(cli, model):
    """The others are made, the broken one is named; a second run does not restore what the first one made."""
    Path("in").mkdir()
    draw("in/b.png", seed=1)
    draw("in/a.png", seed=2)
    Path("in/broken.png").write_bytes(Path("in/a.png").read_bytes()[:60])
    draw("in/odd.png", 15, 16)
    Path("in/notes.txt").write_text("no picture")
    how = ("restore", "in", "-m", model, "--operator", "jpeg", "--noise-std", 0.5, *QUICK, "-o", "in", "-q")
    code, out, err = cli(*how)
    names = [Path(line).name.partition("-")[0] for line in out.split()]
    assert code == 3 and names == ["a", "a", "b", "b"]
    broken, odd = err.splitlines()
    assert broken.startswith("warning: INPUT 'broken.png' is damaged")
    assert odd.startswith("warning: odd.png, seed 0, failed: ") and odd.endswith("crop it to 14x16")
    code, again, err = cli(*how)
    assert code == 3 and again == out and len(Path("in/run.jsonl").read_text().splitlines()) == 2


def test_json_and_no_metadata(cli, model):
    source = draw("a.png")
    how = ("restore", source, "-m", model, "--operator", "sr:factor=2", "--simulate", "--noise-std", 0.5, *QUICK)
    how = (*how, "--no-metadata")
    code, out, err = cli(*how, "--format", "json", "-q")
    found = json.loads(out)
    assert code == 0 and err == ""
    (image,) = found["images"]
    assert image["status"] == "made" and image["psnr"] > 0 and image["input"] == str(source)
    assert found["method"]["name"] == "stsl" and len(found["beside"]) == 1
    assert "fewstep" not in png.read_text(Path(image["file"])).texts
    (again,) = json.loads(cli(*how, "--format", "json", "-q")[1])["images"]
    assert again == image | {"status": "kept"}


def test_a_measurement_without_noise_and_checkpoints(cli, model):
    source = draw("a.png")
    how = ("restore", source, "-m", model, "--operator", "sr:factor=2", "--simulate", *QUICK, "--noise-std", 0)
    code, out, err = cli(*how)
    fields = fields_of(out.split()[0])
    assert code == 0 and fields["chi2"] is None and fields["residual"] > 0 and "chi^2" not in err
    first = pixels(out.split()[0])
    code, out, _ = cli(*how, "--checkpoint", "-o", "less")
    # the same name, for checkpoints change no number that is kept; recomputed sums may differ in their last bits
    assert code == 0 and np.abs(first.astype(int) - pixels(out.split()[0])).max() <= 1


def test_a_run_that_diverges_says_what_to_type(cli, model):
    source = draw("a.png")
    code, out, err = cli(
        "restore", source, "-m", model, "--operator", "sr:factor=2", "--method", "stsl:K=1,zeta=1e9", "--steps", 2
    )
    assert code == 1 and out == "" and not Path("outputs").exists()
    assert "STSL diverged at step 1 of 2" in err and "--method stsl:K=1,zeta=0." in err and "Traceback" not in err


def test_prompt_and_scale_reach_the_network(cli, model):
    source = draw("a.png")
    how = ("restore", source, "-m", model, "--operator", "sr:factor=2", *QUICK, "--no-side-by-side")
    plain = cli(*how)[1].split()[0]
    prompted = cli(*how, "-p", "red circle", "-g", 3)[1].split()[0]
    assert fields_of(prompted)["method"]["guidance_scale"] == 3.0 and fields_of(prompted)["prompt"] == "red circle"
    assert fields_of(prompted)["nfe"] == 2 * fields_of(plain)["nfe"]
    assert not np.array_equal(pixels(plain), pixels(prompted))
    assert "Sampler: fewstep restore stsl" in png.read_text(Path(prompted)).texts["parameters"]


def test_options_from_a_file_and_a_dry_run(cli, model):
    draw("a.png")
    Path("o.toml").write_text('input = ["a.png"]\noperator = "jpeg:quality=20"\nsimulate = true\nsteps = 3\n')
    code, out, err = cli("restore", "--config", "o.toml", "-m", model, "--dry-run")
    assert code == 0, err
    assert "jpeg:quality=20,chroma=4:2:0" in out and "steps 3" in out and "16x16 pixels, 768 numbers" in out
    code, out, _ = cli("restore", "--config", "o.toml", "-m", model, "--dry-run", "--format", "json", "--steps", 4)
    found = json.loads(out)
    assert found["method"]["steps"] == 4 and found["images"][0]["there"] is False and not Path("outputs").exists()
    Path("n.toml").write_text('operator = "jpeg"\nsimulate = true\nnoise-seed = 4\n')
    how = ("restore", "a.png", "--config", "n.toml", "-m", model, "--dry-run", "--format", "json")
    assert json.loads(cli(*how)[1])["simulate"] == {"noise_seed": 4}
    assert json.loads(cli(*how, "--no-simulate")[1])["simulate"] is None  # the command line has the last word
    Path("b.png").write_bytes(b"no picture")
    code, out, _ = cli("restore", "a.png", "b.png", "--operator", "jpeg", "-m", model, "--dry-run")
    assert code == 3 and "a.png" in out
    code, out, err = cli("restore", "a.png", "--operator", "denoise", "--method", "pigdm", "--dry-run")
    assert (code, out) == (2, "") and "pigdm needs a model whose states are pixels, and tiny-sd has an auto" in err


def test_models_of_pixels(cli, tmp_path):
    """DPS on a model without text; pictures too small for SSIM; a model of grey pictures is refused by name."""
    source = draw("a.png", 8, 8)
    tiny_pixels().save_pretrained("pixels", safe_serialization=True)
    how = ("restore", source, "--operator", "sr:factor=2", "--simulate", "--method", "dps", "--steps", 2)
    code, out, err = cli(*how, "-m", "pixels")
    assert code == 0, err
    fields = fields_of(out.split()[0])
    assert fields["method"]["name"] == "dps" and fields["cost"]["decoder_forward"] >= 2
    assert "psnr" in fields and "ssim" not in fields
    code, out, err = cli(*how, "-m", "pixels", "-p", "a fox")
    assert (code, out) == (2, "") and "without text" in err
    grey = DDPMPipeline(UNet2DModel(**{**TINY, "in_channels": 1, "out_channels": 1}), DDPMScheduler())
    grey.save_pretrained("grey", safe_serialization=True)
    code, out, err = cli(*how, "-m", "grey", "-o", "none")
    assert (code, out) == (2, "") and "grey makes pictures of 1 channel(s)" in err and not Path("none").exists()
