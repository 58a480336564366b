"""The files of the command line: never half written, never lost, never made twice."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fewstep.cli import output, png
from fewstep.cli.model_ref import ModelRef
from fewstep.cli.settings import Settings

from . import cli_runs
from .cli_runs import pixels

cli, model = cli_runs.cli, cli_runs.model

TWELVE = ("--steps", 2, "--num-images", 12, "--batch-size", 4, "--solver", "sde-2m")

KILLED = """
import os, signal, sys
from fewstep.cli import output
from fewstep.cli.main import main
append, count = output.append_log, 0
def counted(path, line):
    global count
    count += 1
    if count == 7:  # after the third picture of the second batch, before its line
        with open(path, "ab") as log:
            log.write(b'{"file": "torn')
        (path.parent / (".%s.0000.part" % line["file"])).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    append(path, line)
output.append_log = counted
main(sys.argv[1:])
"""


def log(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "run.jsonl").read_text().splitlines()]


OLD = {"solver": "2m", "schedule": "lambda"}  # the defaults then


@pytest.mark.parametrize(
    ("more", "run"), [(OLD, "7c94f8f7"), ({**OLD, "steps": 7, "solver": "heun", "seed": 3, "height": 64}, "df7b052f")]
)
def test_runs_keep_their_names(more, run):
    """As version 0.1.0 called them before there were pictures to start from: its pictures are recognised still."""
    assert Settings(ModelRef("hub", "owner/name", "owner/name"), ("x",), **more).run == run


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_in_the_middle_and_resumed(cli, model, tmp_path):
    arguments = [str(a) for a in ("sample", "x", "-m", model, *TWELVE)]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, "-o", "a"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == -signal.SIGKILL
    assert run.stderr == "loading tiny ...\n" and len(run.stdout.splitlines()) == 4  # our own lines, at once
    there = {p: p.stat().st_mtime_ns for p in Path("a").glob("*.png")}
    assert len(there) == 7
    (leftover,) = Path("a").glob(".*.part")
    os.utime(leftover, (0, 0))

    code, out, err = cli(*arguments, "-o", "a")
    assert code == 0 and "7 of 12 pictures are there already" in err
    assert {p: p.stat().st_mtime_ns for p in there} == there
    assert not list(Path("a").glob(".*"))
    _, whole, _ = cli(*arguments, "-o", "b")
    assert len(set(out.split())) == len(out.split()) == 12
    for mine, theirs in zip(out.split(), whole.split(), strict=True):
        assert Path(mine).name == Path(theirs).name and np.array_equal(pixels(mine), pixels(theirs))
        assert Path(mine).read_bytes() == Path(theirs).read_bytes()
    assert sorted(line["file"] for line in log("a")) == sorted(Path(p).name for p in out.split())
    assert sorted(map(str, log("a"))) == sorted(map(str, log("b")))


def test_finished_run_does_nothing(cli, model, monkeypatch):
    arguments = ("sample", "x", "-m", model, "--steps", 1, "--num-images", 3, "--grid")
    _, first, _ = cli(*arguments)
    before = {p: p.stat().st_mtime_ns for p in Path("outputs").iterdir()}
    monkeypatch.setattr("fewstep.cli.run.load", lambda *_: pytest.fail("the model was loaded"))
    code, again, err = cli(*arguments)
    assert (code, again) == (0, first) and "nothing to do" in err
    assert {p: p.stat().st_mtime_ns for p in Path("outputs").iterdir()} == before


def test_a_missing_picture_is_made_again(cli, model):
    arguments = ("sample", "x", "-m", model, *TWELVE)
    paths = [Path(p) for p in cli(*arguments)[1].split()]
    content, others = paths[5].read_bytes(), {p: p.stat().st_mtime_ns for p in paths if p != paths[5]}
    paths[5].unlink()
    assert cli(*arguments)[0] == 0
    assert paths[5].read_bytes() == content
    assert {p: p.stat().st_mtime_ns for p in others} == others and len(log("outputs")) == 12


def test_other_commands_share_a_folder(cli, model):
    first = cli("sample", "x", "-m", model, "--steps", 1, "-o", "here")[1].strip()
    before = Path(first).read_bytes()
    for other in (["y"], ["x", "--solver", "euler"], ["x", "-n", ""], ["x", "--no-metadata"], ["x", "--batch-size", 2]):
        code, out, _ = cli("sample", *other, "-m", model, "--steps", 1, "-o", "here")
        assert code == 0 and out.strip() != first
    assert Path(first).read_bytes() == before and len(log("here")) == 6


def test_a_file_in_the_way_is_left_alone(cli, model):
    arguments = ("sample", "x", "-m", model, "--steps", 1, "--grid")
    path, grid = (Path(p) for p in cli(*arguments)[1].split())
    other = cli("sample", "y", "-m", model, "--steps", 1)[1].strip()
    for content in (b"mine", Path(other).read_bytes(), path.read_bytes()[:-5]):
        path.write_bytes(content)
        code, out, err = cli(*arguments)
        assert (code, out) == (2, "") and "is in the way" in err and path.read_bytes() == content
    path.unlink()
    grid.write_bytes(b"mine")
    assert cli(*arguments)[0] == 2 and grid.read_bytes() == b"mine" and not path.exists()


def test_one_named_file(cli, model):
    """A picture of ours is replaced, for that is what naming it means; anything else is not."""
    code, out, _ = cli("sample", "x", "-m", model, "--steps", 1, "-o", "a.png")
    assert (code, out) == (0, "a.png\n") and os.listdir() == ["a.png"]
    before = Path("a.png").stat().st_mtime_ns
    assert cli("sample", "x", "-m", model, "--steps", 1, "-o", "a.png")[0] == 0
    assert Path("a.png").stat().st_mtime_ns == before
    assert cli("sample", "y", "-m", model, "--steps", 1, "-o", "a.png")[0] == 0
    assert json.loads(png.read_text(Path("a.png")).texts["fewstep"])["prompt"] == "y"
    Path("a.png").write_bytes(b"holiday")
    code, _, err = cli("sample", "x", "-m", model, "--steps", 1, "-o", "a.png")
    assert code == 2 and "not made by fewstep" in err and Path("a.png").read_bytes() == b"holiday"


@pytest.fixture
def interruptible():
    """A background job of a shell without job control inherits that SIGINT is ignored; Python then never raises it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("failure", ["interrupted", "disk full"])
