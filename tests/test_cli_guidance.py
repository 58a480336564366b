"""``sample --guidance``: what is spent and recorded, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest

from fewstep.cli import png
from fewstep.cli.guidance_ref import find_guidance
from fewstep.guidance import policy_file
from fewstep.guidance.cfg import CFG
from fewstep.guidance.interval import Interval
from fewstep.guidance.made_for import MadeFor

from . import cli_runs
from .cli_runs import pixels

cli, model = cli_runs.cli, cli_runs.model
HOW = ("--solver", "2m", "--steps", 4, "-g", 3)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> Path:
    """A folder with the policy files ag and linear, made by calibrate for HOW."""
    from fewstep.cli.main import main

    folder = tmp_path_factory.mktemp("policies")
    for name, policy in (("ag", "adaptive"), ("linear", "linear")):
        words = ["calibrate", "a", "b", "-m", model, *HOW, "--policy", policy, "-o", folder / f"{name}.safetensors"]
        words += ["--target-nfe", 6] if name == "ag" else []
        assert main([str(word) for word in words]) == 0
    return folder


def made(cli, model: str, *words: object) -> tuple[dict, dict]:
    """(the report, the record of its first picture) of a run."""
    code, out, err = cli("sample", "x", "-m", model, *words, "--format", "json")
    assert code == 0, err
    report = json.loads(out)
    return report, json.loads(png.read_text(Path(report["images"][0]["file"])).texts["fewstep"])


def test_a_policy_by_name(cli, model):
    how = ("--solver", "2m", "--steps", 4)
    code, _, err = cli("sample", "x", "-m", model, *how, "-g", 300, "--guidance", "interval:start=0.5", "-o", "told")
    assert code == 0 and "guidance: 6 of 8 evaluations a picture (25 % saved)" in err
    report, fields = made(cli, model, *how, "-g", 300, "--guidance", "Interval: start = 0.5")
    assert report["guidance"] == fields["guidance"] == {"name": "interval:start=0.5"}
    assert report["images"][0]["nfe"] == fields["nfe"] == 6 and fields["evaluations"] == 4
    line = json.loads(Path("outputs/run.jsonl").read_text())
    assert line["guidance"] == fields["guidance"] and line["nfe"] == 6
    plain, cfg = made(cli, model, *how, "-g", 300)[0], made(cli, model, *how, "--guidance", "cfg:scale=300")[0]
    files = [found["images"][0]["file"] for found in (report, plain, cfg)]
    assert len(set(files)) == 3 and "guidance" not in plain
    assert np.array_equal(pixels(files[1]), pixels(files[2])) and not np.array_equal(pixels(files[0]), pixels(files[1]))


def test_pictures_of_one_batch_spend_what_they_need(cli, model):
    """gamma of the first step lies between two pictures', so one of them is guided longer."""
    how = ("-m", model, *HOW, "--batch-size", 2, "--num-images", 2, "--format", "json")
    cli("calibrate", "x", "-m", model, *HOW, "--prompts", 2, "-o", "p.safetensors", "--target-nfe", 5.5)
    threshold = policy_file.load("p.safetensors")[0].threshold
    _, out, _ = cli("sample", "x", *how, "--guidance", f"adaptive:threshold={threshold!r}")
    assert sorted(image["nfe"] for image in json.loads(out)["images"]) == [5, 6]


def test_the_same_command_goes_on(cli, model):
    words = ("sample", "x", "y", "-m", model, *HOW, "--guidance", "ag:threshold=0.9")
    _, first, _ = cli(*words)
    Path(first.split()[1]).unlink()
    code, again, err = cli(*words)
    assert (code, again) == (0, first) and "1 of 2 pictures are there already" in err
    assert cli(*words[:-1], "ag:threshold=0.8")[1] != first


def test_the_command_in_a_picture_makes_it_again(cli, model, files):
    for given in ("interval:stop=0.25", str(files / "linear.safetensors")):
        _, out, _ = cli("sample", "x", "-m", model, *HOW, "--guidance", given)
        first = pixels(out.strip())
        code, told, _ = cli("inspect", out.strip(), "--format", "json")
        words = shlex.split(json.loads(told)["command"])
        words[words.index("--model") + 1] = model
        words[words.index("--guidance") + 1] = given
        assert code == 0 and np.array_equal(pixels(cli(*words[1:], "-o", "again")[1].strip()), first)
        shown = cli("inspect", out.strip())[1]
        name = Path(given).name
        assert f"guidance {name}" in shown and (f"the policy {name}" in shown) == (name != given)


