"""Budgets, config files, other programs' names and adaptive solvers on the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from fewstep.cli import png
from fewstep.names import resolve_grid

from . import cli_runs
from .cli_runs import pixels

cli, model = cli_runs.cli, cli_runs.model


def refused(cli, message: str, *words: object) -> None:
    code, out, err = cli("sample", "x", *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and err.startswith("error: "), err


def fields_of(path: str) -> dict:
    return json.loads(png.read_text(Path(path)).texts["fewstep"])


# ---------------------------------------------------------------- budgets


def test_a_budget_chooses_the_steps(cli, model):
    _, out, err = cli("sample", "x", "-m", model, "--nfe", 9, "-g", 3)
    assert "--nfe 9: 4 steps of dpm-2m, which cost 8 a picture" in err
    fields = fields_of(out.strip())
    assert (fields["steps"], fields["nfe"], fields["budget"]) == (4, 8, 9)
    assert np.array_equal(
        pixels(out.strip()), pixels(cli("sample", "x", "-m", model, "--steps", 4, "-g", 3)[1].strip())
    )
    command = json.loads(cli("inspect", out.strip(), "--format", "json")[1])["command"]
    assert "--steps 4" in command and "--nfe" not in command
    assert "NFE 8 of 9 allowed" in cli("inspect", out.strip())[1]


def test_what_a_budget_gives(cli, model):
    for words, steps in (
        ("--nfe 9 -g 1", 9),
        ("--nfe 9", 4),  # a folder's scale is the model's own, which guides
        ("--nfe 9 --solver heun", 2),
        ("--nfe 9 --solver 2s -g 1", 5),
        ("--nfe 5000 --schedule trailing", 999),
    ):
        code, out, _ = cli("sample", "x", "-m", model, *words.split(), "--dry-run", "--format", "json")
        assert code == 0 and json.loads(out)["steps"] == steps, words
    refused(cli, "--nfe 1 is too small a budget: one step costs 2 with", "-m", model, "--nfe", 1, "-q")
    refused(cli, "--steps and --nfe were both given", "--nfe", 9, "--steps", 4)
    refused(cli, "--nfe must be a whole number from 1", "--nfe", 0)


def test_a_finished_budget_loads_nothing(cli, model, monkeypatch):
    arguments = ("sample", "x", "-m", model, "--nfe", 4)
    first = cli(*arguments)[1]
    monkeypatch.setattr("fewstep.cli.run.load", lambda *_: pytest.fail("the model was loaded"))
    assert cli(*arguments)[1] == first


def test_steps_are_those_that_were_asked_for(cli, model, monkeypatch):
    """DPM-Solver-fast joins three to one."""
    cli("table", "-m", model, "--solver", "fast++", "--steps", 7, "--save", "t.safetensors")
    for words in (
        ("--solver", "fast++", "--steps", 7),
        ("--solver", "fast++", "--nfe", 15),
        ("--table", "t.safetensors"),
    ):
        with monkeypatch.context() as patch:
            path = cli("sample", "x", "-m", model, *words)[1]
            fields = fields_of(path.strip())
            assert (fields["steps"], fields["evaluations"], fields["nfe"]) == (7, 7, 14)
            patch.setattr("fewstep.cli.run.load", lambda *_: pytest.fail("the model was loaded"))
            assert cli("sample", "x", "-m", model, *words)[1] == path


# ---------------------------------------------------------------- names of other programs


def test_other_programs_names(cli, model):
    _, out, err = cli("sample", "x", "-m", model, "--steps", 2, "--solver", "DPM++ 2M SDE Karras")
    assert err.startswith("'DPM++ 2M SDE Karras' is --solver sde-2m --schedule karras here (update rule: same; their")
    fields = fields_of(out.strip())
    assert (fields["solver"], fields["schedule"]) == ("sde-2m", "karras")
    assert "Sampler: DPM++ 2M SDE, Schedule type: Karras" in png.read_text(Path(out.strip())).texts["parameters"]
    assert cli("sample", "x", "-m", model, "--steps", 2, "--solver", "sde-2m", "--schedule", "karras")[1] == out
    _, out, err = cli("sample", "x", "-m", model, "--dry-run", "--solver", "DPM++ 2M Karras", "--schedule", "simple")
    grid = resolve_grid("simple").grid
    assert f"is --solver 2m, on --schedule {grid} as you say, here" in err and f"schedule {grid}" in out


def test_hyper_parameters(cli, model):
    made = [
        cli("sample", "x", "-m", model, "--steps", 3, "--solver", name)[1].strip()
        for name in ("sde-2m", "sde-2m:eta=0.5", "sde-2m:eta=0", "2m")
    ]
    a, b, c, d = (pixels(path) for path in made)
    assert not np.array_equal(a, b) and not np.array_equal(b, c) and np.array_equal(c, d)
    assert fields_of(made[1])["solver"] == "sde-2m:eta=0.5"
    command = json.loads(cli("inspect", made[1], "--format", "json")[1])["command"]
    assert "--solver sde-2m:eta=0.5" in command


def test_adaptive_solvers(cli, model):
    _, out, _ = cli("sample", "x", "y", "-m", model, "--solver", "DPM adaptive", "--batch-size", 2)
    first, second = (fields_of(path) for path in out.splitlines())
    assert first["solver"] == "adaptive-23" and first["schedule"] == "adaptive" and first["steps"] > 2
    assert second["nfe"] == 2 * second["evaluations"] > 2 * second["steps"]
    words = shlex.split(json.loads(cli("inspect", out.splitlines()[1], "--format", "json")[1])["command"])
    words[words.index("--model") + 1] = model
    again = cli(*words[1:], "-o", "again")[1].splitlines()[1]
    assert np.array_equal(pixels(again), pixels(out.splitlines()[1]))
    dry = json.loads(cli("sample", "x", "-m", model, "--solver", "adaptive-12", "--dry-run", "--format", "json")[1])
    assert dry["evaluations"] is dry["steps"] is dry["table"] is None
    for option, value in (("--steps", 5), ("--nfe", 5), ("--schedule", "karras")):
        refused(
            cli, f"{option} {value} does not go with --solver adaptive-23", "--solver", "adaptive-23", option, value
        )
    assert "there is no table to show" in cli("table", "--solver", "adaptive-12")[2]


# ---------------------------------------------------------------- config files


def config(text: str, encoding: str = "utf-8") -> str:
    Path("c.toml").write_text(text, encoding=encoding)
    return "c.toml"


def planned(cli, model, *words: object) -> dict:
    code, out, err = cli("sample", "-m", model, *words, "--dry-run", "--format", "json")
    assert code == 0, err
    return json.loads(out)


def test_a_config_file(cli, model):
    file = config('prompt = ["a", "b"]\nsteps = 4\nsolver = "heun"\nguidance-scale = 3\nnum_images = 2\nquiet = true\n')
    plan = planned(cli, model, "--config", file)
    assert (plan["steps"], plan["evaluations"]) == (4, 7) and [i["prompt"] for i in plan["images"]] == list("aabb")
    typed = planned(cli, model, "a", "b", *"--steps 4 --solver heun -g 3 --num-images 2".split())
    assert typed["run"] == plan["run"]


def test_the_command_line_has_the_last_word(cli, model):
    file = config('\ufeffprompt = "a"\nsteps = 4\nsolver = "heun"\n')
    assert planned(cli, model, "--config", file, "--steps", 2)["evaluations"] == 3
    assert planned(cli, model, "--config", file, "--solver", "2m", "c")["images"][0]["prompt"] == "c"
    assert planned(cli, model, "--config", file, "--nfe", 6, "-g", 1)["steps"] == 3
    Path("p.txt").write_text("d\n")
    assert planned(cli, model, "--config", file, "--prompt-file", "p.txt")["images"][0]["prompt"] == "d"
    cli("table", "-m", model, "--steps", 5, "--save", "t.safetensors")
    assert planned(cli, model, "--config", file, "--table", "t.safetensors")["steps"] == 5
    file = config('prompt = "a"\ntable = "t.safetensors"\n')
    assert planned(cli, model, "--config", file, "--solver", "2s", "--steps", 2)["evaluations"] == 3


BAD_CONFIGS = {
    "stpes = 3": "there is no option 'stpes'; did you mean steps?",
    "nonsense = 3": "there are batch-size, device",
    "guidance = 3": "unknown guidance '3': there are cfg, adaptive, interval, delta-reuse",
    "config = 'c.toml'": "config can only be given on the command line",
    "debug = true": "debug can only be given on the command line",
    "steps = 2.5": "--steps: expected a whole number, got '2.5' (from --config)",
    "steps = true": "steps must be a text or a number, got True",
    "steps = [1]": "steps must be a text or a number",
    "steps = 2024-01-01": "steps must be a text or a number",
    "steps = 0": "--steps must be a whole number",
    "steps = 3\nnfe = 9": "--steps and --nfe were both given",
    "grid = 1": "grid must be true or false, got 1",
    "prompt = [1]": "prompt must be a text or a list of texts",
    "[sample]\nsteps = 3": "there is no option 'sample'",
    "num-images = 1\nnum_images = 1": "num_images is there twice",
    "steps: 3": "is no TOML",
    "steps = 3\nsteps = 4": "is no TOML",
    "solver = 2m": "is no TOML",
    "a = " + "[" * 100_000: "is no TOML",
    "steps = " + "9" * 5_000: "is no TOML",
    "steps = 0x" + "f" * 5_000: "too large a number",
    "#" * (1 << 20) + "#": "is larger than 1 MB",
}


@pytest.mark.parametrize("text", BAD_CONFIGS, ids=lambda text: re.sub(r"\W+", "-", text[:24]))
def test_bad_config_files(cli, text):
    refused(cli, BAD_CONFIGS[text], "--config", config(text))


def test_what_is_no_config_file(cli):
    refused(cli, "does not exist", "--config", "no.toml")
    refused(cli, "is a folder", "--config", ".")
    refused(cli, "is not UTF-8 text", "--config", config("steps = 3", "utf-16"))
