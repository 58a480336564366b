"""DeltaReuse and SearchedPolicy, and policies of others that show what the seam carries: APG, CFG-Zero*, editing."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance

from fewstep.errors import ConfigError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.cfg import CFG
from fewstep.guidance.delta_reuse import DeltaReuse
from fewstep.guidance.scale import own_scale, owns_scale, with_scale
from fewstep.guidance.searched import SearchedPolicy
from fewstep.samplers import EPS, DPMpp2S, Policy, Run, Statistics, solve

from .gaussians import SCALE as W
from .gaussians import anisotropic, distance, normal, problem

STEPS = 8
IMAGES = 16
DOCS = Path(__file__).parent.parent / "docs"


def documented(name):
    """What the Python of a document defines."""
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace = {"__name__": __name__}
    exec(compile(block, name, "exec"), namespace)
    return namespace


def run(policy, *, variances=None, solver=None, steps=STEPS):
    """(result, raw guided prediction by tick, the network with its log)."""
    table, held, _ = problem(solver=solver, variances=anisotropic(5) if variances is None else variances, steps=steps)
    network, x = held(1)
    guided = {}

    def keep(i, state, p):
        weights = [w.reshape(-1, 1) if isinstance(w, torch.Tensor) else w for w in p.weights]
        guided[i] = sum(w * t for w, t in zip(weights, p.tensors, strict=True))

    return solve(table, network, x, guidance=policy, on_tick=keep), guided, network


# --- the frozen difference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stop", "evaluated"), [(0.5, 4), (0.6, 4), (0.0, 1), (0.13, 1), (1.0, 8)])
def test_delta_reuse_is_the_gate_of_fastvideo(stop, evaluated):
    """c + (w - 1) delta with the delta of the last guided step, the int(stop T)-th. E12."""
    result, guided, network = run(DeltaReuse(W, stop=stop))
    assert [set(call) for call in network.log] == [{"cond", "uncond"}] * evaluated + [{"cond"}] * (STEPS - evaluated)
    assert result.report.nfe_per_image == (STEPS + evaluated,) * IMAGES
    delta = None
    for i, call in enumerate(network.log):
        delta = call["cond"] - call["uncond"] if "uncond" in call else delta
        assert distance(guided[i], call["cond"] + (W - 1.0) * delta) < 1e-14


def test_the_gain_of_a_frozen_difference():
    gains = (9.0,) * 4 + (0.9, 0.7, 0.5, 0.0)
    _, guided, network = run(DeltaReuse(W, gain=gains))
    delta = network.log[3]["cond"] - network.log[3]["uncond"]
    for i in range(4, STEPS):
        assert distance(guided[i], network.log[i]["cond"] + (W - 1.0) * gains[i] * delta) < 1e-14
    assert torch.equal(guided[7], network.log[7]["cond"])
    assert torch.equal(run(DeltaReuse(W, gain=0.8))[0].x, run(DeltaReuse(W, gain=(0.8,) * STEPS))[0].x)


def test_delta_reuse_is_what_adaptive_guidance_does_after_a_switch():
    other = AdaptiveGuidance(threshold=2.0, scale=W, max_fraction=0.5, on_switch="delta_reuse")
    assert distance(run(DeltaReuse(W))[0].x, run(other)[0].x) < 1e-14


def test_a_step_has_one_decision():
    """Both ticks of a step of 2S are guided, or neither. Its last step, to the end of the noise, has one."""
    report = run(DeltaReuse(W), solver=DPMpp2S(), steps=6)[0].report
    assert report.nfe_per_branch == {"uncond": (6,) * IMAGES, "cond": (11,) * IMAGES}
    report = run(SearchedPolicy((W, "cond") * 3), solver=DPMpp2S(), steps=6)[0].report
    assert report.nfe_per_branch == {"uncond": (6,) * IMAGES, "cond": (11,) * IMAGES}


@pytest.mark.parametrize(
    ("scale", "rows"),
    [
        (1.0, 8),
        ((3.0,) * 4 + (1.0,) * 4, 12),
        ((3.0, 3.0, 1.0, 1.0) + (3.0,) * 4, 10),  # the difference is that of step 1
        ((0.0,) * 4 + (3.0,) * 4, 9),  # u alone, and c where the difference is taken
    ],
)
def test_delta_reuse_evaluates_what_it_reads(scale, rows):
    result, guided, network = run(DeltaReuse(scale))
    assert network.rows == IMAGES * rows
    if isinstance(scale, tuple):
        kept = max(i for i, call in enumerate(network.log) if len(call) == 2)
        delta = network.log[kept]["cond"] - network.log[kept]["uncond"]
        expected = network.log[7]["cond"] + (scale[7] - 1.0) * delta
        assert distance(guided[7], expected) < 1e-14
    else:
        assert torch.equal(result.x, run(None)[0].x)


@dataclass(frozen=True)
class Silent(Policy):
    """A policy that does not say whose scale it takes."""


def test_whose_scale_a_policy_takes():
    owned = [(CFG(3.0), 3.0), (CFG((3.0, 1.0)), (3.0, 1.0)), (SearchedPolicy((W,)), None), (Editing(1.0, 2.0), None)]
    assert [(owns_scale(p), own_scale(p)) for p, _ in owned] == [(True, scale) for _, scale in owned]
    assert not owns_scale(DeltaReuse()) and owns_scale(ZeroStar(W)) and owns_scale(with_scale(DeltaReuse(), 2.0))
    for ask in (owns_scale, lambda policy: with_scale(policy, 2.0)):
        with pytest.raises(ConfigError, match="Silent does not say whose guidance scale it takes: give it a field"):
            ask(Silent())


def test_the_caller_may_multiply():
    policy = DeltaReuse(stop=0.5, gain=0.5)
    table, _, _ = problem(steps=2)
    memory = policy.begin(Run(1, table.plan.nodes, table.plan.step, table.plan.stage, EPS, caller_scales=True))
    assert [dict(policy.weights(i, None, memory)) for i in (0, 1)] == [{"uncond": 1.0}, {"cond": 1.0, "delta": -0.5}]


# --- a choice per step ----------------------------------------------------------------------------------------------


def test_searched_policies_that_are_others():
    for choices, other in (((W,) * STEPS, CFG(W)), (("cond",) * STEPS, None), ((1.0,) * STEPS, None),
                           (("uncond",) * STEPS, CFG(0.0)), ((0.0,) * STEPS, CFG(0.0))):  # fmt: skip
        (found, _, mine), (expected, _, others) = run(SearchedPolicy(choices)), run(other)
        assert torch.equal(found.x, expected.x) and mine.rows == others.rows


def test_searched_policy():
    choices = (7.5, "cond", 2.0, "uncond", "cond", 1.0, 0.0, 0.5)
    result, guided, network = run(SearchedPolicy(choices))
    assert [len(call) for call in network.log] == [2, 1, 2, 1, 1, 1, 1, 2]
    assert result.report.nfe_per_image == (11,) * IMAGES
    for i, choice in enumerate(choices):
        call, w = network.log[i], {"cond": 1.0, "uncond": 0.0}.get(choice, choice)
        c, u = call.get("cond", 0.0), call.get("uncond", 0.0)
        assert distance(guided[i], w * c + (1.0 - w) * u) < 1e-14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SearchedPolicy(()), "one choice per step"),
        (lambda: SearchedPolicy("cond"), "one choice per step"),
        (lambda: SearchedPolicy(("cond", "cfg")), "or a guidance scale, got 'cfg'"),
        (lambda: SearchedPolicy((-1.0,)), "finite number >= 0"),
        (lambda: SearchedPolicy((float("nan"),)), "finite number >= 0"),
        (lambda: run(SearchedPolicy((W,) * 3)), "has 3 choices, one per step, and the run has 8"),
        (lambda: with_scale(SearchedPolicy((W,)), 2.0), "its own scales"),
        (lambda: run(DeltaReuse()), "has no guidance scale"),
        (lambda: DeltaReuse(W, stop=1.5), "from 0 to 1"),
        (lambda: DeltaReuse(W, stop=float("nan")), "from 0 to 1"),
        (lambda: DeltaReuse(W, gain=float("inf")), "finite number"),
        (lambda: DeltaReuse(W, gain=()), "finite number"),
        (lambda: DeltaReuse(W, gain=None), "finite number"),
        (lambda: DeltaReuse(W, gain="1"), "finite number"),
        (lambda: DeltaReuse(W, stop=None), "from 0 to 1"),
        (lambda: run(ZeroStar()), "has no guidance scale"),
        (lambda: run(DeltaReuse(W, gain=(1.0, 2.0))), "has 2 gains, one per step, and the run has 8"),
        (lambda: run(DeltaReuse((1.0,) * 4 + (3.0,) * 4)), "first 4 steps is 1"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# --- policies of others, each as small as it should be --------------------------------------------------------------


@dataclass(frozen=True)
class Projected(Policy):
    """Adaptive projected guidance: the difference with momentum, its norm capped, its part along c scaled by eta."""

    scale: float
    momentum: float
    cap: float
    eta: float

    def branches(self, i, memory):
        return {"uncond": None, "cond": None}

    def _difference(self, i):
        return {"cond": 1.0, "uncond": -1.0} | ({"average": self.momentum} if i else {})

    def statistics(self, i, memory):
        return Statistics((self._difference(i), {"cond": 1.0}))

    def weights(self, i, gram, memory):
        factor = self.scale * (self.cap / gram[:, 0, 0].sqrt()).clamp(max=1.0)
        line = {name: weight * factor for name, weight in self._difference(i).items()}
        along = gram[:, 0, 1] / gram[:, 1, 1]
        line["cond"] = line["cond"] - (1.0 - self.eta) * along * factor
        line["uncond"] = line["uncond"] + 1.0
        return line

    def remember(self, i, memory):
        return {"average": self._difference(i)}


@dataclass(frozen=True)
class Editing(Policy):
    """Three branches: u + s_I (image - u) + s_T (cond - image) in the first half, then cond alone."""

    text: float
    image: float
    stop: float = 1.0

    has_scales = True

    def _guided(self, i, memory):
        return memory.run.step[i] < int(self.stop * memory.run.steps)

    def branches(self, i, memory):
        return {"cond": None, "image": None, "uncond": None} if self._guided(i, memory) else {"cond": None}

    def weights(self, i, gram, memory):
        if not self._guided(i, memory):
            return {"cond": 1.0}
        return {"cond": self.text, "image": self.image - self.text, "uncond": 1.0 - self.image}


ZeroStar = documented("policies.md")["ZeroStar"]


def guided_by_diffusers(guider, log):
    """The guider of diffusers along the outputs of a run. Its forward passes are ours."""
    for i, call in enumerate(log):
        guider.set_state(i, len(log), torch.tensor(0.0))
        if i == 0:
            guider.prepare_inputs({})
        yield i, guider.forward(call["cond"], call.get("uncond")).pred


@pytest.mark.parametrize(("momentum", "cap", "eta"), [(-0.5, 2.5, 0.0), (0.4, 1e9, 0.3), (-0.75, 0.5, 1.0)])
def test_projected_guidance(momentum, cap, eta):
    _, guided, network = run(Projected(W, momentum, cap, eta))
    guider = AdaptiveProjectedGuidance(guidance_scale=W, adaptive_projected_guidance_momentum=momentum,
                                       adaptive_projected_guidance_rescale=cap, eta=eta)  # fmt: skip
    norms = [float((call["cond"] - call["uncond"]).norm(dim=1).max()) for call in network.log]
    assert cap == 1e9 or max(norms) > cap  # so that the cap does something
    for i, expected in guided_by_diffusers(guider, network.log):
        assert distance(guided[i], expected) < 1e-12


def test_zero_star():
    """diffusers finds the factor in float32."""
    result, guided, network = run(ZeroStar(W))
    assert [len(call) for call in network.log] == [1, *[2] * (STEPS - 1)]
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=W)
    for i, expected in guided_by_diffusers(guider, network.log):
        if i:
            assert distance(guided[i], expected) < 5 * W * 2.0**-24
        else:
            assert not expected.any() and not guided[0].any()
    assert bool(result.x.isfinite().all())


def test_three_way_editing():
    tensors = {"image": normal(IMAGES, 64, seed=7)}
    variances = anisotropic(5)

    def edit(policy, **means):
        table, held, _ = problem(variances=variances, steps=STEPS)
        network, x = held(1)
        network.variances["image"] = 0.7
        network.means |= tensors | means
        if means:
            network.variances |= dict.fromkeys(("image", "uncond"), network.variances["cond"])
        guided = []
        result = solve(table, network, x, guidance=policy, on_tick=lambda i, state, p: guided.append(p.eps))
        return result, guided, network

    result, guided, network = edit(Editing(7.5, 1.5))
    for found, out in zip(guided, network.log, strict=True):
        u = out["uncond"]
        assert distance(found, u + 7.5 * (out["cond"] - out["image"]) + 1.5 * (out["image"] - u)) < 1e-13
    assert result.report.nfe_per_image == (3 * STEPS,) * IMAGES
    assert edit(Editing(7.5, 1.5, stop=0.5))[0].report.nfe_per_image == (2 * STEPS,) * IMAGES
    same = network.means["cond"]
    alike = edit(Editing(7.5, 1.5), image=same, uncond=same)[0].x  # E15, to the rounding of folded weights
    assert distance(alike, edit(None)[0].x) < 1e-13
    assert distance(alike, result.x) > 1e-2
