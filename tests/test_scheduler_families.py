"""Every scheduler class of diffusers and every kind of model: honoured exactly, or refused by name with a reason."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import schedulers

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.samplers import FLOW, DiscreteVP, Heun, RectifiedFlow, UniPC
from fewstep.samplers.scheduler import FewstepScheduler
from fewstep.samplers.scheduler_classes import REFUSED_CLASSES
from fewstep.samplers.scheduler_pipelines import REFUSED_PIPELINES, check_pipeline
from fewstep.samplers.scheduler_schedules import PreconditionedVE

from .tiny import tiny_sd

FOLDER = Path(inspect.getfile(schedulers)).parent
PIPELINES = Path(inspect.getfile(diffusers)).parent / "pipelines"
FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "LTXEulerAncestralRF")
PRECONDITIONED = ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep")
VARIANCE_PRESERVING = (
    "CogVideoXDDIM", "CogVideoXDPM", "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep",
    "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete",
    "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "RePaint",
    "SASolver", "TCD", "UnCLIP", "UniPCMultistep",
)  # fmt: skip


def default_configs():
    """Scheduler class -> the config of its defaults, read from the source: some do not import everywhere."""
    found = {}
    for path in sorted(FOLDER.rglob("scheduling_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and "SchedulerMixin" in map(ast.unparse, node.bases):
                init = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
                names = [a.arg for a in init.args.args][-len(init.args.defaults) :] if init.args.defaults else []
                values = zip(names, init.args.defaults, strict=True)
                plain = {name: ast.literal_eval(value) for name, value in values if not computed(value)}
                found[node.name] = {"_class_name": node.name, **plain}
    return found


def computed(value):
    """Whether a default is an expression such as 1 / 3, which no class that is honoured has."""
    return any(isinstance(node, ast.BinOp | ast.Call | ast.Name | ast.Attribute) for node in ast.walk(value))


CONFIGS = default_configs()


def test_every_class_is_accounted_for():
    honoured = {name + "Scheduler" for name in (*FLOWS, *PRECONDITIONED, *VARIANCE_PRESERVING)}
    assert honoured | set(REFUSED_CLASSES) == set(CONFIGS) and not honoured & set(REFUSED_CLASSES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, inside the peers
@pytest.mark.parametrize("name", CONFIGS)
def test_default_config_of_every_class(name):
    if name in REFUSED_CLASSES:
        with pytest.raises(ConfigError, match=f"{name} cannot be replaced: .*Keep the scheduler that came with it"):
            FewstepScheduler.from_config(CONFIGS[name])
        return
    made = FewstepScheduler.from_config(CONFIGS[name])
    short = name.removesuffix("Scheduler")
    if short in FLOWS:
        assert made.schedule == RectifiedFlow(1000.0) and made.parametrisation is FLOW
    elif short in PRECONDITIONED:
        assert isinstance(made.schedule, PreconditionedVE)
    else:
        assert isinstance(made.schedule, DiscreteVP)
        peer = getattr(diffusers, name, None)
        if "dummy" not in getattr(peer, "__module__", "dummy"):
            expected = peer().alphas_cumprod.double()
            # the peer multiplies a thousand factors in float32
            ours = torch.tensor(made.schedule.alphas_cumprod, dtype=torch.float64)
            torch.testing.assert_close(ours, expected, rtol=5e-5, atol=1e-9)
    made.set_timesteps(4)
    assert FewstepScheduler.from_config(made.config).schedule == made.schedule


def test_a_loaded_config_is_known_by_its_class(tmp_path):
    """FlowMatchHeun's fields are those of a flow-map scheduler; the class that files record tells them apart."""
    for kind in (diffusers.FlowMatchHeunDiscreteScheduler, diffusers.FlowMapEulerDiscreteScheduler):
        kind(shift=3.0).save_pretrained(tmp_path / kind.__name__)
        loaded = kind.from_pretrained(tmp_path / kind.__name__).config
        if kind.__name__ in REFUSED_CLASSES:
            with pytest.raises(ConfigError, match="mean velocity"):
                FewstepScheduler.from_config(loaded)
        else:
            assert FewstepScheduler.from_config(loaded).config["shift"] == 3.0


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("zero_snr", [True, False])
def test_cogvideox(scale, zero_snr):
    peer = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=scale, rescale_betas_zero_snr=zero_snr)
    ours = torch.tensor(FewstepScheduler.from_config(peer.config).schedule.alphas_cumprod)
    torch.testing.assert_close(ours, peer.alphas_cumprod.float(), rtol=1e-5, atol=1e-7)


