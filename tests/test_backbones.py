"""Backbones: loading from folders, hub ids and single files; pictures equal to the pipelines' own; refusals."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fewstep
from fewstep.errors import ConfigError, FewstepError, IncompatibleError
from fewstep.samplers import DDIM, EPS, V, trailing
from fewstep.samplers.backbones import backbone_of, check_model, load_backbone, read_schedule

from .ldm import single_file_state
from .tiny import tiny_ddim, tiny_sd, tiny_sdxl


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd().save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-xl"
    tiny_sdxl().save_pretrained(path, safe_serialization=True)
    return path


# ---------------------------------------------------------------- the same pictures


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("negative", [None, "blue"])
def test_sample_makes_the_pipelines_own_picture(build, scale, negative):
    """DDIM on the same times: prompts, negative prompts, sizes, guidance and decoding all agree with diffusers."""
    pipe = build(tiny_ddim(timestep_spacing="trailing", set_alpha_to_one=True, rescale_betas_zero_snr=False))
    size = 16 if build is tiny_sd else 24
    generators = [torch.Generator("cpu").manual_seed(s) for s in (5, 6)]
    peer = pipe(
        ["a red circle", "a star"],
        negative_prompt=None if negative is None else [negative] * 2,
        num_inference_steps=4,
        guidance_scale=scale,
        generator=generators,
        height=size,
        width=size,
        output_type="pt",
    ).images
    backbone = backbone_of(pipe)
    ours = fewstep.sample(
        pipe,
        ["a red circle", "a star"],
        negative_prompts=negative,
        solver=DDIM(),
        grid=trailing(backbone.schedule, 4),
        guidance_scale=scale,
        seeds=(5, 6),
        height=size,
        width=size,
    )
    assert ours.images.shape == peer.shape == (2, 3, size, size)
    assert float((ours.images - peer).abs().max()) < 2e-4
    assert ours.report.evaluations == 4 and ours.report.nfe == 2 * 4 * (2 if scale != 1 else 1)


def test_an_image_does_not_depend_on_its_batch():
    """The same noise exactly; the picture to the rounding of the network's own batched arithmetic."""
    pipe = tiny_sd()
    batch = fewstep.sample(pipe, ["a", "b", "c"], seeds=(1, 2, 3), steps=3).images
    alone = fewstep.sample(pipe, "b", seeds=(2,), steps=3).images
    assert float((batch[1:2] - alone).abs().max()) < 1e-4
    assert torch.equal(alone, fewstep.sample(pipe, "b", seeds=(2,), steps=3).images)


def test_latents_and_pixels_round_trip_in_scale():
    backbone = backbone_of(tiny_sd())
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = backbone.encode_image(images)
    pipe = backbone.pipe
    expected = pipe.vae.encode(2 * images - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.allclose(latents, expected, atol=1e-6) and latents.shape == (2, *backbone.latent_shape(16, 16))
    decoded = backbone.decode(latents)
    assert decoded.shape == images.shape and 0.0 <= float(decoded.min()) and float(decoded.max()) <= 1.0


@pytest.mark.parametrize("build", [tiny_sd, tiny_sdxl])
def test_the_network_may_be_in_bfloat16_and_its_text_encoders_in_float32(build):
    """Which the pipelines themselves refuse with an error of torch's."""
    exact = fewstep.sample(build(), "a star", steps=2).images
    pipe = build()
    pipe.unet.to(torch.bfloat16)
    mixed = fewstep.sample(pipe, "a star", steps=2).images
    assert mixed.dtype == torch.float32 and 0.0 < float((mixed - exact).norm() / exact.norm()) < 0.1


def test_a_safety_checker_that_the_pipeline_has_is_used(monkeypatch):
    pipe = tiny_sd()
    pipe.safety_checker = object()
    monkeypatch.setattr(pipe, "run_safety_checker", lambda image, device, dtype: (torch.full_like(image, -1.0), [True]))
    assert float(fewstep.sample(pipe, "x", steps=1).images.max()) == 0.0


# ---------------------------------------------------------------- loading


def test_folders_load_with_their_schedule(folder, sdxl_folder):
    backbone = load_backbone(str(folder))
    assert (backbone.family, backbone.default_size, backbone.size_multiple) == ("sd", (16, 16), 2)
    assert load_backbone(str(sdxl_folder)).family == "sdxl"
    assert read_schedule(str(folder)) == (backbone.schedule, EPS) and backbone.parametrisation == EPS
    assert load_backbone(str(folder), dtype="bfloat16").pipe.unet.dtype == torch.bfloat16


def test_v_prediction_comes_from_the_config(tmp_path):
    tiny_sd(tiny_ddim(prediction_type="v_prediction")).save_pretrained(tmp_path / "v")
    assert read_schedule(str(tmp_path / "v"))[1] == V == load_backbone(str(tmp_path / "v")).parametrisation


LOAD = """
import sys
from safetensors.torch import save_file
from fewstep.samplers.backbones import load_backbone, read_schedule
import fewstep
for model in sys.argv[2:]:
    backbone = load_backbone(model)
    assert read_schedule(model)[0] == backbone.schedule
    images = fewstep.sample(backbone, "a red circle", steps=3, guidance_scale=3.0).images
    save_file({"images": images}, sys.argv[1] + "/" + model.replace("/", "-") + ".out")
"""


def put_into_cache(home: Path, repository: str, files: dict[str, Path]) -> None:
    """What a finished download of `repository` looks like in the hub's cache."""
    base = home / "hub" / ("models--" + repository.replace("/", "--"))
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("0" * 40)
    for name, source in files.items():
        target = base / "snapshots" / ("0" * 40) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())


