"""``table --save`` and ``sample --table``: the run is exactly the table, and another model's table is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewstep.cli import png
from fewstep.cli.table_ref import find_table
from fewstep.samplers import Table

from . import cli_runs
from .cli_runs import pixels

cli, model = cli_runs.cli, cli_runs.model
HOW = ("--solver", "3m", "--schedule", "karras", "--steps", 3)


def save(cli, model: str, *more: object) -> str:
    """The digest of a table that is newly written to t.safetensors."""
    code, out, err = cli("table", "-m", model, *HOW, *more, "--save", "t.safetensors", "--format", "json")
    found = json.loads(out)
    assert code == 0 and found["file"] == "t.safetensors" and found["digest"] in err
    return found["digest"]


def rewrite(change) -> None:
    """t.safetensors with its metadata or entries changed by `change(marks, tensors)`."""
    with safe_open("t.safetensors", framework="pt") as file:
        marks = dict(file.metadata())
    tensors = load_file("t.safetensors")
    change(marks, tensors)
    save_file(tensors, "t.safetensors", marks)


def test_the_run_is_exactly_the_table(cli, model):
    digest = save(cli, model)
    _, plain, _ = cli("sample", "x", "-m", model, *HOW)
    _, out, _ = cli("sample", "x", "-m", model, "--table", "t.safetensors", "--format", "json")
    report = json.loads(out)
    assert report["table"] == {"name": "t.safetensors", "digest": digest} and report["steps"] == 3
    file = report["images"][0]["file"]
    assert file != plain.strip() and np.array_equal(pixels(file), pixels(plain.strip()))
    fields = json.loads(png.read_text(Path(file)).texts["fewstep"])
    assert (fields["solver"], fields["schedule"], fields["nfe"]) == ("3m", "table", 6)


def test_the_numbers_in_the_file_are_what_runs(cli, model):
    """A table that nobody's formula gives: the last prediction is halved."""
    before = save(cli, model)

    def halve(marks, tensors) -> None:
        for name in [n for n in tensors if n.startswith("row.2.")]:
            tensors[name][0] *= 0.5

    rewrite(halve)
    assert find_table("t.safetensors").digest != before
    changed = cli("sample", "x", "-m", model, "--table", "t.safetensors")[1].strip()
    assert not np.array_equal(pixels(changed), pixels(cli("sample", "x", "-m", model, *HOW)[1].strip()))


def test_the_digest_is_of_the_contents(cli, model):
    """safetensors writes metadata in an order of its own, so equal tables are files of different bytes."""
    digests = {save(cli, model) for _ in range(4)}
    assert digests == {find_table("t.safetensors").digest} and len(next(iter(digests))) == 16
    dry = cli("sample", "x", "-m", model, *HOW, "--dry-run", "--format", "json")[1]
    assert json.loads(dry)["table"]["digest"] in digests
    again = cli("sample", "x", "-m", model, "--table", "t.safetensors", "--dry-run")[1]
    assert json.loads(dry)["table"]["digest"] in again
    other = cli("sample", "x", "-m", model, "--dry-run", "--format", "json")[1]
    assert json.loads(other)["table"]["digest"] not in digests


def test_resume_and_inspect(cli, model, monkeypatch):
    save(cli, model)
    arguments = ("sample", "x", "-m", model, "--table", "t.safetensors")
    first = cli(*arguments)[1].strip()
    words = shlex.split(json.loads(cli("inspect", first, "--format", "json")[1])["command"])
    assert not {"--solver", "--schedule", "--steps"} & set(words)
    assert "put the path of the local folder tiny, of the table t.safetensors into" in cli("inspect", first)[1]
    words[words.index("--model") + 1] = model
    assert np.array_equal(pixels(cli(*words[1:], "-o", "again")[1].strip()), pixels(first))
    monkeypatch.setattr("fewstep.cli.run.load", lambda *_: pytest.fail("the model was loaded"))
    Path("t.safetensors").rename("u.safetensors")  # the name is part of the run, as a model's is
    assert cli(*arguments[:-1], "u.safetensors", "--dry-run")[0] == 0
    Path("u.safetensors").rename("t.safetensors")
    assert cli(*arguments) == (0, first + "\n", "made before by the same command: nothing to do\n")


