"""``fewstep calibrate``: what it writes and says, how it goes on, what it refuses before it loads anything."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from fewstep.cli import calibrate as command
from fewstep.cli.calibrate import training_captions
from fewstep.errors import ConfigError
from fewstep.guidance import policy_file
from fewstep.models.captions import prompts

from . import cli_runs

cli, model = cli_runs.cli, cli_runs.model
HOW = ("--solver", "2m", "--steps", 4, "-g", 3)


def test_calibrate_reports(cli, model):
    words = ("calibrate", "a", "b", "-m", model, *HOW, "--prompts", 3, "-o", "p.safetensors")
    code, out, err = cli(*words, "--target-nfe", 6, "--format", "json")
    found = json.loads(out)
    assert code == 0 and found["prompts"] == 3 and found["full_nfe"] == 8 and found["nfe"]["mean"] <= 6
    assert found["saved"] == pytest.approx(1 - found["nfe"]["mean"] / 8) and len(found["per_step"]) == 4
    assert found["file"] == "p.safetensors" and "--guidance p.safetensors" in err
    policy, made_for = policy_file.load("p.safetensors")
    assert policy.scale == 3.0 and made_for.model == "tiny" and "of the user's" in made_for.calibrated_on
    assert not Path("p.safetensors.checkpoint").exists()
    _, out, _ = cli(*words, "--target-nfe", 6)  # the older file is replaced
    assert f"policy     AdaptiveGuidance, threshold {policy.threshold:.6g}" in out and "gamma" in out


def test_the_plan_of_linear_and_what_was_held_out(cli, model):
    words = ("calibrate", *"abcde", "-m", model, *HOW, "--batch-size", 1, "--policy", "linear", "-o", "p.safetensors")
    words += ("-n", "a b")
    _, out, err = cli(*words, "--format", "json")
    found = json.loads(out)
    assert f"{' '.join(map(str, HOW[:4]))} --negative-prompt 'a b' --guidance p.safetensors" in err
    errors = found["error"], found["held_out"]
    assert found["nfe"]["mean"] == 5 and errors[1]["images"] == 1 and errors[1]["max"] <= errors[0]["max"]
    assert policy_file.load("p.safetensors")[0].kinds == ("cfg", "linear", "linear", "linear")
    _, out, _ = cli(*words, "--plan", "alternating")
    assert policy_file.load("p.safetensors")[0].kinds == ("cfg", "linear", "cond", "cond")
    assert "held out" in out and "for the worst of the 1 images" in out


def test_calibrate_says_where_nothing_is_gained(cli, model):
    code, out, err = cli(
        "calibrate", "a", "-m", model, "--steps", 2, "-g", 1, "-o", "p.safetensors", "--format", "json"
    )
    assert code == 0 and json.loads(out)["file"] is None and "nothing can be gained at guidance scale 1" in err
    assert not Path("p.safetensors").exists()


def test_an_interrupted_calibrate_goes_on(cli, model, monkeypatch):
    from fewstep.guidance.calibrate_runs import Samples

    words = (
        "calibrate",
        "a",
        "b",
        "c",
        "-m",
        model,
        *HOW,
        "--batch-size",
        1,
        "-o",
        "p.safetensors",
        "--format",
        "json",
    )
    _, whole, _ = cli(*words)
    run, left = Samples.run, [2]

    def interrupted(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run(self, *args)

    monkeypatch.setattr(Samples, "run", interrupted)
    code, out, err = cli(*words)
    assert (code, out) == (130, "") and "the same command goes on" in err
    assert Path("p.safetensors.checkpoint").is_file()
    monkeypatch.setattr(Samples, "run", run)
    half = Path("half.safetensors.checkpoint")
    half.write_bytes(Path("p.safetensors.checkpoint").read_bytes())
    _, _, err = cli(*words, "-o", "half.safetensors", "--dtype", "bfloat16")
    assert "half.safetensors.checkpoint is of a calibration with other settings" in err
    code, out, err = cli(*words)
    assert code == 0 and out == whole and "going on where p.safetensors.checkpoint ends" in err
    assert not Path("p.safetensors.checkpoint").exists()


WRONG = {
    ("--seed", -1): "--seed must be a whole number from 0",
    ("-o", "p.txt"): "expected a name that ends so",
    ("-o", "no/p.safetensors"): "there is no folder 'no'",
    ("-o", "other.safetensors"): "is in the way: it is no policy",
    (): "there is no file for the policy",
    ("--policy", "cfg"): "--policy 'cfg' does not exist: expected one of adaptive, linear, delta-reuse",
    ("--space", "y"): "--space 'y' does not exist",
    ("--target-nfe", 20): "--target-nfe 20 cannot be: full guidance costs 20",
    ("--target-nfe", "nan"): "--target-nfe must be a number above 0",
    ("--target-fidelity", 0): "--target-fidelity must be a number above 0",
    ("--target-nfe", 12, "--target-fidelity", 0.1): "--target-nfe and --target-fidelity were both given",
    ("--policy", "linear", "--window", 0): "--window must be",
    ("--policy", "linear", "--ridge", -1): "--ridge must be",
    ("--window", 2): "--window belongs to the policy linear, and the policy is adaptive",
    ("--policy", "delta-reuse", "--ridge", 0.1): "--ridge belongs to the policy linear",
    ("--policy", "linear", "--plan", "best"): "--plan 'best' does not exist: expected one of chosen, alternating",
    ("--plan", "alternating"): "--plan belongs to the policy linear, and the policy is adaptive",
    ("--policy", "delta-reuse", "--plan", "chosen"): "--plan belongs to the policy linear",
    ("--ridge", 1e-6): "--ridge belongs to the policy linear",
    ("--policy", "linear", "--space", "v"): "--space belongs to the policy adaptive, and the policy is linear",
    ("--policy", "linear", "--steps", 1): "a run of 1 tick has none",
    ("--prompts", 0): "--prompts must be",
    ("--solver", "adaptive-23"): "chooses its steps while it runs",
    ("-g", 0): "--guidance-scale must be",
}


@pytest.mark.parametrize("words", WRONG, ids=str)
def test_calibrate_refuses_before_it_loads(cli, words, monkeypatch):
    monkeypatch.setattr("fewstep.samplers.backbones.load_backbone", None)
    cli("table", "--steps", 2, "--save", "other.safetensors")
    more = () if "-o" in words or not words else ("-o", "p.safetensors")
    code, out, err = cli("calibrate", *words, *more)
    assert (code, out) == (2, "") and WRONG[words] in err and err.count("\n") == 1, err


def test_other_models_need_prompts(cli, model):
    code, _, err = cli("calibrate", "-m", model, "-o", "p.safetensors")
    assert code == 2 and "none are known for tiny" in err


def test_calibration_captions_are_no_test_prompts():
    test = {prompt for kind in ("one", "two", "heldout") for prompt in prompts(kind, 1000)}
    captions = training_captions(1000, 0)
    assert not test & set(captions) and captions[:100] == training_captions(100, 0) != training_captions(100, 1)


def test_a_plot_needs_matplotlib(cli, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    code, _, err = cli("calibrate", "-o", "p.safetensors", "--plot", "p.png")
    assert code == 1 and "pip install 'fewstep[bench]'" in err
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"expected the name of a \.png file"):
        command.plottable("p.jpg")


def test_what_is_drawn(cli, model, monkeypatch):
    """With a stand-in for matplotlib: the curves are those of the report."""
    drawn = {}

    class Axes:
        def __getattr__(self, name):
            return lambda *args, **kwargs: drawn.setdefault(name, (args, kwargs))

    class Figure:
        def __init__(self, **_):
            pass

        def subplots(self):
            return Axes()

        def savefig(self, stream, **_):
            stream.write(b"a picture")

    module = types.ModuleType("matplotlib.figure")
    module.Figure = Figure
    monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    words = ("a", "b", "-m", model, *HOW, "-o", "p.safetensors", "--plot", "p.png", "--target-nfe", 6)
    report = json.loads(cli("calibrate", *words, "--format", "json")[1])
    assert Path("p.png").read_bytes() == b"a picture"
    assert drawn["plot"][0][0] == [1, 2, 3, 4]
    assert drawn["plot"][0][1] == pytest.approx([max(1 - row["gamma"][1], 1e-9) for row in report["per_step"]])
    threshold = policy_file.load("p.safetensors")[0].threshold
    assert drawn["axhline"][0][0] == pytest.approx(1 - threshold)