@pytest.mark.parametrize("named", [False, True])
def test_nothing_half_written(cli, model, monkeypatch, interruptible, failure, named):
    real, count = os.fsync, 0

    def fsync(fd: int) -> None:
        nonlocal count
        count += 1
        if count == (2 if named else 6):  # 1: the probe; in a folder a picture and its line are 2 each
            if failure == "interrupted":
                signal.raise_signal(signal.SIGINT)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    many = ("-o", "a.png") if named else ("--num-images", 4, "-o", "here")
    code, out, err = cli("sample", "x", "-m", model, "--steps", 1, *many)
    assert code == (130 if failure == "interrupted" else 1) and "Traceback" not in err
    assert ("interrupted with" in err) if failure == "interrupted" else ("error: the disk is full" in err)
    assert len(out.splitlines()) == (0 if named else 2)
    files = [p for p in Path().rglob("*") if p.is_file() and p.name != "run.jsonl"]
    assert len(files) == len(out.splitlines()) and not list(Path().rglob("*.part"))
    assert cli("sample", "x", "-m", model, "--steps", 1, *many)[0] == 0


def test_failed_loading_leaves_nothing(cli, model, monkeypatch):
    monkeypatch.setattr("fewstep.cli.run.load", lambda *_: (_ for _ in ()).throw(RuntimeError("a\nb")))
    code, _, err = cli("sample", "x", "-m", model, "-o", "deep/folder")
    assert code == 1 and err == "error: RuntimeError: a b (unexpected; --debug shows where)\n" and os.listdir() == []
    with pytest.raises(RuntimeError):
        cli("sample", "x", "-m", model, "-o", "deep/folder", "--debug")


def test_log_lines_are_whole(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"file": "a"}\n{"file": "b"')
    output.append_log(path, {"file": "c"})
    assert path.read_bytes() == b'{"file": "a"}\n{"file": "c"}\n'
    assert [line["file"] for line in output.read_log(path)] == ["a", "c"]
    path.write_bytes(b"[1]\nnot JSON\n\xff\n")
    assert output.read_log(path) == []
