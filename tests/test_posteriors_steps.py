"""The steps of STSL and LDPS against loops by hand: guidance, solvers, where they begin."""

import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.inverse.ldps import LDPS
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import Downsample
from fewstep.inverse.problem import Problem
from fewstep.inverse.restore import restore
from fewstep.inverse.stsl import STSL
from fewstep.models import embedded
from fewstep.samplers import (
    DDIM,
    AdaptiveDPM,
    DPMpp2M,
    DPMpp2S,
    NoiseTape,
    SDEDPMpp2M,
    State,
    UniPC,
    advance,
    initial_noise,
    predict,
    renoise,
    solve,
    trace,
)
from fewstep.samplers.backbones import load_backbone
from fewstep.samplers.grids import GRIDS

from .posterior_runs import CLOSE, far, measured, pictures, tiny


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def test_guidance_is_that_of_the_text(backbone):
    """u + scale (c - u), for gradient and step: one step of LDPS by hand."""
    y, scale, zeta = measured(), 3.0, 0.3
    found = restore(backbone, y, LDPS(steps=1, zeta=zeta, guidance_scale=scale), prompt="a dog")
    s, t = GRIDS["time"](backbone.schedule, 1)
    network = backbone.encode(["a dog"] * 2, None, height=16, width=16)
    z = renoise(backbone.to_latents(y.guess().clamp(0, 1)).detach(), initial_noise((0, 1), (4, 8, 8)).double(), s)
    z.requires_grad_()
    c, u = (network(z, s, (branch,))[0] for branch in ("cond", "uncond"))
    eps = u + scale * (c - u)
    z0 = (z - s.sigma * eps) / s.alpha
    loss = (2.0 * y.residual(backbone.to_pixels(z0))).flatten(1).norm(dim=1).sum()
    z = t.alpha * z0 + t.sigma * eps - zeta * torch.autograd.grad(loss, z)[0]
    assert far(found.x, backbone.to_pixels(z).clamp(0.0, 1.0)) < CLOSE


@pytest.mark.parametrize("solver", [DDIM(), DPMpp2M(), DDIM(eta=1.0), SDEDPMpp2M()], ids=repr)
def test_without_a_data_term_it_is_the_solver(backbone, solver):
    """zeta = 0 leaves `solve` of the same solver, history and noise included."""
    y, method = measured(), LDPS(steps=4, zeta=0.0, solver=solver)
    levels = GRIDS["time"](backbone.schedule, 4)
    z = renoise(
        backbone.to_latents(y.guess().clamp(0, 1)).detach(), initial_noise((0, 1), (4, 8, 8)).double(), levels[0]
    )
    network = backbone.encode(["", ""], None, height=16, width=16)
    plain = solve(trace(solver, levels, backbone.schedule), network, z, tape=NoiseTape((0, 1)))
    assert far(restore(backbone, y, method).x, backbone.to_pixels(plain.x).detach().clamp(0.0, 1.0)) < CLOSE


@pytest.mark.parametrize("solver", [DPMpp2M(), DPMpp2S(), UniPC(), SDEDPMpp2M()], ids=repr)
def test_other_solvers(backbone, solver):
    """They run and heed the measurement; what chooses its steps while it runs is refused."""
    y = measured()
    x = restore(backbone, y, LDPS(steps=3, zeta=0.2, solver=solver)).x
    assert x.isfinite().all() and far(x, restore(backbone, y, LDPS(steps=3, zeta=0.0, solver=solver)).x) > CLOSE
    assert restore(backbone, y, STSL(steps=2, K=1, eta=0.0, solver=solver)).x.isfinite().all()
    with pytest.raises(ConfigError, match="AdaptiveDPM"):
        restore(backbone, y, LDPS(steps=3, solver=AdaptiveDPM()))


@torch.no_grad()
def test_begins(backbone):
    """Noised guess, noise alone, and the guess taken up by DDIM: by hand, seen after one step without a data term."""
    y = measured()
    s, t, end = levels = GRIDS["time"](backbone.schedule, 2)
    network = backbone.encode(["", ""], None, height=16, width=16)

    def ddim(z, s, t):
        eps = network(z, s, ("cond",))[0]
        return t.alpha * (z - s.sigma * eps) / s.alpha + t.sigma * eps

    guess, noise = backbone.to_latents(y.guess().clamp(0, 1)), initial_noise((0, 1), (4, 8, 8)).double()
    starts = {
        "noise": s.alpha * guess + s.sigma * noise,
        "gaussian": noise,
        "inversion": ddim(ddim(guess, end, t), t, s),
    }
    for init, z in starts.items():
        ticks = []
        restore(backbone, y, LDPS(steps=2, zeta=0.0, init=init), on_tick=lambda tick, ticks=ticks: ticks.append(tick))
        assert far(ticks[0].state.x, ddim(z, *levels[:2])) < CLOSE, init


