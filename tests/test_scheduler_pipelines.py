"""FewstepScheduler inside every family of pipelines against the native loop over the pipeline's own denoiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fewstep.samplers import (
    DDIM,
    DiscreteVP,
    DPMpp2M,
    DPMpp3M,
    DPMpp3S,
    GeneratorTape,
    RectifiedFlow,
    SDEDPMpp2M,
    UniPC,
    edit,
    from_times,
    solve,
    trace,
    uniform_lambda,
)
from fewstep.samplers.scheduler import FewstepScheduler

from . import tiny_flow, tiny_video

TICKS = 5
SOLVERS = [DPMpp2M(), DPMpp3M(), DPMpp3S(), UniPC(3), SDEDPMpp2M()]
FLOWS = {
    "sd3": tiny_flow.sd3,
    "flux": tiny_flow.flux,
    "sana": tiny_flow.sana,
    "qwen": tiny_flow.qwen,
    "ltx": tiny_video.ltx,
    "wan": tiny_video.wan,
}
FAMILIES = {**FLOWS, "pixart": tiny_flow.pixart}
TOKENS = {"flux": 16, "qwen": 16, "ltx": 8}  # the families whose time shift depends on the image size
TOLERANCE = 1e-5  # the native loop repeats the float32 arithmetic; only the network's time may differ by a rounding


@pytest.fixture(scope="module")
def tinies():
    made = {name: make() for name, make in FAMILIES.items()}
    return made, {name: tiny.pipe.scheduler for name, tiny in made.items()}


@pytest.fixture
def family(tinies, request):
    """The family's pipeline, with the scheduler that it came with."""
    tiny = tinies[0][request.param]
    tiny.pipe.scheduler = tinies[1][request.param]
    yield request.param, tiny


every_family = pytest.mark.parametrize("family", FAMILIES, indirect=True)
every_flow = pytest.mark.parametrize("family", FLOWS, indirect=True)


def run(tiny, seed=0, **call):
    """(final latents, the denoiser's calls) of a pipeline run; a call is (arguments, keywords)."""
    calls = []
    hook = tiny.denoiser.register_forward_pre_hook(lambda m, args, kw: calls.append((args, kw)), with_kwargs=True)
    torch.manual_seed(50 + seed)  # flow pipelines pass step no generator: noise in the loop is torch's global one
    settings = {"num_inference_steps": TICKS, "generator": torch.Generator().manual_seed(seed), **tiny.call, **call}
    try:
        latents = tiny.pipe(**settings, return_dict=False)[0]
    finally:
        hook.remove()
    return latents, calls


class Replay:
    """The denoiser of a run, called with the keywords that the pipeline called it with; guidance is off."""

    def __init__(self, tiny, calls, schedule):
        self.denoiser, (self.args, self.keywords) = tiny.denoiser, calls[0]
        self.schedule, self.parametrisation = schedule, tiny.pipe.scheduler.parametrisation
        self.x = self.args[0] if self.args else self.keywords["hidden_states"]
        first = float(tiny.pipe.scheduler.timesteps[0])
        self.unit = float(self.keywords["timestep"][0]) / first  # Flux and QwenImage feed t / 1000

    def __call__(self, x, level, branches, rows=None):
        time = torch.full_like(self.keywords["timestep"], self.unit * float(level.time), dtype=torch.float32)
        given = {**self.keywords, "timestep": time}
        args = (x,) if self.args else ()
        out = self.denoiser(*args, **(given if self.args else {**given, "hidden_states": x}))[0]
        return (out[:, : x.shape[1]] if out.ndim == 4 else out,)  # PixArt: without the variance


def native_table(name, solver):
    """The run that the pipeline should make, from the formulas: TICKS ticks at most."""
    thrice = isinstance(solver, DPMpp3S)  # three ticks a step, but one from alpha = 0 and one to sigma = 0
    if name == "pixart":
        schedule = DiscreteVP.scaled_linear()
        return trace(solver, uniform_lambda(schedule, 2 if thrice else TICKS), schedule)
    schedule = RectifiedFlow(time_scale=1000.0)
    return trace(
        solver, from_times(schedule, [1000.0 * t for t in native_times(name, 3 if thrice else TICKS)]), schedule
    )


def native_times(name, n):
    shift = 3.0
    if name in TOKENS:
        shift = math.exp(0.5 + (1.15 - 0.5) * (TOKENS[name] - 256) / (4096 - 256))
    times = [shift * u / (1 + (shift - 1) * u) for u in (1 - i / n for i in range(n))]
    if name == "ltx":  # shift_terminal
        times = [1 - (1 - t) * (1 - 0.1) / (1 - times[-1]) for t in times]
    return times


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def native(name, tiny, calls, solver, seed=0, **kwargs):
    table = native_table(name, solver)
    network = Replay(tiny, calls, table.origin)
    torch.manual_seed(50 + seed)
    generator = torch.Generator().manual_seed(seed)
    tape = GeneratorTape(generator if name in ("pixart", "sana") else None)
    if tape.generator is not None:
        torch.randn(network.x.shape, generator=generator)  # the latents that the run began with
    return table, solve(table, network, network.x, tape=tape, **kwargs).x