def test_hub_ids_and_single_files(folder, tmp_path):
    """Both in a process of their own, offline, from a hub cache laid out as a download leaves it."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    put_into_cache(tmp_path, "acme/tiny-sd", files)
    configs = {k: v for k, v in files.items() if v.suffix != ".safetensors"}
    put_into_cache(tmp_path, "stable-diffusion-v1-5/stable-diffusion-v1-5", configs)
    pipe = tiny_sd()
    save_file(single_file_state(pipe), tmp_path / "tiny.safetensors")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, str(tmp_path), "acme/tiny-sd", "tiny.safetensors"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = fewstep.sample(pipe, "a red circle", steps=3, guidance_scale=3.0).images
    for name in ("acme-tiny-sd.out", "tiny.safetensors.out"):
        found = load_file(tmp_path / name)["images"]
        assert float((found - expected).abs().max()) < 1e-4, name


# ---------------------------------------------------------------- what is refused


def refused(model, match: str, **options) -> None:
    for check in (load_backbone, read_schedule) if not options else (load_backbone,):
        with pytest.raises(FewstepError, match=match) as caught:
            check(str(model), **options)
        assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused_in_one_line(folder, tmp_path):
    refused(tmp_path, "no model_index.json")
    refused(tmp_path / "missing", "there is no model 'missing'")
    refused("no such thing", "expected a diffusers folder")
    refused("tiny-sd", "embedded models")
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps({"a": 1}))
    refused(tmp_path / "model.ckpt", "pickled checkpoint")
    refused("somewhere/else.ckpt", "pickled checkpoint")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header at all")
    refused(tmp_path / "broken.safetensors", "not a readable .safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "is no .safetensors file")


def test_hub_ids_may_have_dots():
    assert check_model("stabilityai/stable-diffusion-xl-base-1.0") == check_model("owner/name") == "hub"


@pytest.mark.parametrize(
    "change",
    [
        {"beta_start": "x"},
        {"beta_end": None},
        {"beta_end": 10**400},
        {"trained_betas": 5},
        {"num_train_timesteps": 10**9},
        {"beta_schedule": "steep"},
        {"prediction_type": "score"},
        {"thresholding": True},
    ],
)
def test_configs_that_cannot_be(folder, tmp_path, change):
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "changed"))
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(copy, next(iter(change)))


def test_damaged_folders_are_refused(folder, tmp_path):
    import shutil

    def copy(name):
        return Path(shutil.copytree(folder, tmp_path / name))

    other = copy("other")
    (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    refused(other, "FluxPipeline; supported")
    torn = copy("torn")
    (torn / "model_index.json").write_text("{")
    refused(torn, "model_index.json of the model cannot be read")
    pickled = copy("pickled")
    for file in (pickled / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    refused(pickled, "unet has only pickled weights")
    empty = copy("empty")
    for file in (empty / "vae").glob("*.safetensors"):
        file.unlink()
    refused(empty, "vae has no safetensors weights")
    short = copy("short")
    file = next((short / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    refused(short, "not a readable .safetensors")


def test_devices_and_dtypes_are_checked(folder):
    refused(folder, "cuda:99", device="cuda:99")
    refused(folder, "unknown device 'gpu'", device="gpu")
    refused(folder, "not supported", device="meta")
    refused(folder, "unknown dtype 'float8'", dtype="float8")


def test_sizes_seeds_and_scales_are_checked():
    pipe = tiny_sd()
    for options, match in [
        ({"height": 17}, "height must be a multiple of 2"),
        ({"width": 10**6}, "width must be"),
        ({"seeds": (-1,)}, "seed"),
        ({"seeds": (1, 2)}, "2 seeds for 1 prompts"),
        ({"guidance_scale": float("nan")}, "guidance scale"),
        ({"guidance_scale": float("inf")}, "guidance scale"),
        ({"guidance_scale": -1.0}, "guidance scale"),
        ({"steps": 0}, "steps"),
        ({"grid": "cosine"}, "unknown grid"),
    ]:
        with pytest.raises(ConfigError, match=match):
            fewstep.sample(pipe, "x", **options)
    with pytest.raises(ConfigError, match="no prompt"):
        fewstep.sample(pipe, [])


def test_pipelines_of_another_layout_are_refused():
    with pytest.raises(IncompatibleError, match="object is not supported"):
        backbone_of(object())
    with pytest.raises(IncompatibleError, match="inpainting"):
        fewstep.sample(tiny_sd(in_channels=9), "x")