def test_a_table_for_pictures_to_start_from(cli, model):
    from PIL import Image

    Image.new("RGB", (16, 16), "orange").save("a.png")
    save(cli, model, "--strength", 0.5)
    assert find_table("t.safetensors").steps == 3
    assert Table.load("t.safetensors").plan.nodes[0].time == 499
    image = ("sample", "x", "-m", model, "--init-image", "a.png")
    with_table = cli(*image, "--table", "t.safetensors")[1].strip()
    assert np.array_equal(pixels(with_table), pixels(cli(*image, *HOW, "--strength", 0.5)[1].strip()))
    code, _, err = cli(*image, "--table", "t.safetensors", "--strength", 0.5)
    assert code == 2 and "a table has its own" in err


def test_tables_of_other_models_are_refused(cli, model, tmp_path):
    save(cli, model)
    config = Path("scheduler/scheduler_config.json")
    for name, change, message in (
        ("v", {"prediction_type": "v_prediction"}, "saved for a model that predicts eps, and v predicts v"),
        ("flow", {"beta_end": 0.013}, "another noise schedule"),
    ):
        copy = Path(shutil.copytree(model, tmp_path / name))
        (copy / config).write_text(json.dumps(json.loads((copy / config).read_text()) | change))
        for dry in ([], ["--dry-run"]):
            code, out, err = cli("sample", "x", "-m", name, "--table", "t.safetensors", "-q", *dry)
            assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_table_that_does_not_say_for_whom_it_was_made_is_taken(cli, model):
    """As tables of Table.save do."""
    save(cli, model)
    rewrite(lambda marks, tensors: marks.pop("parametrisation"))
    assert find_table("t.safetensors").parametrisation is None
    assert cli("sample", "x", "-m", model, "--table", "t.safetensors", "--dry-run")[0] == 0


def with_table(*words: object) -> tuple[object, ...]:
    return ("--table", "t.safetensors", *words)


def test_what_contradicts_is_refused(cli, model):
    save(cli, model)
    for words, message in (
        (with_table("--steps", 4), "has 3 steps, and --steps 4 was given"),
        (with_table("--solver", "2m"), "--solver 2m and --table were both given"),
        (with_table("--schedule", "karras"), "--schedule karras and --table were both given"),
        (with_table("--nfe", 6), "--nfe 6 and --table were both given"),
        (("--table", "no.safetensors"), "does not exist"),
        (("--table", "."), "is a folder"),
    ):
        code, out, err = cli("sample", "x", "-m", model, *words)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert cli("sample", "x", "-m", model, *with_table("--steps", 3), "--dry-run")[0] == 0


def damage(marks: dict, tensors: dict, kind: str) -> None:
    if kind == "another kind":
        marks["format"] = "something else"
    elif kind == "not finite":
        tensors["row.1.1"][0, 0] = float("nan")
    elif kind == "no steps":
        del tensors["step"]
    elif kind == "future":
        marks["version"] = "99"
    elif kind == "no JSON":
        marks["table"] = "{"
    elif kind == "strange":
        marks["table"] = json.dumps({"solver": ["\x1b"], "schedule": {"kind": 3}, "keeps_edits": 1})


@pytest.mark.parametrize("kind", ["another kind", "not finite", "no steps", "future", "no JSON", "strange"])
def test_damaged_tables(cli, model, kind):
    save(cli, model)
    rewrite(lambda marks, tensors: damage(marks, tensors, kind))
    code, out, err = cli("sample", "x", "-m", model, "--table", "t.safetensors", "-q")
    assert (code, out) == (2, "") and err.startswith("error: --table") and err.count("\n") == 1


def test_where_tables_may_be_written(cli, model):
    Path("mine.safetensors").write_bytes(b"weights")
    Path("folder.safetensors").mkdir()
    for name, message in (
        ("mine.safetensors", "is in the way"),
        ("folder.safetensors", "it is a folder"),
        ("no/such/folder.safetensors", "there is no folder"),
        ("table.json", "a table is a .safetensors file"),
        ("x" * 300 + ".safetensors", "cannot be written"),
    ):
        code, out, err = cli("table", "-m", model, "--save", name)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert Path("mine.safetensors").read_bytes() == b"weights"
    save(cli, model)
    save(cli, model)  # an old table is replaced
