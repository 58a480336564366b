"""Files that the command line reads: prompts and models, broken in every way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fewstep.cli.model_ref import find_model
from fewstep.errors import ConfigError
from fewstep.kernels import choice
from fewstep.samplers.backbones import check_model

from . import cli_runs

cli, model = cli_runs.cli, cli_runs.model

BAD_PROMPTS = {
    None: "cannot be read",
    b"": "no prompt in it",
    b" \n\n\xef\xbb\xbf\n": "no prompt in it",
    b"\xff\xfea\0": "UTF-16 text: save it as UTF-8",
    b"\x89PNG\r\n\x1a\n\0\0": "a binary file",
    b"one\r\ntwo\r\xe9t\xe9": "(the byte 0xe9 in line 3): save it as UTF-8",
}


@pytest.mark.parametrize("content", BAD_PROMPTS)
def test_bad_prompt_files(cli, model, tmp_path, content):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    code, out, err = cli("sample", "--prompt-file", "p.txt", "-m", model)
    assert (code, out) == (2, "") and err.startswith("error: --prompt-file 'p.txt'") and BAD_PROMPTS[content] in err


@pytest.mark.parametrize(
    "name",
    [
        "stabilityai/stable-diffusion-xl-base-1.0",
        "owner/name",
        "a/b.c",
        "x.ckpt",
        "y/z.bin",
        "model.safetensors",
        "/abs/missing",
        "no such thing",
    ],
)
def test_names_of_models_mean_the_same_with_and_without_torch(name):
    def kind(find) -> str:
        try:
            return find(name)
        except ConfigError:
            return "refused"

    found = kind(lambda model: find_model(model).kind)
    assert found == kind(check_model) == ("hub" if name.split("/")[0] in ("stabilityai", "owner", "a") else "refused")


S, V, T, U = "scheduler/scheduler_config.json", "vae/config.json", "text_encoder/config.json", "unet/config.json"
BROKEN = [
    (S, {"beta_start": "x"}),
    (S, {"beta_end": 10**400}),
    (S, {"beta_end": float("nan")}),
    (S, {"trained_betas": [["a"]]}),
    (S, {"beta_schedule": {}}),
    (S, {"num_train_timesteps": 10**12}),
    (S, "[" * 100_000),
    (V, {"block_out_channels": "ab"}),
    (V, {"scaling_factor": None}),
    (V, "[" * 100_000),
    (U, {"sample_size": [1, 2, 3]}),
    (U, {"norm_num_groups": 0}),
    (T, {"num_attention_heads": 0}),
    ("model_index.json", {"unet": 3}),
    ("model_index.json", {"_class_name": []}),
]


def test_broken_models_are_bad_input(cli, model, tmp_path):
    """Whatever Python raises over them. The scheduler's config is read in a dry run already."""
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    for file, change in BROKEN:
        whole = (copy / file).read_text()
        (copy / file).write_text(change if isinstance(change, str) else json.dumps(json.loads(whole) | change))
        for dry in ([], ["--dry-run"]) if file == S else ([],):
            code, out, err = cli("sample", "x", "-m", "copy", "--steps", 1, "-q", "-H", 16, *dry)
            assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, (file, change, err)
        assert file != S or cli("table", "-m", "copy")[0] == 2
        (copy / file).write_text(whole)


@pytest.mark.parametrize("value", ("cuda", "triton"))
def test_kernels_that_cannot_run_are_bad_input_before_anything_is_loaded(cli, model, tmp_path, monkeypatch, value):
    monkeypatch.setenv(choice.VARIABLE, value)
    choice.requested.cache_clear()
    try:
        code, out, err = cli("sample", "a star", "-m", model, "-o", "new", "--device", "cpu")
    finally:
        monkeypatch.undo()
        choice.requested.cache_clear()
    assert code == 2 and not out and "error: FEWSTEP_KERNELS" in err
    assert not (tmp_path / "new").exists()


def test_the_words_of_a_model_find_it_again():
    for given in (("tiny-sd",), ("owner/name", "fp16", "v1"), ("owner/name",)):
        ref = find_model(*given)
        words = dict(zip(ref.words[::2], ref.words[1::2], strict=True))
        again = find_model(words.get("-m", "tiny-sd"), words.get("--variant"), words.get("--revision"))
        assert again == ref and bool(words) == (given != ("tiny-sd",))
