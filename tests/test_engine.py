"""The loop refuses what would be silently wrong, on any device and with any weights."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.errors import IncompatibleError
from fewstep.kernels.ops import combine
from fewstep.samplers import (
    EDM,
    EPS,
    DPMpp2M,
    LinearVP,
    Outputs,
    State,
    advance,
    edm,
    initial_noise,
    solve,
    start,
    trace,
    uniform_lambda,
)

from .problems import Mixture
from .solver_rows import states

VP = LinearVP()
TABLE = trace(DPMpp2M(), uniform_lambda(VP, 5), VP)


class Returns:
    """A network that returns what it is told to."""

    schedule, parametrisation = VP, EPS

    def __init__(self, make):
        self.make = make

    def __call__(self, x, level, branches, rows=None):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x, "got Tensor"),
        (lambda x: (x, x), "got 2 tensors"),
        (lambda x: (), "got 0 tensors"),
        (lambda x: [x], "got list"),
        (lambda x: (x[:, :1],), r"shape \(2, 1\)"),
    ],
)
def test_networks_that_return_something_else(make, message):
    with pytest.raises(IncompatibleError, match=message):
        solve(TABLE, Returns(make), states(2, 3))


def test_tables_of_another_schedule():
    with pytest.raises(IncompatibleError, match="another noise schedule"):
        solve(TABLE, Mixture(EDM()), states(2, 3))
    assert solve(TABLE, Mixture(LinearVP()), states(2, 3)).x.isfinite().all()  # an equal one is the same one


def test_on_tick_returns_a_state_or_nothing():
    x = states(2, 3)
    for wrong in (x, State(7, x)):
        with pytest.raises(IncompatibleError, match="on_tick must return"):
            solve(TABLE, Mixture(VP), x, on_tick=lambda *_, wrong=wrong: wrong)
    seen = []
    plain = solve(TABLE, Mixture(VP), x, on_tick=lambda i, s, p: seen.append((i, s.tick, p.x0.shape)))
    assert [tick for _, tick, _ in seen] == [1, 2, 3, 4, 5] and torch.equal(plain.x, solve(TABLE, Mixture(VP), x).x)


def test_weights_and_outputs_must_be_as_many():
    x = states(2, 3)
    with pytest.raises(IncompatibleError, match="2 outputs cannot have 1 weights"):
        advance(TABLE, start(TABLE, x), Outputs(x, TABLE.plan.nodes[0], (x, x), EPS))


def test_a_branch_of_weight_zero_is_never_read():
    """Per image: NaN in an output whose weight is 0 for that image reaches neither the state nor the prediction."""
    x, level = states(2, 3), TABLE.plan.nodes[0]
    good = Mixture(VP)(x, level, ("cond",))[0]
    stale = torch.full_like(good, math.nan)
    weights = (torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
    outputs = Outputs(x, level, (stale, good), EPS, weights)
    alone = Outputs(x, level, (good,), EPS)
    for found, expected in ((outputs.x0, alone.x0), (outputs.eps, alone.eps)):
        assert torch.allclose(found, expected, rtol=1e-12)
    ends = [advance(TABLE, start(TABLE, x), o).x for o in (outputs, alone)]
    assert torch.allclose(*ends, rtol=1e-12)


def test_the_gradient_of_a_zero_coefficient_is_no_nan():
    C = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    registers = torch.full((1, 3), math.nan, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    combine(C, registers)[0].sum().backward()
    assert C.grad.tolist() == [[[0.0, 3.0]]]


def test_a_learned_weight_keeps_its_gradient():
    x, level = states(2, 3), TABLE.plan.nodes[0]
    u, c = (Mixture(VP, weights=w)(x, level, ("cond",))[0] for w in ((0.5, 0.5), (0.2, 0.8)))
    for w in (torch.tensor(3.0, requires_grad=True), torch.tensor([3.0, 3.0], requires_grad=True)):
        out = advance(TABLE, start(TABLE, x), Outputs(x, level, (u, c), EPS, (1.0 - w, w))).x
        plain = advance(TABLE, start(TABLE, x), Outputs(x, level, (u, c), EPS, (-2.0, 3.0))).x
        assert torch.allclose(out, plain, rtol=1e-6)
        out.sum().backward()
        assert float(w.grad.abs().sum()) > 0.0


def test_combine_wants_a_column_per_register():
    x = states(2, 3)
    for C in (((1.0,),), ((1.0, 2.0, 3.0),), torch.ones(2, 1, 3)):
        with pytest.raises(ValueError, match="columns for 2 registers"):
            combine(C, (x, x))


def test_the_default_device_does_not_leak_in():
    """`meta` stands for a GPU: everything that must live on the CPU says so, everything else follows its inputs."""
    with torch.device("meta"):
        assert initial_noise([1], (4,)).device.type == "cpu"
        x = torch.zeros(2, 3, device="cpu")
        assert combine(((1.0, 2.0),), (x, x))[0].device.type == "cpu"
    x = torch.zeros(2, 3, device="meta")
    assert combine(((1.0, 2.0), (0.0, 1.0)), (x, x))[0].device.type == "meta"
    outputs = Outputs(x, TABLE.plan.nodes[0], (x, x), EPS, (torch.tensor([0.5, 1.0]), torch.tensor([0.5, 0.0])))
    assert advance(TABLE, start(TABLE, x), outputs).x.device.type == "meta"


def test_equal_parametrisations_are_one():
    assert edm() is edm() and edm(0.3) is edm(0.3) is not edm()