def test_stsl_paper_exact():
    literal = STSL.paper_exact(zeta=3.0)
    assert literal == STSL(
        steps=50, K=5, eta=0.02, zeta=3.0, weighting="squared", probe="unit", trace_weight="constant"
    )


@pytest.mark.parametrize("probe, trace_weight", [("unit", "constant"), ("unit", "variance"), ("sigma", "constant")])
def test_stsl_is_its_formula(backbone, probe, trace_weight):
    """Two inner iterations of one step, from the loss of equation 4 in one graph, and DDIM."""
    y, eta, zeta = measured(), 5.0, 0.05
    method = STSL(steps=1, K=2, eta=eta, zeta=zeta, weighting="norm", probe=probe, trace_weight=trace_weight)
    probes = []
    normal = Problem.normal
    Problem.normal = lambda self, i, k, like: probes.append(normal(self, i, k, like)) or probes[-1]
    try:
        found = restore(backbone, y, method)
    finally:
        Problem.normal = normal
    s, t = GRIDS["time"](backbone.schedule, 1)
    network = backbone.encode(["", ""], None, height=16, width=16)
    z = renoise(backbone.to_latents(y.guess().clamp(0, 1)).detach(), initial_noise((0, 1), (4, 8, 8)).double(), s)
    delta = 1.0 if probe == "unit" else s.sigma
    weight = eta * (s.sigma**2 if trace_weight == "variance" else 1.0)
    for u in probes:
        z = z.detach().requires_grad_()
        near, far_ = (network(x, s, ("cond",))[0] for x in (z, z + delta * u))
        x = backbone.to_pixels((z - s.sigma * near) / s.alpha)
        data = (2.0 * y.residual(x)).flatten(1).norm(dim=1).sum()
        score = (-far_ + near) / s.sigma
        loss = zeta * data + weight / (256 * delta) * (u * score).sum()
        z = z - torch.autograd.grad(loss, z)[0]
    with torch.no_grad():
        eps = network(z, s, ("cond",))[0]
        z = t.alpha * (z - s.sigma * eps) / s.alpha + t.sigma * eps
        assert len(probes) == 2 and far(probes[0], probes[1]) > 1.0
        assert far(found.x, backbone.to_pixels(z).clamp(0.0, 1.0)) < CLOSE
    assert far(found.x, restore(backbone, y, STSL(steps=1, K=2, eta=0.0, zeta=zeta, weighting="norm")).x) > 1e-6


def test_stsl_without_its_second_term_is_a_first_order_loop():
    """eta = 0, bit for bit, on the embedded model in float32: K gradient steps at a fixed level, then the solver's."""
    backbone = load_backbone(str(embedded("tiny-sd")))
    for p in (*backbone.pipe.unet.parameters(), *backbone.pipe.vae.parameters()):
        p.requires_grad_(False)  # as in the run, where sums must come in the same order
    operator, steps, K, zeta = Downsample(4), 2, 2, 0.1
    x = torch.nn.functional.interpolate(pictures(1, torch.float32), scale_factor=4.0)
    y = Measurement.simulate(operator, x, 0.05, seeds=(1,))
    found = restore(backbone, y, STSL(steps=steps, K=K, eta=0.0, zeta=zeta, weighting="norm"), seeds=(3,))
    table = trace(DDIM(), GRIDS["time"](backbone.schedule, steps), backbone.schedule)
    network = backbone.encode([""], None, height=64, width=64)
    with torch.no_grad():
        noise = initial_noise((3,), (8, 8, 8))
        z = renoise(backbone.to_latents(y.guess().clamp(0.0, 1.0)), noise, table.plan.nodes[0])
    for i, level in enumerate(table.plan.nodes):
        for _ in range(K):
            z = z.detach().requires_grad_()
            x0 = predict(network.parametrisation, level, z, network(z, level, ("cond",))[0]).x0
            z0 = x0.detach().requires_grad_()
            r = y.y - operator.A(backbone.to_pixels(z0))
            (g,) = torch.autograd.grad(torch.linalg.vector_norm(r.flatten(1), dim=1).sum(), z0)
            z = z - torch.autograd.grad(x0, z, zeta * (2.0 * g))[0]
        with torch.no_grad():
            z = z.detach()
            p = predict(network.parametrisation, level, z, network(z, level, ("cond",))[0])
            z = advance(table, State(i, z), p).x
    with torch.no_grad():
        assert torch.equal(found.x, backbone.to_pixels(z).clamp(0.0, 1.0))
