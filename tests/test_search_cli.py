"""`fewstep search`."""

import json
from pathlib import Path

import pytest

from fewstep.guidance.policy_file import load
from fewstep.guidance.searched import SearchedPolicy

from .cli_runs import cli, model  # noqa: F401

QUICK = ("--steps", 2, "--iterations", 2, "--changes", 2, "--batch-size", 2, "--held-out", 2, "--target-nfe", 3)
PROMPTS = ("one", "two", "three", "four")


def test_the_command_makes_a_policy_that_sample_takes(cli, model):  # noqa: F811
    code, out, err = cli("search", *PROMPTS, "-m", model, *QUICK, "-o", "s.safetensors", "--format", "json")
    assert code == 0, err
    told = json.loads(out)
    assert told["nfe"] == 3
    assert told["complete"]
    assert told["prompts"] == 3  # the last of the four is held out
    assert [row["choice"] for row in told["per_step"]] == told["choices"]
    assert [row["nfe"] for row in told["held_out"]] == [3, 3, 4, 2]
    assert told["held_out"][2]["error"] < told["held_out"][3]["error"]
    policy, made_for = load("s.safetensors")
    assert policy == SearchedPolicy(tuple(told["choices"]))
    assert (made_for.scale, made_for.steps, made_for.negative) == (7.5, 2, "empty")
    assert not Path("s.safetensors.checkpoint").exists()
    code, out, err = cli("sample", "one", "-m", model, "--steps", 2, "--guidance", "s.safetensors", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["images"][0]["nfe"] == 3
    code, _, err = cli("sample", "one", "-m", model, "--steps", 3, "--guidance", "s.safetensors")
    assert code == 2
    assert "2 steps" in err and "fewstep search" in err and "calibrate" not in err


def test_the_table_of_the_command(cli, model):  # noqa: F811
    code, out, err = cli(
        "search", "one", "-m", model, *QUICK, "-o", "s.safetensors", "--strengths", "5,7.5", "--gumbel", "-n", "y"
    )
    assert code == 0 and "--steps 2 --negative-prompt y --guidance" in err, err
    assert "3 of 4 evaluations an image, 25.0 % saved" in out
    assert "the same prompts with other seeds" in out
    assert "first step guided" in out
    assert len([line for line in out.splitlines() if line.split()[:1] in (["1"], ["2"])]) == 2


def test_a_cut_search_says_so_and_goes_on_with_more_time(cli, model):  # noqa: F811
    line = ("search", *PROMPTS, "-m", model, *QUICK, "-o", "s.safetensors")
    code, _, err = cli(*line, "--minutes", "1e-9")
    assert code == 0
    assert "the time was up after 0 of 2 iterations" in err
    assert Path("s.safetensors.checkpoint").exists()
    code, _, err = cli(*line)
    assert code == 0
    assert "goes on where it was interrupted" in err
    assert not Path("s.safetensors.checkpoint").exists()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("-g", 1), 0, "nothing can be gained at guidance scale 1"),
        (("--target-nfe", 2), 0, "no policy within 2 evaluations was found"),
        (("--target-nfe", 5), 2, "without any guidance it has 2, with guidance at every tick 4"),
        (("--strengths", "2,two"), 2, "expected numbers with commas"),
        (("--minutes", "nan"), 2, "--minutes must be a number above 0"),
        (("--solver", "adaptive-12"), 2, "chooses its steps while it runs"),
        (("--held-out", -1), 2, "--held-out"),
        (("--changes", -1), 2, "--changes must be a whole number"),
        (("-o", "s.png"), 2, ".safetensors"),
    ],
)
def test_what_the_command_refuses(cli, model, more, code, said):  # noqa: F811
    found, _, err = cli("search", *PROMPTS, "-m", model, *QUICK, "-o", "s.safetensors", *more)
    assert (found, said in err) == (code, True), err
    assert not Path("s.safetensors").exists()


BEFORE = {
    ("--strengths", "0.5,2"): "--strengths must be a number from 1 to 1000",
    ("--strengths", "2000"): "--strengths must be a number from 1 to 1000",
    ("--strengths", "nan"): "--strengths must be a number from 1 to 1000",
    ("--strengths", "2,2"): "--strengths must be different numbers, not 1, which every step may have anyway, got 2,2",
    ("--strengths", "1,2"): "--strengths must be different numbers",
    ("--target-nfe", "nan"): "--target-nfe must be a number above 0, got nan",
    ("--target-nfe", "1"): "--target-nfe 1 is not possible in this run",
    ("--iterations", 100_000_000_000): "--iterations must be a whole number from 0 to 100,000",
    ("--iterations", -1): "--iterations must be a whole number",
    ("--changes", -1): "--changes must be a whole number",
    ("--rate", 0): "--rate must be a number above 0, got 0",
    ("--cost-weight", "-1"): "--cost-weight must be a number above 0, got -1",
    ("--temperature", "1"): "--temperature must be two numbers",
    ("--temperature", "1,2,3"): "--temperature must be two numbers",
    ("--temperature", "1,0"): "--temperature must be a number above 0, got 0",
    ("--seed", -1): "--seed must be a whole number",
}


@pytest.mark.parametrize("more", BEFORE)
def test_what_is_refused_before_anything_is_loaded(cli, more, monkeypatch):  # noqa: F811
    monkeypatch.setattr("fewstep.samplers.backbones.load_backbone", None)
    code, out, err = cli("search", "--steps", 2, "-o", "s.safetensors", *more)
    assert (code, out) == (2, "") and err.startswith("error: " + BEFORE[more]) and err.count("\n") == 1, err


def test_the_default_target_lets_one_step_be_guided(cli, model):  # noqa: F811
    words = ("search", *PROMPTS, "-m", model, "--steps", 2, "--iterations", 1, "--changes", 2, "--held-out", 0)
    code, out, err = cli(*words, "-o", "s.safetensors", "--format", "json")
    assert code == 0 and json.loads(out)["nfe"] == 3, err
