"""tiny-sd: the stored pipeline loads without fewstep, its autoencoder is faithful, its pictures obey the prompts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fewstep.models import DEFAULT_SCALE, EMBEDDED, embedded
from fewstep.models.captions import WORDS, prompts
from fewstep.models.checkpoint import load_checkpoint
from fewstep.models.evaluate import sample
from fewstep.models.judge import judge

PLAIN = """
import json, sys
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True, use_safetensors=True)
assert not any(m.split(".")[0] == "fewstep" for m in sys.modules)
image = pipe("a red circle above a blue square", num_inference_steps=3, output_type="np").images[0]
tokens = pipe.tokenizer("a small dog").input_ids
print(json.dumps([image.shape, str(pipe.unet.dtype), bool(image.std() > 0.01), pipe.safety_checker is None, tokens]))
"""


@pytest.fixture(scope="module")
def pipe():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(embedded("tiny-sd"), local_files_only=True, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_loads_with_plain_diffusers_where_fewstep_is_not_used(tmp_path):
    command = [sys.executable, "-I", "-c", PLAIN, str(embedded("tiny-sd"))]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stderr
    shape, dtype, alive, unchecked, tokens = json.loads(run.stdout.splitlines()[-1])
    assert shape == [64, 64, 3] and dtype == "torch.float32" and alive and unchecked and len(tokens) == 7


def test_the_folder_is_small_and_complete():
    folder = EMBEDDED["tiny-sd"]
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 12e6
    assert {f.name for f in files} >= {"LICENSE", "training.json", "vocab.json", "merges.txt", "model_index.json"}
    assert not any(f.suffix in (".bin", ".pt", ".ckpt", ".pkl") for f in files)
    record = json.loads((folder / "training.json").read_text())
    assert record["default_guidance_scale"] == DEFAULT_SCALE


def test_every_word_is_one_token(pipe):
    for word in WORDS:
        assert len(pipe.tokenizer(word).input_ids) == 3
    from transformers import CLIPTokenizer

    folder = embedded("tiny-sd") / "tokenizer"
    old_style = CLIPTokenizer(
        vocab=json.loads((folder / "vocab.json").read_text("utf-8")),
        merges=[tuple(line.split()) for line in (folder / "merges.txt").read_text("utf-8").splitlines()[1:]],
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
    )
    text = "a small red circle left of a large yellow star on a gray background, dog"
    assert old_style(text).input_ids == pipe.tokenizer(text).input_ids


def test_the_autoencoder_is_faithful(pipe):
    from fewstep.models.train_autoencoder import acceptance

    assert acceptance(pipe.vae, torch.device("cpu"), 200, seed=2) >= 0.97


def test_pictures_obey_prompts_never_trained_on(pipe):
    texts = prompts("one", 8) + prompts("two", 8) + prompts("heldout", 8)
    images = sample(pipe, texts, list(range(24)), DEFAULT_SCALE, 10)
    assert images.shape == (24, 64, 64, 3) and images.dtype == np.float32
    right = [judge(image, text).accepted for image, text in zip(images, texts, strict=True)]
    assert sum(right) >= 18, [text for text, ok in zip(texts, right, strict=True) if not ok]


def test_same_seed_same_picture_whatever_the_batch(pipe):
    texts = prompts("two", 3)
    together = sample(pipe, texts, [5, 6, 7], DEFAULT_SCALE, 4)
    alone = sample(pipe, texts[1:2], [6], DEFAULT_SCALE, 4)
    assert np.abs(together[1] - alone[0]).max() < 1e-3


@pytest.mark.slow
def test_training_runs_resumes_and_writes_a_pipeline(tmp_path):
    def run(module, *options):
        command = [sys.executable, "-m", f"fewstep.models.{module}", "--device", "cpu", *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    vae, net = tmp_path / "vae", tmp_path / "net"
    run("train_autoencoder", "--minutes", 0.05, "--scenes", 200, "--out", vae)
    lines = run("train_autoencoder", "--minutes", 0.1, "--scenes", 200, "--out", vae, "--resume")
    assert lines[0]["step"] > 0 and lines[-1]["event"] == "end"
    options = ("--vae", vae / "vae", "--out", net, "--scenes", 200, "--images", 2, "--text-minutes", 0.05)
    run("train_tiny_sd", *options, "--minutes", 0.05)
    lines = run("train_tiny_sd", *options, "--minutes", 0.1, "--resume")
    assert set(lines[-1]["accepted"]) == {"one", "two", "heldout"}
    saved = load_checkpoint(net / "checkpoint.safetensors", torch.device("cpu"))
    assert saved["used"] >= 6 and (net / "pipeline" / "model_index.json").is_file()
