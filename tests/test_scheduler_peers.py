"""The whole trajectory against diffusers' own schedulers, on the same levels with the same rule for the last steps."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from fewstep.samplers import (
    DDIM,
    EPS,
    DiscreteVP,
    DPMpp2M,
    DPMpp3M,
    DPMpp3MAsReleased,
    Euler,
    Outputs,
    SDEDPMpp2M,
    UniPC,
    advance,
    from_times,
    start,
    trace,
)
from fewstep.samplers.scheduler import FewstepScheduler

from .tiny import LATENT_SHAPE, STABLE_DIFFUSION, tiny_ddim, tiny_unet

TOLERANCE = 1e-5
LATENTS = torch.randn((1, *LATENT_SHAPE), generator=torch.Generator().manual_seed(7))
TEXT = torch.randn((1, 5, 32), generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def unet():
    return tiny_unet(in_channels=4, cross_attention_dim=32, attention_head_dim=4).requires_grad_(False)


def trajectory(scheduler, network, x, **kwargs):
    """The states after every step, as a pipeline computes them."""
    states = []
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(model_input, t), t, x, return_dict=False, **kwargs)[0]
        states.append(x)
    return states


def difference(ours, theirs):
    """Greatest relative difference over the whole trajectory."""
    assert len(ours) == len(theirs)
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def like(peer, solver):
    """Our scheduler on the peer's levels bit for bit: its float32 alphas_cumprod and its timesteps, then sigma = 0."""
    ours = FewstepScheduler.from_config(peer.config, solver=solver)
    ours.schedule = DiscreteVP(tuple(peer.alphas_cumprod.tolist()))
    ours.set_timesteps(timesteps=peer.timesteps)
    assert torch.equal(ours.timesteps, peer.timesteps.float())
    return ours


def report(name, value):
    print(f"{name}: {value:.1e}")
    assert value <= TOLERANCE


def test_the_tolerance_tells_solvers_apart(unet):
    """On this network neighbouring methods differ by more than 50 times the tolerance."""
    peer = DPMSolverMultistepScheduler(**STABLE_DIFFUSION)
    peer.set_timesteps(20)
    solvers = (DPMpp2M(), DPMpp2M("taylor"), DDIM(), UniPC(2), UniPC(2, "bh1"), UniPC(3))
    runs = [trajectory(like(peer, solver), network_of(unet), LATENTS) for solver in solvers]
    closest = min(difference(a, b) for i, a in enumerate(runs) for b in runs[:i])
    print(f"closest two: {closest:.1e}")
    assert closest > 50 * TOLERANCE


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_dpm_solver_multistep(unet, steps, solver_type, prediction_type):
    peer = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION, algorithm_type="dpmsolver++", solver_order=2, solver_type=solver_type,
        prediction_type=prediction_type,
    )  # fmt: skip
    peer.set_timesteps(steps)
    ours = like(peer, DPMpp2M("midpoint" if solver_type == "midpoint" else "taylor"))
    network = network_of(unet)
    value = difference(trajectory(ours, network, LATENTS), trajectory(peer, network, LATENTS))
    report(f"2M {solver_type}, {prediction_type}, {steps} steps", value)


