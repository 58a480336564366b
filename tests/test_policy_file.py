"""Policy files: what is read is what was written, or an error says why not; and what a policy was made for."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fewstep
from fewstep.errors import ConfigError, FewstepError, IncompatibleError
from fewstep.guidance import fingerprint, named, policy_file
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.interval import Interval
from fewstep.guidance.layout import table_of
from fewstep.guidance.linear import LinearAG
from fewstep.guidance.made_for import EMPTY, GIVEN, MadeFor, check
from fewstep.guidance.searched import SearchedPolicy
from fewstep.samplers import DDIM, EPS, DiscreteVP, DPMpp2M, Run, V
from fewstep.samplers.backbones import backbone_of

from .tiny import tiny_sd

TABLE = table_of(DiscreteVP.scaled_linear(), DPMpp2M(), steps=4)
FULL = MadeFor.of_table(
    TABLE, model="tiny", weights=fingerprint.Fingerprint("0" * 16, (0.1, -2.0)), prediction="eps", scale=2.5,
    negative=EMPTY, calibrated_on="7 prompts, seeds 0 to 6",
)  # fmt: skip
LINEAR = LinearAG(
    {1: {"cond@0": 1 / 3, "uncond@0": -1e-17, "cond": 0.1}, 3: {"uncond@2": 2 / 3}},
    ("cfg", "linear", "cfg", "linear"), 2.5,
)  # fmt: skip
POLICIES = (
    CFG(2.5, rescale=0.7),
    CFG((2.5, 1 / 3)),
    Interval(None, 0.1, 2 / 3, (0.5, 7.0)),
    AdaptiveGuidance(0.1 + 0.2, 2.5, "v", "next", 2, 1, 0.9, "all", "delta_reuse", True),
    DeltaReuse(2.5, 0.55, (1.0, 0.7, 0.3, 1e-9)),
    LINEAR,
    SearchedPolicy(("cond", 2.5, 1 / 3, "uncond")),
)


def for_(policy) -> MadeFor:
    return replace(FULL, space=getattr(policy, "space", None))


@pytest.fixture
def file(tmp_path):
    """The path of a policy file that is in order."""
    path = tmp_path / "p.safetensors"
    policy_file.save(LINEAR, path, FULL)
    return path


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_what_is_read_is_what_was_written(policy, tmp_path):
    policy_file.save(policy, tmp_path / "p.safetensors", for_(policy))
    found, made_for = policy_file.load(tmp_path / "p.safetensors")
    assert type(found) is type(policy) and found == policy and made_for == for_(policy)
    assert named.policy_of(tmp_path / "p.safetensors") == (policy, made_for)


def test_little_is_enough_for_a_threshold(tmp_path):
    policy_file.save(AdaptiveGuidance(), tmp_path / "p.safetensors", MadeFor())
    assert policy_file.load(tmp_path / "p.safetensors") == (AdaptiveGuidance(), MadeFor())


def rewrite(path, change) -> None:
    """The file with its header or entries changed: change(marks, policy, made_for, tensors)."""
    with safe_open(path, framework="pt") as opened:
        marks = dict(opened.metadata())
    tensors, head, told = load_file(path), json.loads(marks["policy"]), json.loads(marks["made_for"])
    change(marks, head, told, tensors)
    texts = {key: value if isinstance(value, str) else json.dumps(value)
             for key, value in (("policy", head.pop("TEXT", head)), ("made_for", told))}  # fmt: skip
    save_file(tensors, path, marks | texts)


WRONG = {
    "unknown key 'threshld'": lambda m, p, t, x: p.update(threshld=1),
    "unknown key 'run'": lambda m, p, t, x: t.update(run="no"),
    "unknown key 'extra'": lambda m, p, t, x: m.update(extra="no"),
    "lacks 'scale'": lambda m, p, t, x: p.pop("scale"),
    "lacks 'solver'": lambda m, p, t, x: t.pop("solver"),
    "scale = 'inf'": lambda m, p, t, x: p.update(
        TEXT=json.dumps(p | {"scale": 0}).replace('"scale": 0', '"scale": 1e999')
    ),
    "does not describe a policy": lambda m, p, t, x: p.update(scale=float("nan")),
    "it holds 'Policy', which is none of": lambda m, p, t, x: p.update({"class": "Policy"}),
    "has an entry 'more'": lambda m, p, t, x: x.update(more=torch.zeros(3)),
    "not finite": lambda m, p, t, x: x["tick.1"].fill_(float("nan")),
    "not float64": lambda m, p, t, x: x.update({"tick.1": x["tick.1"].float()}),
    "registers of tick 1 do not fit": lambda m, p, t, x: p["registers"]["1"].pop(),
    "registers of tick 3 do not fit": lambda m, p, t, x: p["registers"].update({"3": ["uncond@2.0"]}),
    "are of different ticks": lambda m, p, t, x: x.update({"tick.2": torch.zeros(1, dtype=torch.float64)}),
    "tick 3 cannot read 'uncond@3'": lambda m, p, t, x: p["registers"].update({"3": ["uncond@3"]}),
    "does not say for which schedule": lambda m, p, t, x: t.update(schedule=None),
    "does not say for which levels": lambda m, p, t, x: x.pop("levels"),
    "has the scale 2.5 and was calibrated with 3": lambda m, p, t, x: t.update(scale=3.0),
    "steps = '0'": lambda m, p, t, x: t.update(steps=0),
    "negative = 'maybe'": lambda m, p, t, x: t.update(negative="maybe"),
    "entry levels has the shape": lambda m, p, t, x: x.update(levels=torch.zeros(4, 2, dtype=torch.float64)),
    "no noise level": lambda m, p, t, x: x["levels"].fill_(-1.0),
    "of another kind": lambda m, p, t, x: m.update(format="fewstep-table"),
    "this fewstep reads version 1": lambda m, p, t, x: m.update(version="2"),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_files_are_refused(message, file):
    rewrite(file, WRONG[message])
    with pytest.raises(FewstepError) as caught:
        policy_file.load(file)
    assert message in str(caught.value) and str(caught.value).count("\n") == 0
    assert isinstance(caught.value, ConfigError | IncompatibleError)


def test_headers_that_cannot_be(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(ConfigError, match="there is no policy file"):
        policy_file.load(path)
    for data in (b"", b"\0" * 8, struct.pack("<Q", 1 << 30), struct.pack("<Q", 50) + b"{"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="not a usable policy file"):
            policy_file.load(path)
    with path.open("wb") as stream:  # a gigabyte that takes no room on disk
        stream.write(struct.pack("<Q", 1 << 30) + b"{")
        stream.truncate((1 << 30) + 4096)
    with pytest.raises(ConfigError, match="no sensible size"):
        policy_file.load(path)


def test_what_no_file_can_hold(tmp_path):
    class Mine(CFG):
        pass

    with pytest.raises(ConfigError, match="a policy file holds one of"):
        policy_file.save(Mine(2.0), tmp_path / "p.safetensors", MadeFor())
    with pytest.raises(ConfigError, match="a number that a file cannot hold"):
        policy_file.save(AdaptiveGuidance(float("inf")), tmp_path / "p.safetensors", MadeFor())
    assert not list(tmp_path.iterdir())


OTHERS = {
    "model": ({"weights": fingerprint.Fingerprint("0" * 16, (0.1, -2.1))}, "another model"),
    "prediction": ({"prediction": "v"}, "predicts eps, and this is v"),
    "schedule": ({"schedule": DiscreteVP.linear().describe()}, "another noise schedule"),
    "steps": ({"steps": 5}, "a run of 4 steps, and this is 5"),
    "levels": ({"levels": table_of(DiscreteVP.scaled_linear(), DDIM(), grid="karras", steps=4).plan.nodes}, "levels"),
    "solver": ({"solver": repr(DDIM())}, "the solver 2m, and this is ddim"),
    "scale": ({"scale": 3.0}, "the guidance scale 2.5, and this is 3"),
    "space": ({"space": "eps"}, "space x0, and this is eps"),
    "negative": ({"negative": GIVEN}, "without a negative prompt"),
}  # fmt: skip
CHECKED = {
    AdaptiveGuidance(0.99, 2.5): ("model", "prediction", "scale", "space"),
    SearchedPolicy(("cond", 2.5, 2.5, "cond")): tuple(OTHERS),
    DeltaReuse(2.5): ("model", "prediction", "scale", "space"),
    DeltaReuse(2.5, gain=(1.0,) * 4): ("model", "prediction", "scale", "space", "steps"),
    CFG(2.5): (),
    Interval(2.5): (),
}


@pytest.mark.parametrize("policy", [*CHECKED, LINEAR], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("what", OTHERS)
def test_what_a_policy_was_made_for(policy, what):
    made_for, (other, message) = replace(FULL, space="x0"), OTHERS[what]
    check(policy, made_for, made_for)
    check(policy, None, replace(made_for, **other))
    checked = tuple(OTHERS) if policy is LINEAR else CHECKED[policy]
    if what not in checked:
        return check(policy, made_for, replace(made_for, **other))
    with pytest.raises(IncompatibleError, match=r"(calibrate|search) again") as caught:
        check(policy, made_for, replace(made_for, **other), "p.safetensors")
    assert message in str(caught.value) and str(caught.value).startswith("p.safetensors was ")


def test_the_policy_speaks_where_the_run_does_not():
    """A saved policy whose scale or space was changed afterwards is none that was calibrated."""
    made_for, unknown = replace(FULL, space="x0"), MadeFor()
    check(AdaptiveGuidance(0.99, 2.5), made_for, unknown)
    for changed, message in ((AdaptiveGuidance(0.99, 2.0), "scale"), (AdaptiveGuidance(0.99, 2.5, "v"), "space")):
        with pytest.raises(IncompatibleError, match=message):
            check(changed, made_for, unknown)


def test_a_run_inside_a_pipeline():
    run = Run(1, TABLE.plan.nodes, TABLE.plan.step, TABLE.plan.stage, EPS)
    check(LINEAR, FULL, MadeFor.of_run(run))
    with pytest.raises(IncompatibleError, match="predicts eps"):
        check(LINEAR, FULL, MadeFor.of_run(run._replace(parametrisation=V)))
    with pytest.raises(IncompatibleError, match="another model"):
        check(LINEAR, FULL, MadeFor.of_run(run, tiny_sd()))


def test_fingerprints(tmp_path):
    pipe = tiny_sd()
    found = fingerprint.of_pipeline(pipe)
    pipe.unet.save_pretrained(tmp_path)
    assert found == fingerprint.of_folder(tmp_path) and len(found.numbers) == fingerprint.NUMBERS
    for dtype in (torch.float16, torch.bfloat16):
        assert fingerprint.of_module(pipe.unet.to(dtype)).same(found)
    pipe.unet.to(torch.float32)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.02)
    changed = fingerprint.of_pipeline(pipe)
    assert changed.digest == found.digest and not changed.same(found)
    pipe.unet.conv_in.lora = torch.nn.Linear(2, 2)
    assert fingerprint.of_pipeline(pipe).digest != found.digest
    assert fingerprint.of_module(pipe.unet.to("meta")).numbers == ()
    assert fingerprint.of_folder(tmp_path / "none") is None


def test_names():
    assert named.policy_named("cfg") == CFG()
    assert named.policy_named("AG") == named.policy_named("adaptive_guidance") == AdaptiveGuidance()
    wanted = AdaptiveGuidance(0.99, 3.0, "raw", lag=1, lower_order=True)
    assert named.policy_named("adaptive: threshold=0.99, scale = 3,space=raw,lag=1,lower_order=true") == wanted
    assert named.policy_named("interval:start=0.1,stop=0.5") == Interval(None, 0.1, 0.5)
    assert named.policy_named("delta-reuse:gain=0.5") == DeltaReuse(gain=0.5)
    assert named.canonical("Adaptive : threshold = 0.99") == "adaptive:threshold=0.99"
    assert named.policy_of(CFG(2.0)) == (CFG(2.0), None) and named.policy_of("cfg") == (CFG(), None)


BAD_NAMES = {
    "adaptve": "did you mean adaptive?",
    "nonsense": "there are cfg, adaptive, interval, delta-reuse",
    "adaptive:threshold=nan": "the threshold must be a number",
    "adaptive:threshhold=1": "guidance adaptive has no parameter 'threshhold'",
    "adaptive:threshold=x": "must be a number, got 'x'",
    "adaptive:threshold": "key=value",
    "cfg:scale=-1": "finite number >= 0",
    "cfg:scale=nan": "finite number >= 0",
    "interval:sigma=1": "has no parameter 'sigma'",
    "none.safetensors": "there is no policy file",
}


@pytest.mark.parametrize("text", BAD_NAMES)
def test_names_that_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        named.policy_of(text)
    assert BAD_NAMES[text] in str(caught.value)


def test_things_that_are_no_guidance():
    with pytest.raises(ConfigError, match="guidance must be a policy"):
        named.policy_of(7.5)


def test_sample_takes_names_and_files(tmp_path):
    pipe = tiny_sd()
    how = {"solver": "2m", "steps": 4}
    full = fewstep.sample(pipe, "x", guidance_scale=2.5, **how)
    assert torch.equal(full.images, fewstep.sample(pipe, "x", guidance="cfg:scale=2.5", **how).images)
    half = fewstep.sample(pipe, "x", guidance="interval:stop=0.5", guidance_scale=2.5, **how)
    assert half.report.nfe == 6
    backbone = backbone_of(pipe)
    made_for = replace(MadeFor.of_table(half.table), weights=fingerprint.of_pipeline(pipe), prediction="eps", scale=2.5,
                       negative=EMPTY)  # fmt: skip
    path = tmp_path / "p.safetensors"
    policy_file.save(SearchedPolicy((2.5, 2.5, "cond", "cond")), path, made_for)
    assert torch.equal(half.images, fewstep.sample(backbone, "x", guidance=path, **how).images)
    for other, message in (({"steps": 5}, "4 steps"), ({"grid": "karras"}, "levels"), ({"solver": "ddim"}, "solver"),
                           ({"negative_prompts": "y"}, "negative")):  # fmt: skip
        with pytest.raises(IncompatibleError, match=message):
            fewstep.sample(pipe, "x", guidance=str(path), **{**how, **other})
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(2.0)
    with pytest.raises(IncompatibleError, match="another model"):
        fewstep.sample(pipe, "x", guidance=path, **how)