def test_a_file_of_calibrate(cli, model, files):
    report, fields = made(cli, model, *HOW, "--guidance", files / "linear.safetensors")
    ref = find_guidance(str(files / "linear.safetensors"))
    assert fields["guidance"] == report["guidance"] == {"name": "linear.safetensors", "digest": ref.digest}
    policy = policy_file.load(files / "linear.safetensors")[0]
    assert fields["nfe"] == 4 + policy.kinds.count("cfg") and fields["guidance_scale"] == 3.0
    again = made(cli, model, *HOW[:-2], "--guidance", files / "linear.safetensors")[1]  # the scale is the file's
    assert again["guidance_scale"] == 3.0 and again["nfe"] == fields["nfe"]
    _, out, _ = cli("sample", "x", "-m", model, *HOW, "--guidance", files / "linear.safetensors", "--dry-run")
    assert "guidance   LinearAG, cfg linear" in out


def test_a_file_of_a_policy_with_its_own_scale(cli, model):
    """Written from Python: for any model, or with a scale that is a whole number."""
    how = ("-m", model, "--solver", "2m", "--steps", 2)
    for policy, made_for in ((CFG(300.0), MadeFor()), (CFG(300.0), MadeFor(scale=300)), (CFG(), MadeFor(scale=300))):
        policy_file.save(policy, "p.safetensors", made_for)
        assert find_guidance("p.safetensors").scale == 300.0
        fields = made(cli, *how[1:], "--guidance", "p.safetensors")[1]
        assert fields["guidance_scale"] == 300.0 and fields["nfe"] == 4
    refused(cli, "which has the scale 300, were both given", *how, "--guidance", "p.safetensors", "-g", 3)
    policy_file.save(CFG(0.5), "p.safetensors", MadeFor())
    refused(cli, "--guidance p.safetensors: scale must be a number from 1 to 1000", *how, "--guidance", "p.safetensors")


def test_scale_1_says_that_there_is_nothing_to_save(cli, model):
    words = ("sample", "x", "-m", model, "--steps", 3, "-g", 1, "--guidance", "adaptive")
    code, out, err = cli(*words, "--format", "json")
    assert code == 0 and json.loads(out)["images"][0]["nfe"] == 3
    assert "--guidance adaptive changes nothing" in err
    assert "changes nothing" in cli(*words, "--dry-run")[1]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("interval:stop=0", "evaluates one branch a tick here: no step is guided"),
        ("interval", "guides every step here: it saves nothing"),
        ("adaptive:threshold=-5", "every cosine is above -5, so that guidance ends at once"),
        ("adaptive:threshold=2", "guides every step here"),
        ("interval:stop=0.5", "guidance   Interval, stop 0.5: 6 evaluations a picture"),
        ("cfg:scale=3", "guidance   CFG: 8 evaluations a picture"),
    ],
)
def test_what_is_known_before_the_run(cli, policy, said):
    _, out, _ = cli("sample", "a red circle", "--solver", "2m", "--steps", 4, "--guidance", policy, "--dry-run")
    assert said in out and ("note " in out) == (" here" in said or "at once" in said)


def test_a_budget_counts_full_guidance(cli, model):
    _, out, err = cli("sample", "x", "-m", model, "--solver", "2m", "--nfe", 8, "--guidance", "interval:stop=0.5")
    assert "4 steps of 2m, which cost at most 8 a picture" in err and out


