"""What a restoration does to the model: flags, gradients, memory, half precision."""

import pytest
import torch

from fewstep.errors import IncompatibleError
from fewstep.inverse.ldps import LDPS
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import JPEG
from fewstep.inverse.p2l import P2L, TEXT, _with_text
from fewstep.inverse.psld import PSLD
from fewstep.inverse.restore import restore
from fewstep.inverse.stsl import STSL
from fewstep.samplers import Level

from .posterior_runs import CLOSE, METHODS, far, measured, tiny


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def modules_state(backbone):
    pipe = backbone.pipe
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    return [
        (p.requires_grad, p.grad, p.dtype, m.training, getattr(m, "gradient_checkpointing", None))
        for part in parts
        for m in part.modules()
        for p in m.parameters(recurse=False)
    ]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_model_is_as_before(backbone, checkpoint):
    """After a run, and after one that an exception ended: no gradient, flag, or checkpointing stays."""
    backbone.pipe.unet.conv_in.weight.requires_grad_(False)  # one that must not come on
    before = modules_state(backbone)
    assert any(entry[0] for entry in before) and not all(entry[0] for entry in before)
    restore(backbone, measured(), P2L(steps=2, zeta=0.2), checkpoint=checkpoint)
    assert modules_state(backbone) == before
    inside = []

    def stop(tick):
        inside.extend(p.requires_grad for p in backbone.pipe.unet.parameters())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(backbone, measured(), STSL(steps=2, K=1), checkpoint=checkpoint, on_tick=stop)
    assert modules_state(backbone) == before and inside and not any(inside)
    backbone.pipe.unet.conv_in.weight.requires_grad_(True)


def test_checkpoints_cost_time_and_change_nothing(backbone):
    """The same numbers computed twice: equal up to the order of sums, and inner layers run again."""
    layers, seen = (backbone.pipe.unet.down_blocks[0], backbone.pipe.vae.decoder.up_blocks[0]), []
    handles = [layer.resnets[0].register_forward_pre_hook(lambda *_: seen.append(1)) for layer in layers]
    y, method = measured(), LDPS(steps=2, zeta=0.2)
    plain, times = restore(backbone, y, method), len(seen)
    again = restore(backbone, y, method, checkpoint=True)
    for handle in handles:
        handle.remove()
    assert times == 2 + 3 and len(seen) == times + 2 * 2 + 2 * 2 + 1  # the last decoding has no way back
    assert far(again.x, plain.x) < CLOSE
    assert again.report.ledger == plain.report.ledger