def test_learned_variance_is_dropped_by_the_pipeline():
    made = FewstepScheduler.from_config(diffusers.DDPMScheduler(variance_type="learned_range").config)
    assert made.config["variance_type"] == "fixed_small"  # what pipelines ask before they drop its channels


# --- pipelines that insist on their own -----------------------------------------------------------------------------

# Pipelines that test for a class of scheduler, but do the usual thing for any other.
USUAL_PATH = {
    "CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline", "ConsisIDPipeline",
    "CogView3PlusPipeline",  # arguments of CogVideoXDPMScheduler's step, else the usual step
    "EasyAnimatePipeline", "EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline",  # mu = 1, else none
    "HiDreamImagePipeline",  # no mu for UniPC, else mu
    "LongCatAudioDiTPipeline",  # puts its own class in the place of another when it is made, not when one is assigned
    "LTX2DFRPipeline",  # noise for LTXEulerAncestralRF, else the usual step
    "StableDiffusionModelEditingPipeline",  # a warning
}  # fmt: skip


def sources():
    """(text, names of the classes in it) of every pipeline file."""
    for path in PIPELINES.rglob("pipeline_*.py"):
        text = path.read_text(encoding="utf-8")
        yield text, {name for name in re.findall(r"^class (\w+)\(", text, re.M) if not name.endswith("Output")}


def test_every_test_for_a_class_is_known():
    found = {n for text, names in sources() if re.search(r"isinstance\((self\.)?scheduler,", text) for n in names}
    others = {"LEDITSCrossAttnProcessor", "LeditsAttentionStore", "LeditsGaussianSmoothing"}
    assert found - others <= USUAL_PATH | set(REFUSED_PIPELINES) and len(found) > 10


# Their scheduler classes are refused themselves.
REFUSED_WITH_THEIR_CLASS = {
    "AmusedInpaintPipeline", "DiffusionGemmaPipeline", "HeliosPyramidPipeline", "KarrasVePipeline", "LLaDA2Pipeline",
    "RFD4ProteinaPipeline", "ScoreSdeVePipeline",
}  # fmt: skip


def test_other_pipelines_use_what_the_scheduler_has():
    """Every attribute that a pipeline takes from its scheduler, every keyword that it passes to step, set_timesteps."""
    made = FewstepScheduler()
    made.set_timesteps(3)
    for text, names in sources():
        wrong = {n for n in re.findall(r"(?<![\w.])(?:self\.)?scheduler\.(\w+)", text) if not hasattr(made, n)}
        for method in (made.step, made.set_timesteps):
            calls = re.findall(rf"scheduler\.{method.__name__}\(([^()]*)\)", text)
            given = {word for call in calls for word in re.findall(r"(\w+)=", call)}
            wrong |= given - set(inspect.signature(method).parameters)
        if wrong:
            assert names & (set(REFUSED_PIPELINES) | REFUSED_WITH_THEIR_CLASS), (names, wrong)


def test_refused_pipelines_exist():
    classes = {name for _, names in sources() for name in names}
    assert not (set(REFUSED_PIPELINES) | USUAL_PATH) - classes


@pytest.mark.parametrize("name", REFUSED_PIPELINES)
def test_refused_pipelines_say_why(name):
    kind = type("MyPipeline", (type(name, (), {}),), {})
    reason, way_out = REFUSED_PIPELINES[name]
    with pytest.raises(IncompatibleError, match="MyPipeline cannot run with a fewstep scheduler: ") as refused:
        FewstepScheduler.of(kind())
    assert str(refused.value).endswith(f"{reason}; {way_out}")


def test_of_a_pipeline():
    pipe = tiny_sd()
    before = pipe.scheduler
    check_pipeline(pipe)
    made = FewstepScheduler.of(pipe, solver="unipc-3", grid="karras")
    assert pipe.scheduler is before and made.solver == UniPC(3) and made.config["grid"] == "karras"
    assert made.schedule == DiscreteVP.scaled_linear()
    pipe.scheduler = made
    assert FewstepScheduler.of(pipe, solver=Heun()).schedule == made.schedule
    for wrong in (object(), type("Empty", (), {"scheduler": None})()):
        with pytest.raises(IncompatibleError, match=r"has no scheduler with a config.*from_config"):
            FewstepScheduler.of(wrong)
