"""What the command line says: notes on names, refusals that say what to type, and the few words of a dry run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import load, output, plan
from fewstep.errors import ConfigError, FewstepError
from fewstep.guidance import layout
from fewstep.guidance.sampling import sample
from fewstep.names import ADAPTIVE_NAMES, resolve_solver
from fewstep.samplers import DDIM, EDM, GRIDS, DiscreteVP, DPMpp2M, RectifiedFlow, trace
from fewstep.samplers.backbones import backbone_of

from . import cli_runs

cli, model = cli_runs.cli, cli_runs.model
SD = DiscreteVP.scaled_linear()


def planned(cli, model, *words: object) -> dict:
    code, out, err = cli("sample", "x", "-m", model, *words, "--dry-run", "--format", "json")
    assert code == 0, err
    return json.loads(out)


# ---------------------------------------------------------------- what is refused, and what to type instead

REFUSED = {
    "-g 0": "--guidance-scale must be a number from 1 to 1000 (1 is no guidance",
    "-g 0.5": "--guidance-scale must be a number from 1 to 1000 (1 is no guidance",
    "--sampler x": ", adaptive-12, adaptive-23, adaptive++-12",
    "--scheduler x": ", adaptive-12, adaptive-23, adaptive++-12",
    "--cfg 5": "did you mean --guidance-scale? See fewstep sample --help",
    "--offload": "requires an argument; see fewstep sample --help",
    "--nfe 1": "--nfe 1 is too small a budget: one step costs 2 with guidance, which takes 2 for each of the solver's; "
    "give at least 2, or -g 1",
    "--nfe 1 -g 1 --solver 2s --schedule leading:x=1": "--schedule leading:x=1: grid leading has no parameter 'x'",
    "--solver 2m:x=1": "--solver 2m:x=1: solver 2m has no parameter 'x'",
    "--solver adaptive-23:x=1": "--solver adaptive-23:x=1: solver adaptive-23 has no parameter 'x'",
    "--solver 2m:x": "--solver: hyper-parameters are written key=value",
    "--schedule karras:x": "--schedule: hyper-parameters are written key=value",
    "--schedule karras:rho=-1": "--schedule karras:rho=-1: rho must be a positive number",
    "--init-image a.png --strength 0.001": "--strength 0.001 leaves no noise to remove",
    "--init-image a.png --strength 0.002 --schedule leading": "at most 1 step, got 10",
    "--init-image nan.tif": "--init-image 'nan.tif': an image of mode F must have values from 0 to 1",
    "--init-image ''": "--init-image '' is an empty name",
    "--lora ''": "--lora '' is an empty name",
    "--table /dev/null": "--table '/dev/null' is not a regular file",
    "--config a.toml --config b.toml": "--config was given 2 times: options come from one file",
    "--solver unipc-3:order=2": "whose name says the order: choose from unipc-2, unipc-3, unipc-4",
    "--solver adaptive-23:order=2": "whose name says the order: choose from adaptive-12, adaptive-23",
    "--solver dpm-v3": "'dpm-v3' is in Python only",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_say_what_to_type(cli, model, words):
    Image.new("RGB", (16, 16)).save("a.png")
    Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)).save("nan.tif")
    code, out, err = cli("sample", "x", "-m", model, *shlex.split(words))
    assert (code, out) == (2, "") and REFUSED[words] in err, err
    assert [line for line in err.splitlines() if not line.startswith("loading ")] == [err.splitlines()[-1]]


def test_the_help_page_of_a_mistyped_command(cli):
    assert cli("smaple")[2] == "error: no such command 'smaple'. Did you mean 'sample'? See fewstep --help\n"


def test_config_keys_of_other_programs(cli, model):
    for key, message in (("sampler", "fewstep has --solver"), ("cfg_scale", "did you mean guidance-scale?")):
        Path("c.toml").write_text(f"{key} = 'a'\n")
        code, _, err = cli("sample", "x", "-m", model, "--config", "c.toml")
        assert code == 2 and message in err


def test_switches_of_a_config_file_are_undone(cli, model):
    Path("c.toml").write_text("no-metadata = true\nquiet = true\nverbose = false\n")
    typed = planned(cli, model)["run"]
    assert planned(cli, model, "--config", "c.toml")["run"] != typed
    assert planned(cli, model, "--config", "c.toml", "--metadata", "--no-quiet", "--no-verbose")["run"] == typed
    assert "--no-grid" not in cli("sample", "--help")[1]


def test_adaptive_solvers_are_offered(cli):
    for command, offered in (("sample", True), ("table", False)):
        words = " ".join(cli(command, "--help")[1].split())
        assert all((name in words) == offered for name in ADAPTIVE_NAMES)


@pytest.mark.parametrize("kind", ["hub", "file"])
def test_a_hub_that_cannot_be_reached_is_no_bad_input(kind):
    class ConnectError(Exception):
        pass

    ref = load.ModelRef(kind, "m", "m")
    with pytest.raises(FewstepError, match="hub cannot be reached") as caught, plan.broken(ref):
        try:
            raise ConnectError
        except ConnectError as error:
            raise ConfigError("the model m could not be loaded: Got: ...") from error
    assert not isinstance(caught.value, ConfigError)  # so 1 and not 2
    with pytest.raises(ConfigError), plan.broken(ref):
        raise ConfigError("anything else")


# ---------------------------------------------------------------- notes on names

NOTES = {
    "--solver|DPM++ 2M Karras": "'DPM++ 2M Karras' is --solver 2m --schedule karras here (update rule: same)",
    "--solver|DPM++ 2M|--schedule|simple": "'DPM++ 2M' is --solver 2m, on --schedule trailing as you say, here (update "
    "rule: same)\n'simple' is --schedule trailing here (grid differs; the same where the steps divide 1000; else a "
    "time may differ by 1)",
    "--solver|DPMSolverMultistepScheduler": "'DPMSolverMultistepScheduler' is --solver 2m here (update rule: same), on "
    "--schedule lambda, which is used where none is named",
    "--schedule|SGM Uniform": "'SGM Uniform' is --schedule linspace here (grid differs; theirs does not round the "
    "times)",
    "--schedule|normal": "'normal' is --schedule time here (same)",
    "--solver|2m:": "",
    "--solver|SDE-2M: eta = 0.5": "",
    "--schedule|karras: rho=5": "",
}


@pytest.mark.parametrize("words", NOTES)
def test_notes(cli, model, words):
    code, _, err = cli("sample", "x", "-m", model, *words.split("|"), "--dry-run")
    assert code == 0 and err.strip() == NOTES[words]


def test_options_have_one_spelling(cli, model):
    a, b = (planned(cli, model, "--solver", name) for name in ("sde-2m:eta=0.5", "sde-2m: eta = 0.5"))
    assert a["run"] == b["run"]
    a, b = (planned(cli, model, "--schedule", name) for name in ("karras:rho=5", "karras: rho = 5"))
    assert a["run"] == b["run"]


@pytest.mark.parametrize(
    ("text", "solver", "grid"),
    [
        ("k_euler_a", "ddpm", None),
        ("k_dpmpp_2m", "2m", None),
        ("K_DPMPP_2M Karras", "2m", "karras"),
        ("3M SDE", "sde-3m:lower_order_final=false", None),
        ("2M SDE Karras", "sde-2m", "karras"),
        ("diffusers.EulerDiscreteScheduler", "euler", None),
        ("diffusers.schedulers.DPMSolverMultistepScheduler:use_karras_sigmas=true", "2m", "karras"),
    ],
)
def test_names_with_prefixes(text, solver, grid):
    assert resolve_solver(text)[:2] == (solver, grid)


def test_suggestions_are_of_what_is_here():
    with pytest.raises(ConfigError) as caught:
        resolve_solver("sa_solvr")
    assert "sa_solver'" not in str(caught.value)


# ---------------------------------------------------------------- a table needs its picture


def test_a_table_made_for_a_picture_is_not_run_from_noise(cli, model):
    words = ("table", "-m", model, "--steps", 3, "--save", "t.safetensors")
    run = ("sample", "x", "-m", model, "--table", "t.safetensors")
    assert cli(*words, "--strength", 0.95)[0] == 0  # little above it: only the file says so
    for dry in ([], ["--dry-run"]):
        code, out, err = cli(*run, "-q", *dry)
        assert (code, out) == (2, "") and "made with --strength 0.95 and begins at time 949, from a picture" in err
    Image.new("RGB", (16, 16)).save("a.png")
    assert cli(*run, "--init-image", "a.png", "--dry-run")[0] == 0
    for schedule in ("leading", "karras"):
        assert cli(*words, "--schedule", schedule)[0] == 0 and cli(*run, "--dry-run")[0] == 0


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 40])
def test_named_grids_begin_in_noise(steps):
    for schedule in (SD, EDM(), RectifiedFlow()):
        for grid in GRIDS.values():
            try:
                levels = grid(schedule, steps)
            except ConfigError:
                continue  # not a grid of this schedule
            layout.check_begins_in_noise(levels[0], steps, schedule)


@pytest.mark.parametrize("schedule", [SD, RectifiedFlow()], ids=["VP", "flow"])
def test_what_begins_in_a_picture(schedule):
    for strength in (0.3, 0.5, 0.7):
        with pytest.raises(ConfigError, match="much of a picture is there already"):
            layout.check_begins_in_noise(layout.shortened(schedule, strength).noisiest, 10, schedule)


def test_python_refuses_it_too():
    from .tiny import tiny_sd

    pipe = tiny_sd()
    schedule = backbone_of(pipe).schedule
    table = layout.table_of(schedule, DPMpp2M(), steps=2, strength=0.3)
    with pytest.raises(ConfigError, match="give init_images"):
        sample(pipe, "x", table=table)
    with pytest.raises(ConfigError, match="give init_images"):
        sample(pipe, "x", grid=table.plan.nodes + table.plan.targets[-1:], solver=DDIM())
    assert sample(pipe, "x", table=trace(DDIM(), GRIDS["leading"](schedule, 2), schedule)).images.shape[0] == 1


# ---------------------------------------------------------------- tables and dry runs in words


def test_the_line_after_save_is_a_command(cli, model):
    Path("my tables").mkdir()
    err = cli("table", "-m", model, "--steps", 2, "--save", "my tables/t.safetensors")[2]
    words = shlex.split(err.split("run it with ")[1])
    assert words[:3] == ["fewstep", "sample", "a prompt"] and words[-1] == "my tables/t.safetensors"
    assert cli(*words[1:], "--dry-run")[0] == 0


def test_joined_steps_are_said(cli, model):
    assert (
        "fast joins a grid of 7 steps to 3 steps of" in cli("table", "-m", model, "--solver", "fast", "--steps", 7)[2]
    )
    assert "joins" not in cli("table", "-m", model, "--steps", 7)[2]


def test_a_dry_run_in_words(cli, model):
    _, out, _ = cli("sample", "x", "-m", model, "--nfe", 2, "--dry-run")
    assert "1 step = 1 evaluation," in out and "1 step of dpm-2m, which costs 2 a picture" in out
    assert "float32 on cpu" in out.replace("cuda", "cpu") and "1 of 16x16 pixels, seed 0," in out
    Image.new("RGB", (40, 30)).save("a.png")
    _, out, _ = cli("sample", "x", "-m", model, "--init-image", "a.png", "-H", 15 * 4, "--dry-run", "--seed", 3)
    assert "1 of 80x60 pixels, seed 3," in out
    cli("table", "-m", model, "--steps", 2, "--save", "t.safetensors")
    words = ("sample", "x", "-m", model, "--table", "t.safetensors", "--format", "json")
    assert json.loads(cli(*words, "--dry-run")[1])["table"] == json.loads(cli(*words)[1])["table"]


# ---------------------------------------------------------------- two runs at once


def test_one_line_a_picture_when_two_runs_race(cli, model, monkeypatch):
    """The other run writes its line while this one samples."""
    words = ("sample", "x", "-m", model, "--steps", 1)
    log_line = output.log_line

    def raced(path, fields):
        line = log_line(path, fields)
        output.append_log(Path("outputs/run.jsonl"), line)
        return line

    monkeypatch.setattr("fewstep.cli.run.output.log_line", raced)
    assert cli(*words, "--num-images", 2)[0] == 0
    assert len(Path("outputs/run.jsonl").read_text().splitlines()) == 2
