"""The metadata of restored pictures: what may be in it, and that the command it becomes is the one it came from."""

from __future__ import annotations

import json

import pytest

from fewstep.cli import inspect, record, restore_record
from fewstep.cli.init_image import InitImage
from fewstep.cli.model_ref import ModelRef
from fewstep.cli.operator_ref import find_method, find_operator
from fewstep.cli.record_check import parse
from fewstep.cli.restore_settings import Job, RestoreSettings
from fewstep.errors import ConfigError

COST = dict.fromkeys(restore_record.COSTS, 7)


def fields(**more) -> dict:
    settings = RestoreSettings(
        ModelRef("hub", "owner/name", "owner/name", revision="main"), find_operator("sr:factor=8"),
        find_method("stsl:K=2,solver=2m", 12, 3.0), 0.1, "it's",
        simulate=True, noise_seed=9, samples=3, seed=4, batch_size=2,
    ).check()  # fmt: skip
    job = Job(settings, InitImage("ab" * 32, (64, 64), "somewhere/private.png", "INPUT"))
    found = restore_record.Found(64, 48, "cpu", COST, 0.11, 1.2, psnr=20.0, commit="1f" * 20)
    return {**restore_record.record(job, job.items[1], found), **more}


def test_a_record_is_its_command():
    text = json.dumps(fields())
    told = parse(text, "a.png")
    assert told == json.loads(text) and "private" not in text
    words = record.command(told)
    options = dict(zip(words[3::2], words[4::2], strict=False))
    assert words[:3] == ["fewstep", "restore", "IMAGE-abababababab"]
    assert options["--operator"] == "sr:factor=8,filter=bicubic" and options["--noise-std"] == "0.1"
    words.remove("--simulate")
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--noise-seed"] == "9" and options["--prompt"] == "it's" and options["--revision"] == "1f" * 20
    assert (options["--seed"], options["--samples"], options["--batch-size"]) == ("4", "2", "2")
    assert "--height" not in options  # nobody asked for a size
    again = find_method(options["--method"], None, None)
    assert again == find_method("stsl:K=2,solver=2m", 12, 3.0)
    lines = inspect.describe(told)
    assert "sample 2 of 2" in lines["batch"] and "network 7 forward, 7 backward" in lines["cost"]
    assert lines["quality"] == "PSNR 20.00 dB, residual 0.1100 with noise 0.1, chi^2 1.2"
    assert record.parameters(told).startswith("it's\nSteps: 12, Sampler: fewstep restore stsl, CFG scale: 3.0, Seed: 5")


def test_a_size_that_was_asked_for_is_in_the_command():
    words = record.command(parse(json.dumps(fields(asked={"height": 64})), "a.png"))
    assert words[words.index("--height") + 1] == "64" and "--width" not in words


@pytest.mark.parametrize(
    "key, value",
    [
        ("asked", {"height": 0}),
        ("asked", {"--model": 64}),
        ("asked", {}),
        ("input", {"sha256": "../../etc"}),
        ("operator", {"name": 3}),
        ("operator", {"name": "mask", "sha256": "x"}),
        ("method", {"name": "stsl", "K": [1]}),
        ("method", {"K": 1}),
        ("method", {"name": "stsl", "\0": 1}),
        ("noise_std", -1),
        ("noise_std", True),
        ("simulate", {"noise_seed": "0"}),
        ("simulate", True),
        ("cost", {"forward": 1}),
        ("cost", {**COST, "backward": -1}),
        ("batch", {"size": 2, "row": 0, "seed": 4}),
        ("batch", {"size": 1, "row": 1}),
        ("chi2", "1"),
        ("psnr", None),
        ("residual", None),
        ("height", 10**6),
        ("model", {"name": "a"}),
        ("commit", "\0"),
    ],
)
def test_a_record_that_nothing_wrote_is_refused(key, value):
    with pytest.raises(ConfigError, match=r"a\.png has fewstep metadata in which"):
        parse(json.dumps(fields(**{key: value})), "a.png")
