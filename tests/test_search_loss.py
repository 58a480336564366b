"""The relaxed policy search: gradients, what is recomputed for them, the loss and the candidates."""

import pytest
import torch

from fewstep.guidance.search import Pairs, SearchSettings, final_x, search
from fewstep.guidance.search_loss import Relaxation, distance_of
from fewstep.guidance.search_runs import nfe_of, relaxed, states_of, ticks_of
from fewstep.guidance.search_stages import frozen
from fewstep.guidance.searched import SearchedPolicy, scale_of
from fewstep.samplers import DPMpp2M, DPMpp2S, SDEDPMpp2M, solve

from .gaussians import normal
from .search_problems import IMAGES, STEPS, Convolutions, W, batch, prepared, table_for

# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (None, {}),
        (DPMpp2S(), {"temperature": (0.7, 0.2)}),
        (SDEDPMpp2M(), {"strengths": (2.0, 4.5)}),
        (None, {"gumbel": True, "temperature": (0.5, 0.5), "strengths": (2.0, 4.0)}),
    ],
    ids=["2M", "two ticks a step", "noise", "Gumbel"],
)
def test_the_gradient_is_that_of_finite_differences(solver, options):
    """Central ones, whose error at h = 1e-5 is h^2 times a third derivative and 1e-16 / h of rounding: below 1e-8."""
    settings = SearchSettings(W, 13.0 if solver == DPMpp2S() else 7.0, **options)
    relaxation, pairs, wanted, apart, logits = prepared(settings, solver, tape=True)

    def loss(logits):
        return relaxation.loss(logits, 4, pairs, wanted, apart, final_x, True)

    assert float(relaxation.expected_nfe(logits, 4)) > settings.target  # so that both terms have a slope
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    h = 1e-5
    for step in (0, 1, relaxation.steps - 2):
        for k in range(logits.shape[1]):
            moved = [logits.clone() for _ in range(2)]
            moved[0][step, k] += h
            moved[1][step, k] -= h
            slope = float(loss(moved[0]) - loss(moved[1])) / (2.0 * h)
            assert gradient[step, k].item() == pytest.approx(slope, rel=1e-7, abs=1e-8)
    assert float(gradient.abs().min()) > 1e-7  # all of it was worth comparing


@pytest.mark.parametrize("solver", [DPMpp2M(), DPMpp2S()], ids=["2M", "2S"])
def test_recomputing_changes_no_gradient_and_calls_the_network_twice(solver):
    table = table_for(solver)
    found = []
    for recompute in (True, False):
        pairs = batch(table, 2)
        scales = torch.linspace(0.5, 3.5, len(ticks_of(table)), dtype=torch.float64).requires_grad_()
        x = relaxed(table, pairs, scales, recompute=recompute)
        calls = len(pairs.network.log)
        (gradient,) = torch.autograd.grad(x.square().sum(), scales)
        found.append((x, gradient))
        assert calls == len(table)
        assert len(pairs.network.log) == (2 * calls if recompute else calls)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_recomputing_keeps_no_activation_of_a_network():
    """What autograd saves: with recomputing a state or two a tick, without it hundreds of tensors."""
    counts = []
    for recompute in (True, False):
        net = Convolutions()
        saved = []
        with (
            frozen([Pairs(net, torch.zeros(1))]),
            torch.autograd.graph.saved_tensors_hooks(
                lambda t, saved=saved: (saved.append(t.data_ptr()), t)[1], lambda t: t
            ),
        ):
            scales = torch.full((4,), 2.0, dtype=torch.float64).requires_grad_()
            relaxed(table_for(steps=4), Pairs(net, torch.randn(1, 4, 8, 8)), scales, recompute=recompute)
        counts.append(len(set(saved)))
    assert counts[0] < counts[1] / 5


