"""``fewstep restore`` on folders that have its own pictures, or none; ``fewstep inspect`` on all that it writes; which
methods run on which models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import png
from fewstep.cli.restore_inputs import MARK, find_inputs
from fewstep.errors import ConfigError
from fewstep.inverse.named import METHODS

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


def test_inspect_knows_all_that_a_run_writes(cli, model):
    draw("a.png")
    how = ("restore", "a.png", "-m", model, "--operator", "sr:factor=2", *QUICK, "--samples", 2, "--seed", 3)
    code, out, err = cli(*how)
    files = out.split()
    assert code == 0 and len(files) == 5, err
    code, out, err = cli("inspect", *files)
    assert (code, err) == (0, "")
    assert "the mean of restored samples" in out and "3 to 4" in out and "0.25 or more" in out
    code, out, err = cli("inspect", "--format", "json", *files)
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and ["record" in one for one in told] == [True, True, False, False, False]
    assert [one["made_of_others"]["kind"] for one in told[2:]] == ["mean", "std", "side-by-side"]
    assert all(one["made_of_others"]["run"] == told[0]["record"]["run"] for one in told[2:])


def test_inspect_knows_grids(cli):
    code, out, err = cli("sample", "a red circle", "--num-images", 2, "--steps", 2, "--grid", "--quiet")
    assert code == 0, err
    code, shown, err = cli("inspect", *out.split())
    assert (code, err) == (0, "") and "a grid of 2 pictures, 2 in a row" in shown


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"kind": "mean", "run": "a", "seeds": [NaN, 1]}', '{"kind": "odd", "run": "a", "seeds": [0, 1]}',
     '{"kind": "std", "run": "a", "seeds": [0, 1], "white": "w"}', '{"kind": [], "run": "a", "seeds": [0, 1]}',
     '{"kind": "mean", "run": "a", "seeds": [0, 1, 2]}', '{"kind": "mean", "run": 1, "seeds": [0, 1]}'],
)  # fmt: skip
def test_a_mark_that_no_run_writes_is_refused_in_one_line(cli, text):
    Path("bad.png").write_bytes(png.encode(Image.new("RGB", (4, 4)), {MARK: text}))
    code, out, err = cli("inspect", "bad.png")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "bad.png has a fewstep-restore chunk" in err


def test_methods_run_where_their_help_says(cli, model):
    """On a latent model; those that say they need pixels are refused in one line."""
    draw("a.png")
    for name in ("dps", "dps-gaussian", "pigdm", "tmpd"):
        refused = "only models of pixels" in METHODS[name][2]
        assert refused == (name in ("pigdm", "tmpd"))
        how = ("--operator", "sr:factor=2", "--simulate", "--method", name, "--steps", 2, "--no-side-by-side")
        code, out, err = cli("restore", "a.png", "-m", model, *how, "--noise-std", 1)
        assert (code, len(out.split())) == ((2, 0) if refused else (0, 1)), err