@every_family
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_pipeline_equals_native_loop(family, solver):
    name, tiny = family
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=solver)
    latents, calls = run(tiny)
    table, expected = native(name, tiny, calls, solver)
    assert len(calls) == len(table) == len(tiny.pipe.scheduler.timesteps) <= TICKS
    difference = relative(latents, expected)
    print(f"{name} {solver}: {difference:.1e}")
    assert torch.isfinite(latents).all() and difference < TOLERANCE


@every_family
def test_the_tolerance_tells_solvers_apart(family):
    _, tiny = family
    runs = []
    for solver in SOLVERS:
        tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=solver)
        runs.append(run(tiny)[0])
    closest = min(relative(a, b) for i, a in enumerate(runs) for b in runs[:i])
    print(f"closest two: {closest:.1e}")
    assert closest > 20 * TOLERANCE


@every_flow
def test_the_network_is_told_the_time_that_is_integrated(family):
    """float32 of 1000 sigma: not rounded to a whole number, as the multistep schedulers of diffusers do."""
    name, tiny = family
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=DPMpp3M())
    _, calls = run(tiny)
    unit = 0.001 if name in ("flux", "qwen") else 1.0
    for (_, keywords), t in zip(calls, native_times(name, TICKS), strict=True):
        told = float(keywords["timestep"].flatten()[0])
        assert abs(told - 1000.0 * t * unit) <= 2e-7 * told
    assert any(abs(1000.0 * t - round(1000.0 * t)) > 0.05 for t in native_times(name, TICKS))


@pytest.mark.parametrize(
    "make",
    [*FLOWS.values(), tiny_flow.cogview4, tiny_video.mochi, tiny_video.cogvideox],
    ids=lambda make: make.__name__,
)
def test_first_order_is_what_the_pipeline_does_by_itself(make):
    """The first-order step of diffusers in the same pipeline, its time shift included."""
    tiny = make()
    if make is tiny_video.wan:
        sigmas = np.linspace(1.0, 1.0 / TICKS, TICKS)
        tiny.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        tiny.pipe.scheduler.set_timesteps = lambda n, device, s=tiny.pipe.scheduler: type(s).set_timesteps(
            s, sigmas=sigmas, device=device
        )
    if make in (tiny_flow.sd3, tiny_flow.sana):  # these pass no sigmas, and its own grid shifts the last time twice
        tiny.pipe.scheduler.sigma_min = 1.0 / TICKS
    original, before = run(tiny)
    grid = "trailing" if make is tiny_video.cogvideox else None
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=DDIM(), grid=grid)
    ours, calls = run(tiny)
    for (_, a), (_, b) in zip(before, calls, strict=True):
        torch.testing.assert_close(a["timestep"].float(), b["timestep"].float(), rtol=1e-6, atol=1e-4)
    assert relative(ours, original) < TOLERANCE


@every_flow  # PixArtSigmaPipeline has no callback_on_step_end
@pytest.mark.parametrize("solver", [UniPC(3), DPMpp3S()], ids=repr)
def test_a_callback_edits_the_latents(family, solver):
    name, tiny = family
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=solver)
    at, delta = 2, 0.5

    def callback(pipe, i, t, kwargs):
        return {"latents": kwargs["latents"] + delta} if i == at else {}

    latents, calls = run(tiny, callback_on_step_end=callback)
    table = native_table(name, solver)

    def on_tick(i, state, prediction):
        return edit(table, state, state.x + delta) if i == at else None

    expected = native(name, tiny, calls, solver, on_tick=on_tick)[1]
    assert relative(latents, expected) < TOLERANCE
    assert relative(latents, run(tiny)[0]) > 1e-3


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_a_batch_is_its_images(make):
    """Image k of a batch of two is the image alone, with a generator for each."""
    tiny = make(batch=2)
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=UniPC(3))
    both, _ = run(tiny, generator=[torch.Generator().manual_seed(k) for k in (3, 4)])
    for k, seed in enumerate((3, 4)):
        call = {n: v[k : k + 1] if isinstance(v, torch.Tensor) else v for n, v in tiny.call.items()}
        alone, _ = run(tiny._replace(call=call), seed)
        assert relative(both[k : k + 1], alone) < 1e-4  # the network's own sums depend on its batch


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_half_precision(make):
    tiny = make()
    tiny.pipe.to(torch.bfloat16)
    tiny.pipe.scheduler = FewstepScheduler.of(tiny.pipe, solver=DPMpp3M())
    call = {n: v.to(torch.bfloat16) if hasattr(v, "is_floating_point") and v.is_floating_point() else v
            for n, v in tiny.call.items()}  # fmt: skip
    latents, calls = run(tiny._replace(call=call))
    assert torch.isfinite(latents).all() and len(calls) == TICKS
