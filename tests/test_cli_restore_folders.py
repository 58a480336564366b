"""``fewstep restore`` on folders that have its own pictures, or none; ``fewstep inspect`` on all that it writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli.restore_inputs import find_inputs
from fewstep.errors import ConfigError

from . import cli_runs

cli, model = cli_runs.cli, cli_runs.model
QUICK = ("--method", "stsl:K=1", "--steps", 2)


def draw(name: str | Path, seed: int = 0, side: int = 16) -> Path:
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(values).save(name)
    return Path(name)


def names(*given: Path) -> list[str]:
    return [Path(one.location).name for one in find_inputs([str(path) for path in given]).pictures]


def test_pictures_without_metadata_are_known_by_the_log(tmp_path):
    draw(tmp_path / "a.png")
    lines = []
    for seed, (name, more) in enumerate({"r.png": {"command": "restore"}, "sampled.png": {}}.items(), 1):
        digest = hashlib.sha256(draw(tmp_path / name, seed).read_bytes()).hexdigest()
        lines.append({"file": name, "sha256": digest, **more})
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    found = find_inputs([str(tmp_path)])
    assert names(tmp_path) == ["a.png", "sampled.png"] and found.passed_over == 1
    draw(tmp_path / "r.png", 9)  # another picture of that name is an input
    assert names(tmp_path) == ["a.png", "r.png", "sampled.png"]


def test_a_second_run_on_its_own_folder_restores_the_same(cli, model):
    Path("in").mkdir()
    draw("in/a.png")
    how = ("restore", "in", "-m", model, "--operator", "sr:factor=2", *QUICK, "-o", "in", "--no-metadata")
    code, out, err = cli(*how)
    assert code == 0, err
    code, again, err = cli(*how)
    assert (code, again) == (0, out) and "2 pictures that fewstep restore made are passed over" in err


def test_a_folder_without_pictures_keeps_nothing_from_being_restored(tmp_path):
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "x.png")
    found = find_inputs([str(tmp_path / "empty"), str(tmp_path / "x.png")])
    assert [Path(one.location).name for one in found.pictures] == ["x.png"]
    ((name, why),) = found.broken
    assert name == "empty" and "is a folder with no picture in it" in why
    with pytest.raises(ConfigError, match=r"^INPUT .*empty' is a folder with no picture in it"):
        find_inputs([str(tmp_path / "empty")] * 2)
    with pytest.raises(ConfigError, match=r"none of the 2 INPUTs can be read; the first: INPUT .*empty"):
        find_inputs([str(tmp_path / "empty"), str(tmp_path / "none.png")])