def peak_of(backbone, method) -> int:
    """The most bytes that lived at once during a run, from the allocator's own record."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        restore(backbone, measured(), method)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("make", [lambda n: STSL(steps=n, K=1), lambda n: P2L(steps=n, zeta=0.1)], ids=["stsl", "p2l"])
def test_memory_does_not_grow_with_steps(backbone, make):
    peak_of(backbone, make(1))  # what is made once: matrices of the operator, noise tables
    few, many = peak_of(backbone, make(2)), peak_of(backbone, make(5))
    one_latent = 2 * 4 * 8 * 8 * 8
    assert few > 50 * one_latent  # the graph is in it
    assert many - few < 2 * one_latent  # three steps that each left one behind would be more


def test_a_half_precision_autoencoder_is_float32_meanwhile():
    backbone = tiny(torch.float32)
    y, method, seen = measured(dtype=torch.float32), LDPS(steps=2, zeta=0.2), []
    backbone.pipe.vae.to(torch.float16)
    half = {name: value.clone() for name, value in backbone.pipe.vae.state_dict().items()}
    result = restore(backbone, y, method, on_tick=lambda tick: seen.append(backbone.pipe.vae.dtype))
    assert seen == [torch.float32] * 2 and backbone.pipe.vae.dtype == torch.float16
    assert all(torch.equal(value, half[name]) for name, value in backbone.pipe.vae.state_dict().items())
    backbone.pipe.vae.to(torch.float32)  # of the same rounded weights
    assert torch.equal(restore(backbone, y, method).x, result.x)


@pytest.mark.parametrize(
    "method", [STSL(steps=2, K=1), *METHODS[1:2], *METHODS[3:]], ids=["stsl", "ldps", "psld", "p2l"]
)
def test_half_precision_networks(method):
    """bfloat16 networks, with and without autocast: state and residual stay float32, the picture is near."""
    backbone, y, ticks = tiny(torch.float32), measured(dtype=torch.float32), []
    exact = restore(backbone, y, method)
    backbone.pipe.to(dtype=torch.bfloat16)
    result = restore(backbone, y, method, on_tick=lambda tick: ticks.append(tick))
    backbone.pipe.to(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = restore(backbone, y, method, on_tick=lambda tick: ticks.append(tick))
    assert len(ticks) == 4
    for tick in ticks:
        assert tick.state.x.dtype == torch.float32 and tick.prediction.x0.dtype == torch.float32
        assert tick.residual.dtype == torch.float64 and tick.residual.isfinite().all()
    for x in (result.x, inside.x):
        assert x.dtype == torch.float32 and 0.0 < far(x, exact.x)
        assert float((x - exact.x).square().mean().sqrt()) < 0.1  # of [0, 1]: bfloat16 has 8 bits


@pytest.mark.parametrize("to_text", [False, True], ids=["state", "text"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_cotangents_survive_half_precision(dtype, to_text):
    """The trace term's is about 1e-6 for a picture of 512 pixels, where float16 has two digits left and then none.

    Back to the state and to the prompt's embedding, which P2L tunes. The network's own weights are those of the
    half-precision one; autocast has float32 weights and the same sums. Without the scaling float16 is wrong by more
    than a tenth.
    """
    torch.manual_seed(0)
    backbone, y = tiny(torch.float32), measured(dtype=torch.float32)

    def pulled(size: float, level: Level | None = None) -> torch.Tensor:
        problem, _ = STSL(steps=4)._pose(backbone, y, "", (0, 1))
        z = problem.normal(0, 0, torch.zeros(2, *backbone.latent_shape(16, 16)))
        cotangent = size * torch.tensor([1.0, 0.1]).view(2, 1, 1, 1) * problem.normal(0, 1, z)
        network, C = problem.network, problem.network.conditions["cond"][TEXT].float().requires_grad_()
        if to_text:
            network = _with_text(network, C)
        with backbone.for_gradients():
            level = problem.level(0) if level is None else level
            evaluation = problem.evaluate(z, level, network, leaf=C if to_text else None)
            return evaluation.pull(x0=cotangent)

    def off(found: torch.Tensor, exact: torch.Tensor) -> float:
        return float(((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).max())

    backbone.pipe.to(dtype=dtype)
    far_out = Level(999, 1e-6, 1.0)  # d x0 / d eps = -1e6, beyond what float16 holds
    found, large = pulled(1e-7), pulled(1.0, far_out)
    backbone.pipe.to(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        inside = pulled(1e-7)
    bound = 0.03 if dtype == torch.float16 else 0.1  # 11 and 8 bits through some ten layers
    assert off(found, pulled(1e-7)) < bound and off(inside, pulled(1e-7)) < bound
    assert off(large, pulled(1.0, far_out)) < bound


def test_inside_inference_mode():
    """Its tensors take no gradients; a restoration leaves it for as long as it needs to."""
    backbone, y = tiny(), measured()
    outside = restore(backbone, y, LDPS(steps=2, zeta=0.2)).x
    with torch.inference_mode():
        assert torch.equal(restore(backbone, y, LDPS(steps=2, zeta=0.2)).x, outside)


def test_an_offloaded_pipeline_is_refused(monkeypatch):
    backbone = tiny()
    monkeypatch.setattr("fewstep.samplers.backbones.placement._is_offloaded", lambda pipe: True)
    with pytest.raises(IncompatibleError, match="load it whole onto the device"):
        restore(backbone, measured(), LDPS(steps=2))


def test_what_a_method_refuses_costs_nothing(monkeypatch):
    backbone, y = tiny(), measured()
    nonlinear = Measurement(y.y, JPEG(), y.sigma_y)
    monkeypatch.setattr(type(backbone), "to_latents", None)  # whatever is spent first ends here
    with pytest.raises(IncompatibleError, match="PSLD needs a linear operator"):
        restore(backbone, nonlinear, PSLD(steps=2, init="inversion"))