def test_a_network_that_could_learn_is_left_as_it_was():
    net = Convolutions()
    before = {name: p.detach().clone() for name, p in net.unet.named_parameters()}
    first = next(net.unet.parameters())
    first.requires_grad_(False)
    table = table_for(steps=2)
    with frozen([Pairs(net, torch.zeros(1))]):
        assert not any(p.requires_grad for p in net.unet.parameters())
    search(table, [Pairs(net, torch.randn(1, 4, 8, 8))], SearchSettings(W, 3.0, iterations=2, refinements=1))
    assert [p.requires_grad for p in net.unet.parameters()] == [False] + [True] * (len(before) - 1)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in net.unet.named_parameters())


# --- the loss -------------------------------------------------------------------------------------------------------


def test_the_distance_is_one_without_guidance_and_none_with_all_of_it():
    settings = SearchSettings(W, 8.0, cost_weight=2.5)
    relaxation, pairs, wanted, apart, _ = prepared(settings)
    sure = [torch.zeros(STEPS, 3, dtype=torch.float64) for _ in range(3)]
    for k, logits in enumerate(sure):
        logits[:, k] = 800.0  # the others are 0 in float64
    _, none, full = (float(relaxation.loss(s, 0, pairs, wanted, apart, final_x, True)) for s in sure)
    assert none == pytest.approx(1.0 + 2.5 / STEPS * 0.01 * (STEPS - 8.0), rel=1e-13)
    assert full == pytest.approx(2.5 / STEPS * (2 * STEPS - 8.0), rel=1e-13)
    assert [float(relaxation.expected_nfe(s, 0)) for s in sure] == [STEPS, STEPS, 2 * STEPS]


def test_gumbel_noise_is_of_the_image_and_the_iteration():
    relaxation = Relaxation(table_for(), SearchSettings(W, 8.0, gumbel=True, temperature=(1.0, 0.01), iterations=11))
    logits = normal(STEPS, 3, seed=0)
    first, again, other = (relaxation.probabilities(logits, n, 200) for n in (10, 10, 9))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    # its largest entry is drawn with the softmax's probabilities: 200 x 6 draws, five standard deviations
    drawn = torch.nn.functional.one_hot(first.argmax(-1), 3).double().mean(0)
    expected = logits.softmax(-1)
    assert bool(((drawn - expected).abs() <= 5.0 * (expected * (1.0 - expected) / 200).sqrt()).all())
    assert float(first.max(-1).values.mean()) > 0.95  # cold: nearly one candidate
    assert relaxation.temperature(5) == pytest.approx(0.1)


def test_candidates_are_points_on_one_line():
    """A mixture of uncond, cond and guidance is guidance at the mean strength."""
    table = table_for()
    pairs = batch(table, 1)
    scales = [2.25, 0.5, 1.0, 3.0, 0.0, 1.5]
    plain = states_of(table, pairs, scales)[-1].x
    mixed = relaxed(table, pairs, torch.tensor(scales, dtype=torch.float64))
    assert float((plain - mixed).norm() / plain.norm()) < 1e-14


def test_a_discrete_run_is_that_of_the_policy():
    """In solve, with noise and two ticks a step; evaluations too."""
    for solver in (DPMpp2M(), DPMpp2S(), SDEDPMpp2M()):
        table = table_for(solver)
        pairs = batch(table, 4, tape=True)
        choices = (W, "cond", "uncond", 1.7, "cond", "cond")[: len(ticks_of(table))]
        result = solve(table, pairs.network, pairs.x, guidance=SearchedPolicy(choices), tape=pairs.tape)
        pairs.network.log.clear()
        x = states_of(table, pairs, [scale_of(c) for c in choices])[-1].x
        assert torch.equal(x, result.x)
        assert result.report.nfe_per_image == (nfe_of(choices, ticks_of(table)),) * IMAGES


def test_a_baseline_from_a_checkpoint_may_be_on_another_device():
    """As that of a search on a GPU is, which is read to the CPU."""
    x = normal(2, 4, seed=1).float()
    assert distance_of(x.to("meta"), x.double()).device.type == "meta"
    assert float(distance_of(x, x.double())) == 0.0
