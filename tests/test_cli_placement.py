"""LoRAs and offloading on the command line and in `load_backbone`. Neither peft nor a GPU is needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from fewstep.cli import png
from fewstep.cli.lora_ref import split
from fewstep.errors import ConfigError, IncompatibleError, MissingDependencyError
from fewstep.samplers.backbones import placement

from . import cli_runs

cli, model = cli_runs.cli, cli_runs.model


def refused(cli, message: str, *words: object) -> None:
    code, out, err = cli("sample", "x", *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and err.startswith("error: "), err


# ---------------------------------------------------------------- LoRAs


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:\\loras\\a.safetensors:0.5", "C:\\loras\\a.safetensors", 0.5),
        ("C:/a.safetensors", "C:/a.safetensors", 1.0),
        ("C:a.safetensors", "C:a.safetensors", 1.0),
        ("odd:name.safetensors", "odd:name.safetensors", 1.0),
        ("odd:name.safetensors:2e-1", "odd:name.safetensors", 0.2),
        ("./a:1/b.safetensors", "./a:1/b.safetensors", 1.0),
    ],
)
def test_paths_and_weights(text, path, weight):
    assert split(text) == (path, weight)


@pytest.mark.parametrize("weight", ["x", "nan", "inf", "-inf", "1e9", ""])
def test_weights_that_are_none(weight):
    with pytest.raises(ConfigError, match="the weight"):
        split(f"a.safetensors:{weight}")


def lora(name: str = "style.safetensors", key: str = "unet.a.lora_A.weight", value: float = 0.0) -> str:
    save_file({key: torch.full((1,), value)}, name)
    return name


def test_loras_are_checked_without_the_model(cli, model):
    lora()
    lora("other.safetensors", "unet.conv.weight")
    lora("copy.safetensors")
    Path("old.pt").write_bytes(b"")
    Path("cut.safetensors").write_bytes(Path("style.safetensors").read_bytes()[:20])
    for words, message in (
        (("no.safetensors",), "does not exist: expected a .safetensors file"),
        ((".",), "is a folder"),
        (("old.pt",), "is a pickled file"),
        (("cut.safetensors",), "is damaged"),
        (("other.safetensors",), "none of its 1 entries has a LoRA's name"),
        (("style.safetensors:nan",), "the weight must be a number"),
        (("style.safetensors:much",), "the weight 'much' is no number"),
        (("style.safetensors", "copy.safetensors:2"), "'copy.safetensors' was given twice"),
    ):
        refused(cli, message, "-m", model, *(word for text in words for word in ("--lora", text)))


class FakePipe:
    """What `apply_loras` calls of a pipeline, for machines without peft."""

    def __init__(self, fits: bool = True) -> None:
        self.fits, self.calls = fits, []

    def load_lora_weights(self, folder, *, weight_name, adapter_name, use_safetensors, local_files_only) -> None:
        assert use_safetensors and local_files_only and (Path(folder) / weight_name).is_file()
        self.calls.append((weight_name, adapter_name))

    def get_list_adapters(self) -> dict[str, list[str]]:
        return {"unet": [name for _, name in self.calls]} if self.fits else {}

    def set_adapters(self, names, weights) -> None:
        self.calls.append((names, weights))


def test_what_is_called_of_a_pipeline(cli, monkeypatch):
    monkeypatch.setattr("diffusers.utils.is_peft_available", lambda: True)
    pipe, files = FakePipe(), [lora("a.safetensors"), lora("b.safetensors", value=1.0)]
    placement.apply_loras(pipe, [(files[0], 1.0), (files[1], 0.5)])
    assert pipe.calls == [("a.safetensors", "lora0"), ("b.safetensors", "lora1"), (["lora0", "lora1"], [1.0, 0.5])]
    with pytest.raises(IncompatibleError, match="has no weights for this FakePipe"):
        placement.apply_loras(FakePipe(fits=False), [(files[0], 1.0)])
    with pytest.raises(ConfigError, match=r"'no\.safetensors' is no \.safetensors file that is there"):
        placement.apply_loras(pipe, [("no.safetensors", 1.0)])
    monkeypatch.setattr(pipe, "load_lora_weights", lambda *_, **__: (_ for _ in ()).throw(KeyError("a\nb")))
    with pytest.raises(ConfigError, match="could not be loaded"):
        placement.apply_loras(pipe, [(files[0], 1.0)])


@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_diffusers_reads_both_kinds_of_file_from_these_arguments(tmp_path, style):
    """As far as diffusers goes without peft: the weights of one layer, and the scale that the file has."""
    layer = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    names = {
        "peft": ("unet.down.to_q.lora_A.weight", "unet.down.to_q.lora_B.weight"),
        "kohya": (f"lora_unet_{layer}.lora_down.weight", f"lora_unet_{layer}.lora_up.weight"),
    }[style]
    entries = {name: torch.zeros(4, 4) for name in names}
    if style == "kohya":
        entries[f"lora_unet_{layer}.alpha"] = torch.tensor(2.0)
    save_file(entries, tmp_path / "a:b c.safetensors")
    pipe, seen = FakePipe(), []
    pipe.load_lora_weights = lambda folder, adapter_name, **how: seen.append((folder, how))
    pipe.get_list_adapters = lambda: {"unet": ["lora0"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.is_peft_available", lambda: True)
        placement.apply_loras(pipe, [(str(tmp_path / "a:b c.safetensors"), 1.0)])
    weights, scales = StableDiffusionPipeline.lora_state_dict(seen[0][0], **seen[0][1])
    assert len(weights) == 2 and all("lora" in name for name in weights)
    assert scales is None if style == "peft" else set(scales.values()) == {2.0}


def test_without_peft_the_line_that_installs_it(cli, model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = lora()
    code, out, err = cli("sample", "x", "-m", model, "--lora", file)
    assert (code, out) == (1, "") and err == "error: --lora needs the package peft: pip install peft\n"
    monkeypatch.undo()
    monkeypatch.setattr("diffusers.utils.is_peft_available", lambda: False)
    with pytest.raises(MissingDependencyError, match="pip install peft"):
        placement.apply_loras(FakePipe(), [(file, 1.0)])


def test_loras_are_recorded_by_name_and_digest(cli, model, monkeypatch):
    """With loading replaced: the pipeline stays as it is."""
    monkeypatch.setattr("fewstep.cli.lora_ref.check_peft", lambda: None)
    applied = []
    monkeypatch.setattr("fewstep.samplers.backbones.load.apply_loras", lambda pipe, loras: applied.append(loras))
    Path("deep").mkdir()
    file = lora("deep/style.safetensors")
    arguments = ("sample", "x", "-m", model, "--steps", 1, "--lora", f"{file}:0.25")
    path = cli(*arguments)[1].strip()
    assert applied == [[(file, 0.25)]]
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    fields = json.loads(png.read_text(Path(path)).texts["fewstep"])
    assert fields["loras"] == [{"name": "style.safetensors", "sha256": digest, "weight": 0.25}]
    assert b"deep" not in Path(path).read_bytes()
    shown = cli("inspect", path)[1]
    assert "of the LoRA style.safetensors into the command" in shown and "--lora style.safetensors:0.25" in shown
    plain = cli("sample", "x", "-m", model, "--steps", 1)[1].strip()
    assert plain != path and cli(*arguments)[2] == "made before by the same command: nothing to do\n"


# ---------------------------------------------------------------- offloading


def test_offloading_needs_a_gpu(cli, model):
    refused(cli, "with --device cpu leave it out", "-m", model, "--offload", "model", "--device", "cpu")
    refused(cli, "--offload 'disk' does not exist: expected model", "-m", model, "--offload", "disk")
    if not torch.cuda.is_available():
        refused(cli, "on the device 'cpu' there is nothing to move", "-m", model, "--offload", "model", "-q")


def test_an_offloaded_pipeline_computes_on_its_gpu():
    calls = []
    pipe = SimpleNamespace(
        unet=SimpleNamespace(device=torch.device("cpu")),
        to=lambda device: calls.append(("to", device)),
        enable_model_cpu_offload=lambda device: calls.append(("offload", device)),
        maybe_free_model_hooks=lambda: calls.append("free"),
    )
    assert placement.execution_device(pipe) == torch.device("cpu")
    placement.release(pipe)
    placement.place(pipe, torch.device("cpu"))
    placement.place(pipe, torch.device("cuda", 1), "model")
    assert calls == [("to", torch.device("cpu")), ("offload", torch.device("cuda", 1))]
    pipe._offload_device, pipe.unet._hf_hook = torch.device("cuda", 1), object()
    assert placement.execution_device(pipe) == torch.device("cuda", 1)
    placement.release(pipe)
    assert calls[-1] == "free"
    with pytest.raises(ConfigError, match="offload 'disk' does not exist"):
        placement.place(pipe, torch.device("cuda"), "disk")