@pytest.mark.parametrize("steps", [10, 14])  # below 15 their orders fall at the end as ours do
def test_dpm_solver_multistep_of_order_3_as_released(unet, steps):
    peer = DPMSolverMultistepScheduler(**STABLE_DIFFUSION, algorithm_type="dpmsolver++", solver_order=3)
    peer.set_timesteps(steps)
    network = network_of(unet)
    theirs = trajectory(peer, network, LATENTS)
    report(
        f"3M as released, {steps} steps",
        difference(trajectory(like(peer, DPMpp3MAsReleased()), network, LATENTS), theirs),
    )
    assert difference(trajectory(like(peer, DPMpp3M()), network, LATENTS), theirs) > 50 * TOLERANCE


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(("order", "variant"), [(2, "bh2"), (2, "bh1"), (3, "bh2"), (3, "bh1")])
def test_unipc(unet, steps, order, variant):
    peer = UniPCMultistepScheduler(**STABLE_DIFFUSION, solver_order=order, solver_type=variant)
    peer.set_timesteps(steps)
    network = network_of(unet)
    ours = trajectory(like(peer, UniPC(order, variant)), network, LATENTS)
    report(f"UniPC-{order} {variant}, {steps} steps", difference(ours, trajectory(peer, network, LATENTS)))


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("to_zero", [True, False])
def test_ddim(unet, steps, spacing, to_zero):
    peer = tiny_ddim(set_alpha_to_one=to_zero, timestep_spacing=spacing)
    peer.set_timesteps(steps)
    network = network_of(unet)
    if to_zero:
        ours = trajectory(like(peer, DDIM()), network, LATENTS)
    else:  # the last level is that of time 0
        schedule = DiscreteVP(tuple(peer.alphas_cumprod.tolist()))
        levels = from_times(schedule, [*peer.timesteps.tolist(), 0], to_zero=False)
        table, ours = trace(DDIM(), levels, schedule), []
        state = start(table, LATENTS)
        for node in table.plan.nodes:
            state = advance(table, state, Outputs(state.x, node, (network(state.x, torch.tensor(node.time)),), EPS))
            ours.append(state.x)
    report(f"DDIM {spacing}, to zero {to_zero}, {steps} steps",
           difference(ours, trajectory(peer, network, LATENTS)))  # fmt: skip


def test_stochastic_solvers_draw_the_same_noise(unet):
    network = network_of(unet)
    ddim = tiny_ddim(set_alpha_to_one=True, timestep_spacing="trailing")
    sde = DPMSolverMultistepScheduler(**STABLE_DIFFUSION, algorithm_type="sde-dpmsolver++", solver_order=2)
    for peer, solver, extra in ((ddim, DDIM(eta=1.0), {"eta": 1.0}), (sde, SDEDPMpp2M(), {})):
        peer.set_timesteps(10)
        ours = trajectory(like(peer, solver), network, LATENTS, generator=torch.Generator().manual_seed(5))
        theirs = trajectory(peer, network, LATENTS, generator=torch.Generator().manual_seed(5), **extra)
        report(f"{solver}, 10 steps", difference(ours, theirs))


def test_euler_in_its_own_variables(unet):
    """diffusers' Euler keeps x / alpha and scales the network's input; the images are the same."""
    peer = EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
    peer.set_timesteps(10)
    ours = like(peer, Euler())
    alphas = [float(v.alpha) for v in ours.table.plan.targets]
    network = network_of(unet)
    first = LATENTS / float(ours.table.plan.nodes[0].alpha)
    theirs = [a * x for a, x in zip(alphas, trajectory(peer, network, first), strict=True)]
    report("Euler, 10 steps", difference(trajectory(ours, network, LATENTS), theirs))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler(shift):
    peer = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = FewstepScheduler.from_config(peer.config, solver=Euler())
    sigmas = [1.0 - i / 10 for i in range(10)]
    peer.set_timesteps(sigmas=sigmas)
    ours.set_timesteps(sigmas=sigmas, mu=0.7)  # pipelines pass mu even where it is not used
    assert torch.allclose(ours.timesteps, peer.timesteps, rtol=1e-6)
    assert torch.allclose(ours.sigmas, peer.sigmas, rtol=1e-6)

    def network(x, t):
        return torch.tanh(x * (1 + t / 1000)) - 0.3 * x.roll(1, -1)

    report(f"flow, shift {shift}",
           difference(trajectory(ours, network, LATENTS), trajectory(peer, network, LATENTS)))  # fmt: skip
    x0, noise = LATENTS, LATENTS.flip(-1)
    at = ours.timesteps[3:4]
    ours.set_timesteps(sigmas=sigmas)
    assert torch.allclose(ours.scale_noise(x0, at, noise), peer.scale_noise(x0, peer.timesteps[3:4], noise), atol=1e-5)


def network_of(unet):
    def network(x, t):
        return unet(x, t, encoder_hidden_states=TEXT, return_dict=False)[0]

    return network
