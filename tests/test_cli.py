"""The command line in one process, on a tiny pipeline with random weights: what it makes, says and refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import fewstep.cli.run
from fewstep.cli import checks, how, png, record, settings
from fewstep.cli.main import app
from fewstep.errors import NumericsError
from fewstep.guidance import layout, sampling
from fewstep.names import GRID_NAMES, SOLVER_NAMES
from fewstep.samplers import GRIDS, SOLVERS
from fewstep.samplers.backbones import placement
from fewstep.samplers.grids import MAX_STEPS
from fewstep.samplers.noise import MAX_SEED

from . import cli_runs
from .cli_runs import pixels

cli, model = cli_runs.cli, cli_runs.model


def options_of(command: str) -> list[str]:
    params = typer.main.get_command(app).commands[command].params
    return [opt for param in params if param.param_type_name == "option" for opt in param.opts]


# ---------------------------------------------------------------- what it makes


def test_one_prompt_makes_one_picture(cli, model, tmp_path):
    code, out, err = cli("sample", "hello", "-m", model, "--steps", 2)
    assert code == 0
    (line,) = out.splitlines()
    assert re.fullmatch(r"outputs[/\\][0-9a-f]{8}-0000-seed0\.png", line)
    assert pixels(line).shape == (16, 16, 3)
    assert err.splitlines()[0] == "loading tiny ..."
    assert {p.name for p in Path("outputs").iterdir()} == {Path(line).name, "run.jsonl"}


def test_metadata_is_complete_and_names_no_path(cli, model, tmp_path):
    prompt, how = "caf\u00e9, \u732b: one", "-n blue --steps 2 --seed 7 -g 3 --solver heun".split()
    _, out, _ = cli("sample", prompt, "-m", model, *how)
    path = Path(out.strip())
    texts = png.read_text(path).texts
    with Image.open(path) as image:
        assert image.text == texts
    fields = json.loads(texts["fewstep"])
    assert record.parse(texts["fewstep"], "x") == fields
    wanted = {
        "prompt": prompt,
        "negative_prompt": "blue",
        "solver": "heun",
        "steps": 2,
        "seed": 7,
        "guidance_scale": 3.0,
    }
    assert wanted.items() <= fields.items()
    assert (fields["width"], fields["height"], fields["nfe"], fields["evaluations"]) == (16, 16, 6, 3)
    assert texts["parameters"] == (
        f"{prompt}\nNegative prompt: blue\n"
        "Steps: 2, Sampler: Heun, Schedule type: Karras, CFG scale: 3, Seed: 7, "
        f"Size: 16x16, Model: tiny, Version: fewstep {fields['versions']['fewstep']}"
    )
    log = Path("outputs/run.jsonl").read_text()
    for text in (log, path.read_bytes().decode("latin-1")):
        assert str(tmp_path) not in text and str(Path(model).parent) not in text
    assert json.loads(log)["file"] == path.name


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_command_in_a_picture_makes_it_again(cli, model, batch_size):
    how = f"--steps 2 --num-images 2 --batch-size {batch_size} --seed 5 --solver sde-2m --schedule karras".split()
    _, out, _ = cli("sample", "-m", model, *how, "-n", "it's", "--", "a", "-b c")
    picture = out.splitlines()[2]
    code, out, _ = cli("inspect", picture, "--format", "json")
    found = json.loads(out)
    words = shlex.split(found["command"])
    assert words[:2] == ["fewstep", "sample"]
    words[words.index("--model") + 1] = model
    code, out, _ = cli(*words[1 : words.index("--")], "-o", "again", *words[words.index("--") :])
    assert code == 0
    again = out.splitlines()[found["record"]["batch"]["row"]]
    assert np.array_equal(pixels(again), pixels(picture))
    assert json.loads(png.read_text(Path(again)).texts["fewstep"])["seed"] == found["record"]["seed"] == 7


def test_a_picture_depends_on_its_seed_not_on_the_run(cli, model):
    _, out, _ = cli("sample", "x", "-m", model, "--steps", 2, "--num-images", 3)
    _, alone, _ = cli("sample", "x", "-m", model, "--steps", 2, "--seed", 2)
    assert np.array_equal(pixels(out.splitlines()[2]), pixels(alone.strip()))


def test_json_is_one_object(cli, model):
    code, out, _ = cli("sample", "x", "y", "-m", model, "--steps", 1, "--format", "json", "--grid", "-o", "here", "-q")
    report = json.loads(out)
    assert code == 0 and [image["status"] for image in report["images"]] == ["made", "made"]
    assert all(Path(image["file"]).is_file() for image in report["images"])
    assert pixels(report["grid"]).shape == (16, 34, 3)


def test_quiet_says_nothing(cli, model):
    assert cli("sample", "x", "-m", model, "--steps", 1, "--quiet")[2] == ""


def test_prompt_file(cli, model, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffone\r\n\r\n  two  \rform\ffeed\u2028\x85\n".encode())
    _, out, _ = cli("sample", "--prompt-file", "prompts.txt", "-m", model, "--dry-run", "--format", "json")
    assert [image["prompt"] for image in json.loads(out)["images"]] == ["one", "two", "form\ffeed\u2028\x85"]
    assert json.loads(out)["evaluations"] == 10


def test_no_metadata(cli, model):
    arguments = ("sample", "secret", "-m", model, "--steps", 1, "--no-metadata")
    path = Path(cli(*arguments)[1].strip())
    assert png.read_text(path).texts == {} and b"secret" not in path.read_bytes()
    before = path.stat().st_mtime_ns
    code, out, _ = cli(*arguments)
    assert code == 0 and Path(out.strip()) == path and path.stat().st_mtime_ns == before
    assert cli("inspect", path)[0] == 2


def test_long_prompts_are_reported(cli, model):
    assert "reads 77: the rest is ignored" in cli("sample", "x" * 90, "-m", model, "--steps", 1)[2]


def test_some_pictures_failed(cli, model, monkeypatch):
    sample = fewstep.cli.run._sample

    def broken(settings, model, batch, bar):
        if batch[0].index == 2:
            raise NumericsError("tick 1 is not finite")
        images = sample(settings, model, batch, bar)
        if batch[0].index == 0:
            images.images[1] = float("nan")
        return images

    monkeypatch.setattr("fewstep.cli.run._sample", broken)
    code, out, err = cli("sample", "x", "-m", model, "--steps", 1, "--num-images", 5, "--batch-size", 2)
    assert code == 3 and len(out.splitlines()) == 2
    assert [line.split()[2] for line in err.splitlines() if line.startswith("warning: picture")] == ["1", "2", "3"]
    monkeypatch.setattr("fewstep.cli.run._sample", sample)
    code, out, _ = cli("sample", "x", "-m", model, "--steps", 1, "--num-images", 5, "--batch-size", 2)
    assert code == 0 and len(out.splitlines()) == 5


# ---------------------------------------------------------------- table


def test_table(cli, model):
    code, out, _ = cli("table", "-m", model, "--steps", 3, "--solver", "unipc-2")
    assert code == 0 and "3 steps" in out and "carry0" in out
    code, out, _ = cli("table", "-m", model, "--steps", 3, "--solver", "2s", "--format", "json")
    table = json.loads(out)
    assert table["evaluations"] == len(table["ticks"]) == 5 and table["ticks"][-1]["to"]["lam"] is None


# ---------------------------------------------------------------- what it says and refuses


@pytest.mark.parametrize("command", ["sample", "table", "inspect"])
def test_help_lists_every_option(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert all(re.search(rf"(^|[\s,]){re.escape(option)}\b", out) for option in options_of(command))
    assert max(map(len, out.splitlines())) <= 110


def test_help_of_all(cli):
    assert cli() == cli("--help") and cli("--help")[0] == 0
    assert cli("--version")[1].startswith("fewstep ")


def test_names_and_limits_agree_with_the_library():
    assert set(SOLVER_NAMES) == set(SOLVERS) and set(GRID_NAMES) == set(GRIDS)
    assert (checks.MAX_STEPS, checks.MAX_SEED) == (MAX_STEPS, MAX_SEED)
    assert (settings.DEFAULT_STRENGTH, how.DEFAULT_STEPS) == (
        sampling.DEFAULT_STRENGTH, layout.DEFAULT_STEPS,
    )  # fmt: skip
    assert checks.OFFLOADS == placement.OFFLOADS


@pytest.mark.parametrize("option", ["--sampler", "--scheduler"])
def test_ambiguous_names_are_refused(cli, option):
    for arguments in ([option, "euler"], [f"{option}=euler"]):
        code, _, err = cli("sample", "x", *arguments)
        assert code == 2 and "--solver" in err and "--schedule" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("option", ["--guide", "--stpes"])
def test_unknown_options_are_refused(cli, option):
    code, out, err = cli("sample", "x", option, "1")
    assert (code, out) == (2, "") and f"there is no option {option}" in err


REFUSED = {
    "--steps 0": "--steps must be",
    "--steps -1": "--steps must be",
    "--steps 1000000000": "--steps must be",
    "--steps 1e9": "expected a whole number, got '1e9'",
    "-g nan": "--guidance-scale must be",
    "-g inf": "--guidance-scale must be",
    "-g -1": "--guidance-scale must be",
    "--solver 2n": "--solver: unknown solver '2n'",
    "--solver karras": "'karras' is noise levels: --schedule karras",
    "--solver sde-2m:eta=x": "eta",
    "--solver sde-2m:etta=1": "etta",
    "--solver adaptive-23 --steps 5": "chooses its steps while it runs",
    "--solver adaptive-23 --schedule karras": "--schedule karras does not go with",
    "--solver adaptive-23:rtol=0": "rtol must be",
    "--solver adaptive-23:tol=1": "has no parameter 'tol'",
    "--schedule Kerras": "did you mean 'Karras'?",
    "--schedule euler": "'euler' is an update rule: --solver euler",
    "--schedule karras:rho=-1": "rho must be",
    "--seed -1": "--seed must be",
    "--seed 9223372036854775808": "--seed must be",
    "--seed 9223372036854775807 --num-images 2": "beyond",
    "--num-images 0": "--num-images must be",
    "--num-images 10001": "--num-images must be",
    "--batch-size 0": "--batch-size must be",
    "--dtype float64": "did you mean float",
    "--device gpu": "--device 'gpu'",
    "--device cuda:99": "--device cpu",
    "-H 17": "multiple of 2",
    "-W 2": "at least 4",
    "-H 1000000": "--height must be",
    "--format xml": "human, json",
    "--revision main": "--revision belongs",
    "--prompt-file nope.txt": "both",
    "-o file.txt": "is a file",
    "-o file.txt/sub/folder": "is a file, not a folder",
    "-o a.jpg": "pictures are PNG",
    "-o x.png --num-images 2": "names one file",
    "-o x.png --grid": "names one file",
    "-o -": "--output",
    "-o .png": "no name before .png",
    "-o new/.PNG": "no name before .png",
    "-o .jpg": "pictures are PNG",
    f"-o {'n' * 300}": "too long",
    f"-o {'n' * 300}/a.png": "too long",
    f"-o new/{'n' * 246}.png": "too long",  # its temporary name
    f"-o {'folder/' * 700}": "too long",
    "--schedule leading --steps 2000": "at most 999 steps",
    "--schedule leading --steps 1000": "at most 999 steps",
    "-m nowhere": "does not exist",
    "-m tiny-ds": "did you mean tiny-sd?",
    "-m empty": "model_index.json",
    "-m file.txt": "is no model",
    "-m file.ckpt": "pickled",
    "-m file.safetensors": "is no .safetensors file, whatever its name says",
    "-m https://example.org/x.safetensors": "does not exist",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(cli, model, tmp_path, words):
    (tmp_path / "empty").mkdir()
    for name in ("file.txt", "file.ckpt", "file.safetensors"):
        (tmp_path / name).write_bytes(b"not a model at all")
    before = sorted(tmp_path.rglob("*"))
    for dry in ([], ["--dry-run"]):
        code, out, err = cli("sample", "x", "-m", model, *words.split(), *dry)
        lines = [line for line in err.splitlines() if not line.startswith("loading")]
        assert (code, out) == (2, "") and len(lines) == 1 and lines[0].startswith("error: ")
        assert REFUSED[words] in lines[0] and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
