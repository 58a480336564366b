"""The command line at its edges: arbitrary options, hostile pictures, the embedded model, a real process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewstep.cli import png, record, shell
from fewstep.cli.load import commit_of
from fewstep.cli.main import main
from fewstep.cli.model_ref import ModelRef
from fewstep.errors import ConfigError
from fewstep.models import embedded
from fewstep.names import GRID_NAMES, SOLVER_NAMES

from . import cli_runs

cli, model = cli_runs.cli, cli_runs.model

# ---------------------------------------------------------------- arbitrary options

_NUMBERS = st.one_of(st.integers(-3, 40), st.integers(), st.floats(), st.text(max_size=4)).map(str)
_WORDS = st.text(max_size=12)
_VALUES = {
    "--steps": _NUMBERS,
    "--seed": _NUMBERS,
    "--num-images": _NUMBERS,
    "--batch-size": _NUMBERS,
    "--height": st.sampled_from(["16", "17", "0", "-2", "x"]),
    "--guidance-scale": _NUMBERS,
    "--solver": st.sampled_from((*SOLVER_NAMES, "DPM++ 2M Karras"))
    | _WORDS
    | st.builds("2m:{}={}".format, _WORDS, _NUMBERS),
    "--schedule": st.sampled_from(GRID_NAMES) | _WORDS | st.builds("karras:rho={}".format, _NUMBERS),
    "--negative-prompt": _WORDS,
    "--dtype": st.sampled_from(["float32", "bfloat16", "int8"]),
    "--device": st.sampled_from(["cpu", "cuda:7", "tpu"]) | _WORDS,
    "--output": st.sampled_from(["out", "a.png", "a.jpg"]) | _WORDS,
    "--format": st.sampled_from(["json", "human", "yaml"]),
    "--revision": _WORDS,
    "--prompt-file": _WORDS,
    "--nfe": _NUMBERS,
    "--strength": _NUMBERS,
    "--init-image": _WORDS | st.sampled_from([".", "\0"]),
    "--table": _WORDS | st.just("."),
    "--lora": _WORDS | st.builds("{}:{}".format, _WORDS, _NUMBERS),
    "--offload": st.sampled_from(["model", "none"]),
    "--config": _WORDS | st.just("."),
}
_PAIRS = st.sampled_from(sorted(_VALUES)).flatmap(lambda name: st.tuples(st.just(name), _VALUES[name]))
_FLAGS = st.sampled_from(["--grid", "--quiet", "--verbose", "--no-metadata", "--nonsense"]).map(lambda flag: (flag,))


@given(st.lists(_PAIRS | _FLAGS, max_size=4), st.lists(st.text(max_size=20), max_size=3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_options_end_in_a_traceback(model, tmp_path, options, prompts):
    out, err = io.StringIO(), io.StringIO()
    words = ["sample", "--dry-run", "-m", model, *(word for option in options for word in option), "--", *prompts]
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    assert code in (0, 2) and "Traceback" not in err.getvalue()
    if code == 2:
        assert out.getvalue() == "" and err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- hostile pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(*chunks: bytes, end: bytes = chunk(b"IEND", b""), width: int = 100_000) -> bytes:
    header = struct.pack(">IIBBBBB", width, 100_000, 8, 2, 0, 0, 0)
    return png.SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks) + end


def with_record(text: str) -> bytes:
    return picture(chunk(b"tEXt", b"fewstep\0" + text.encode("latin-1")))


HOSTILE = {
    "empty": (b"", "not a PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0" + b"0" * 99, "not a PNG"),
    "no end": (picture(end=b""), "ends in the middle"),
    "cut": (picture()[:-3], "ends in the middle"),
    "no header": (png.SIGNATURE + chunk(b"IEND", b""), "no header"),
    "wrong checksum": (picture(end=chunk(b"IEND", b"")[:-1] + b"!"), "checksum"),
    "plain": (picture(chunk(b"IDAT", b"0" * 70_000)), "no fewstep metadata"),
    "length lies": (picture(struct.pack(">I", 2**31 - 1) + b"IDAT" + b"0" * 99), "ends in the middle"),
    "huge text": (picture(chunk(b"tEXt", b"fewstep\0" + b"[" * (5 << 20))), "more than 4 MB"),
    "bomb": (picture(chunk(b"zTXt", b"fewstep\0\0" + zlib.compress(b"0" * (1 << 24)))), "no fewstep metadata"),
    "packed": (picture(chunk(b"iTXt", b"fewstep\0\1\0\0\0" + zlib.compress(b"{}"))), "no JSON"),
    "nested": (with_record("[" * 100_000), "no JSON"),
    "no JSON": (with_record("{'a': 1}"), "no JSON"),
    "not ours": (with_record("[]"), "format"),
    "future": (with_record('{"format": 99}'), "format 99;"),
    "true format": (with_record('{"format": true}'), "format True;"),
    "nested format": (with_record('{"format": ' + "[" * 400 + "]" * 400 + "}"), "format a list;"),
    "NaN": (with_record('{"format": 1, "guidance_scale": NaN}'), "no JSON"),
    "no pixels": (picture(width=0), "100000 pixels cannot be"),
    "nothing in it": (with_record('{"format": 1}'), "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_inspect_refuses(cli, tmp_path, name):
    content, message = HOSTILE[name]
    (tmp_path / "a.png").write_bytes(content)
    code, out, err = cli("inspect", "a.png")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_inspect_of_what_is_not_there(cli, tmp_path):
    assert cli("inspect", "no.png")[0] == cli("inspect", ".")[0] == cli("inspect")[0] == 2


def changed(path: Path, **fields: object) -> None:
    """Rewrite the record in a picture."""
    with Image.open(path) as image:
        info = PngInfo()
        info.add_text("fewstep", json.dumps(json.loads(image.text["fewstep"]) | fields))
        image.load()
        image.save(path, pnginfo=info)


def test_inspect_checks_types_and_escapes(cli, model):
    path = Path(cli("sample", "x", "-m", model, "--steps", 1)[1].strip())
    changed(path, prompt="\x1b[2Jboo\n\r\u202e", versions={"torch": "\x1b]0;owned\x07"})
    code, out, _ = cli("inspect", path)
    assert code == 0 and "boo" in out and not set(out) & set("\x1b\r\x07\u202e")
    assert "of other versions" in out and r" $'\x1b[2Jboo\x0a\x0d\xe2\x80\xae'" in out
    for wrong in WRONG:
        changed(path, prompt="x", versions={})
        before = path.read_bytes()
        changed(path, **wrong)
        for form in ("human", "json"):
            code, out, err = cli("inspect", path, "--format", form)
            assert (code, out) == (2, "") and "cannot be read" in err, wrong
        path.write_bytes(before)
    code, out, err = cli("inspect", "no.png", ".")
    assert code == 2 and err.count("error: ") == 2


WRONG = (
    {"steps": "3"},
    {"steps": 0},
    {"seed": True},
    {"seed": -1},
    {"width": 0},
    {"nfe": None},
    {"guidance_scale": 10**400},
    {"guidance_scale": True},
    {"prompt": "\ud800"},
    {"prompt": "a\0b"},
    {"later": "\udfff"},
    {"later": json.loads("[" * 50 + "]" * 50)},
    {"model": {"name": 3}},
    {"batch": {"size": 10**9, "row": 5}},
    {"batch": {"size": True, "row": 0}},
    {"batch": {"size": 1, "row": False}},
    {"batch": {"size": 2, "row": 0, "seed": 0, "prompts": ["other", "x"]}},
    {"batch": {"size": 2, "row": 0, "seed": False, "prompts": ["x", "x"]}},
    {"budget": 0},
    {"strength": 0},
    {"strength": True},
    {"init_image": {"sha256": "../../a"}},
    {"init_image": "a.png"},
    {"table": {"name": "t"}},
    {"table": {"name": 3, "digest": "0" * 16}},
    {"loras": []},
    {"loras": [{"name": "a", "sha256": "0" * 64}]},
    {"loras": [{"name": "a", "sha256": "0" * 64, "weight": 10**400}]},
    {"loras": [{"name": "a\0", "sha256": "0" * 64, "weight": 1}]},
    {"offload": "disk"},
)


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="cannot be read"):
        record.parse('{"format": 1, "guidance_scale": 1e999}', "a.png")


ODD = (
    "two\nlines",
    "zero\u200dwidth",
    "hard\u00a0space",
    "it's \\n $HOME !x",
    "\x1b[2J\t\x012 it's \U0001f600!\\",
    "",
    "-b",
)


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_the_printed_command_gives_the_exact_words():
    line = shell.shown(ODD)
    assert line.isprintable() and shell.exact(ODD)
    for locale in ("C", "C.UTF-8"):
        words = subprocess.run(
            ["/bin/bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True, env={"LC_ALL": locale}
        )
        assert tuple(words.stdout.decode().split("\0")[:-1]) == ODD


# ---------------------------------------------------------------- models


def test_a_hub_model_is_named_by_its_commit(cli, model, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / ("1f" * 20) / "model_index.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(snapshot))
    commit = commit_of(ModelRef("hub", "owner/name", "owner/name"))
    assert commit == "1f" * 20 and commit_of(ModelRef("folder", "tiny", model)) is None
    path = Path(cli("sample", "x", "-m", model, "--steps", 1)[1].strip())
    changed(path, commit=commit, model={"name": "owner/name", "kind": "hub", "revision": "main"})
    assert f"--model owner/name --revision {commit} " in cli("inspect", path)[1]


def test_embedded_model_by_default(cli):
    code, out, _ = cli("sample", "a red circle above a blue square", "--steps", 2)
    fields = json.loads(png.read_text(Path(out.strip())).texts["fewstep"])
    assert code == 0 and fields["model"]["name"] == "tiny-sd" and fields["model"]["kind"] == "embedded"
    assert fields["guidance_scale"] == 2.0 and (fields["width"], fields["height"]) == (64, 64)
    assert str(embedded("tiny-sd")) not in json.dumps(fields)


@pytest.mark.parametrize("words", [["a dog on a moon"], ["a red circle", "-n", "blurry dog moon"]])
def test_words_outside_the_world(cli, words):
    code, out, err = cli("sample", *words)
    assert (code, out) == (2, "") and "dog" in err and "moon" in err and err.count("\n") == 1
    tries = err.split("; try ")[1].split('"')[1::2]
    assert len(tries) == 3 and cli("sample", *tries, "--dry-run")[0] == 0


# ---------------------------------------------------------------- a real process


LIGHT = """
import json, sys
from fewstep.cli.main import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
assert not {"torch", "numpy", "diffusers", "PIL"} & set(sys.modules)
"""


def test_no_torch_where_none_is_needed(tmp_path, cli, model):
    again = ["sample", "x", "-m", model, "--steps", "1"]
    path = cli(*again)[1].strip()
    words = json.dumps([["sample", "--help"], again, ["inspect", path]])
    light = subprocess.run([sys.executable, "-c", LIGHT, words], cwd=tmp_path, capture_output=True, text=True)
    assert light.returncode == 0, light.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has other pipes")
def test_closed_pipe(tmp_path, cli, model):
    path = cli("sample", "x", "-m", model, "--steps", 1)[1].strip()
    command = [sys.executable, "-m", "fewstep", "inspect", path]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


@pytest.mark.slow
def test_help_is_quick(tmp_path):
    def seconds(*words: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return sorted(times)[2]

    base = seconds("-c", "pass")
    for words in (["--help"], ["sample", "--help"]):
        assert seconds("-m", "fewstep", *words) - base < 0.6