REFUSED = {
    "cfg:scale=-1": "scale must be a number from 1 to 1000",
    "cfg:scale=nan": "scale must be a number from 1 to 1000",
    "cfg:scale=x": "scale must be a number, got 'x'",
    "adaptive:threshold=nan": "the threshold must be a number, got nan",
    "adaptive:threshhold=1": "has no parameter 'threshhold'; it has threshold",
    "adaptve": "unknown guidance 'adaptve': did you mean adaptive?",
    "adaptive:scale=2": "--guidance-scale 3 and --guidance adaptive:scale=2, which has the scale 2, were both given",
    "none.safetensors": "'none.safetensors' does not exist",
    ".": "unknown guidance '.'",
    "./": "is a folder",
    "": "unknown guidance ''",
    "empty.safetensors": "--guidance 'empty.safetensors' is empty",
    "huge.safetensors": "is larger than 64 MB",
    "claims.safetensors": "is damaged: its header has 1,073,741,824 bytes, and the file 10",
    "text.safetensors": "is no .safetensors file, whatever its name says",
    "linear": "linear belongs to one run of one model and needs a file: fewstep calibrate --policy linear -o FILE",
    "Searched": "needs a file: fewstep search -o FILE",
    "half.safetensors": "which has the scale 0.5, were both given",
    "steps.safetensors": "--guidance steps.safetensors: this policy has a guidance scale for every step",
    "quarter.safetensors": "--guidance quarter.safetensors: scale must be a number from 1 to 1000",
    "other.safetensors": "is no policy: expected a file of fewstep calibrate or fewstep search",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_refused_before_anything_is_loaded(cli, given, monkeypatch):
    """Most of it without torch; never with weights."""
    monkeypatch.setattr("fewstep.samplers.backbones.load_backbone", None)
    Path("empty.safetensors").touch()
    Path("text.safetensors").write_text("adaptive:threshold=0.998")
    Path("claims.safetensors").write_bytes(struct.pack("<Q", 1 << 30) + b"{}")
    with Path("huge.safetensors").open("wb") as stream:  # takes no room on disk
        stream.write(struct.pack("<Q", 1 << 30) + b"{")
        stream.truncate((1 << 30) + 4096)
    cli("table", "--steps", 2, "--save", "other.safetensors")
    policy_file.save(CFG(0.5), "half.safetensors", MadeFor())
    policy_file.save(Interval((3.0, 0.25)), "quarter.safetensors", MadeFor())
    policy_file.save(Interval((3.0,) * 10), "steps.safetensors", MadeFor())
    code, out, err = cli("sample", "a red circle", "--guidance", given, "-g", 3, "--quiet")
    assert (code, out) == (2, "") and REFUSED[given] in err and err.count("\n") == 1 and err.startswith("error: ")


def refused(cli, message: str, *words: object) -> None:
    code, out, err = cli("sample", "a red circle", *words, "--quiet")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err


def test_a_file_for_something_else_is_refused(cli, model, files, monkeypatch):
    """Before weights are loaded, even where they are what differs."""
    monkeypatch.setattr("fewstep.samplers.backbones.load_backbone", None)
    linear, ag = (("-m", model, "--guidance", files / f"{name}.safetensors") for name in ("linear", "ag"))
    for file in (linear, ag):
        refused(cli, "--guidance-scale 2 and --guidance", *file, "--solver", "2m", "--steps", 4, "-g", 2)
        refused(cli, "another model than tiny-sd", *file[2:], "--solver", "2m", "--steps", 4)
    refused(cli, "a run of 4 steps, and this is 5", *linear, "--solver", "2m", "--steps", 5)
    refused(cli, "the solver 2m, and this is unipc-2", *linear, "--solver", "unipc-2", "--steps", 4)
    refused(cli, "other noise levels", *linear, "--solver", "2m", "--schedule", "karras", "--steps", 4)
    refused(cli, "without a negative prompt", *linear, "--solver", "2m", "--steps", 4, "-n", "y")
    refused(cli, "AdaptiveGuidance needs to know the steps", *ag, "--solver", "adaptive-23")
    assert cli("sample", "x", *ag, "--solver", "ddim", "--steps", 7, "-n", "y", "--dry-run")[0] == 0


def test_inspect_says_what_a_policy_is(cli, files):
    linear, ag = (files / f"{name}.safetensors" for name in ("linear", "ag"))
    code, out, _ = cli("inspect", linear, ag)
    policy, made_for = policy_file.load(ag)
    assert code == 0 and f"policy     AdaptiveGuidance, threshold {policy.threshold:.6g}\n" in out
    assert "scale      3\n" in out and "run        2m, 4 steps, 4 ticks from time 999 to" in out
    assert f"model      tiny, network {made_for.weights.digest}, predicts eps" in out
    assert "made with  guidance scale 3, no negative prompt" in out and "2 prompts of the user's, seeds 0 to 1" in out
    assert "checked    model, prediction, scale, space\n" in out and "policy     LinearAG, cfg" in out
    told = json.loads(cli("inspect", linear, "--format", "json")[1])
    policy, made_for = policy_file.load(linear)
    coefficients = {int(tick): line for tick, line in told["policy"].pop("coefficients").items()}
    assert coefficients == policy.coefficients and told["digest"] == find_guidance(str(linear)).digest
    assert told["policy"] == {"class": "LinearAG", "kinds": list(policy.kinds), "scale": 3.0}
    assert told["made_for"]["levels"] == [list(level) for level in made_for.levels]
    largest = max(coefficients[1], key=lambda name: abs(coefficients[1][name]))
    assert f"tick 1     u^ = {coefficients[1][largest]:+.4g} {largest}" in out


def test_inspect_refuses_other_files(cli, files):
    cli("table", "--steps", 2, "--save", "other.safetensors")
    code, out, err = cli("inspect", "other.safetensors", files / "ag.safetensors")
    assert code == 2 and "error: the file 'other.safetensors' is no policy" in err and "AdaptiveGuidance" in out
    Path("text.safetensors").write_text("adaptive:threshold=0.998")
    code, out, err = cli("inspect", "text.safetensors")
    assert (code, out) == (2, "") and "is no .safetensors file, whatever its name says" in err and "--" not in err


def test_a_changed_file_is_another_command(cli, model, files):
    words = ("sample", "x", "-m", model, *HOW, "--dry-run", "--format", "json", "--guidance", "p.safetensors")
    runs = set()
    for name in ("ag", "linear"):
        Path("p.safetensors").write_bytes((files / f"{name}.safetensors").read_bytes())
        runs.add(json.loads(cli(*words)[1])["run"])
    assert len(runs) == 2
