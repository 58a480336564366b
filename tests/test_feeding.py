"""Networks that are fed the batch which the sampler writes, and runs lowered for CUDA graphs."""

import math

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.cfg import CFG
from fewstep.guidance.interval import Interval
from fewstep.kernels import ops
from fewstep.samplers import EPS, SOLVERS, DiscreteVP, GeneratorTape, NoiseTape, solve, trace
from fewstep.samplers.backbones.base import UNetNetwork
from fewstep.samplers.grids import uniform_lambda
from fewstep.samplers.lowering import lower

VP = DiscreteVP.scaled_linear()
OF_BRANCH = {"uncond": 0.7, "cond": 1.0}  # else no guidance could be told from another


class Net:
    schedule, parametrisation, dtype = VP, EPS, torch.float64

    def __init__(self):
        self.seen = []

    def forward_batch(self, batch, time, branches):
        self.seen.append((batch.shape[0], batch.dtype, float(time)))
        out = torch.tanh(0.3 * batch * (1.0 + time / 1000.0))
        return tuple(OF_BRANCH[b] * part for b, part in zip(branches, out.chunk(len(branches)), strict=True))

    def __call__(self, x, level, branches, rows=None):
        return self.forward_batch(torch.cat([x] * len(branches)), torch.tensor(float(level.time)), branches)


class Plain:
    """The same without `forward_batch`."""

    def __init__(self, net):
        self.schedule, self.parametrisation, self.net = net.schedule, net.parametrisation, net

    def __call__(self, *arguments):
        return self.net(*arguments)


def noise(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("guidance", (None, CFG(3.0)), ids=("none", "cfg"))
def test_a_batched_network_is_fed_what_it_would_have_made_of_x(name, guidance):
    table, x, tape = trace(SOLVERS[name](), uniform_lambda(VP, 4), VP), noise(2, 3, 4), NoiseTape((1, 2))
    expected = solve(table, Plain(Net()), x, guidance=guidance, tape=tape).x
    net = Net()
    assert torch.equal(solve(table, net, x, guidance=guidance, tape=tape).x, expected)
    times = [pytest.approx(float(node.time), rel=1e-6) for node in table.plan.nodes]
    assert net.seen == [(2 if guidance is None else 4, torch.float64, time) for time in times]


def test_an_edit_reaches_the_network():
    table, x, net = trace(SOLVERS["2m"](), uniform_lambda(VP, 4), VP), noise(2, 3), Net()
    add = lambda i, state, prediction: state._replace(x=state.x + 1.0) if i == 1 else None  # noqa: E731
    runs = [solve(table, n, x, guidance=CFG(3.0), on_tick=add).x for n in (net, Plain(Net()))]
    assert torch.equal(*runs)


def test_so_does_one_in_place_though_the_network_has_another_dtype():
    table, x = trace(SOLVERS["2m"](), uniform_lambda(VP, 4), VP), noise(2, 3).float()
    seen = []

    class Half(Net):
        dtype = torch.bfloat16

        def forward_batch(self, batch, time, branches):
            seen.append(batch.clone())
            return super().forward_batch(batch, time, branches)

    def overwrite(i, state, prediction):
        state.x.fill_(7.0)

    solve(table, Half(), x, on_tick=overwrite)
    assert all((batch == 7.0).all() for batch in seen[1:])


def test_a_unet_evaluates_rows_of_a_batch():
    class UNet:
        dtype = torch.bfloat16

        def __call__(self, batch, time, return_dict, text):
            assert batch.dtype == torch.bfloat16
            return (batch * text.view(-1, 1),)

    conditions = {"cond": {"text": torch.tensor([1.0, 2.0])}, "uncond": {"text": torch.tensor([3.0, 4.0])}}
    network = UNetNetwork(UNet(), conditions, VP, EPS)
    x, level = torch.ones(2, 3), VP.level(500.0)
    u, c = network(x, level, ("uncond", "cond"))
    assert (u[:, 0].tolist(), c[:, 0].tolist()) == ([3.0, 4.0], [1.0, 2.0])
    (row,) = network(x, level, ("uncond",), torch.tensor([1]))
    assert row.tolist() == [[4.0] * 3]


# ---------------------------------------------------------------- runs for CUDA graphs


def replay(lowered, table, net, x, tape):
    """What the kernel does with the rows, in plain torch."""
    arena = [torch.full_like(x, math.nan) for _ in range(lowered.slots)]
    arena[0] = x
    for i in range(lowered.first_tick, len(table)):
        branches, C, slots = lowered.steps[i]
        node = table.plan.nodes[i]
        where, written = slots[: 1 + lowered.carries], slots[1 + lowered.carries : -1]
        outputs = net(arena[where[0]], node, branches) if branches else ()
        noises = (tape.normal(i, node, node, x),) if lowered.noisy else ()
        registers = [arena[where[0]], *outputs, *(arena[s] for s in where[1:]), *noises]
        found = ops.combine(C, registers)
        assert not {s for s in written if s >= 0} & set(where)
        for slot, y in zip(written, found, strict=True):
            if slot >= 0:
                arena[slot] = y
        assert slots[-1] == (i + 1 < len(table))
    return arena[lowered.result]


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("guidance", (None, CFG(3.0), Interval(3.0, start=0.4)), ids=("none", "cfg", "interval"))
@pytest.mark.parametrize("first_tick", (0, 2))
def test_a_lowered_run_is_the_run(name, guidance, first_tick):
    table, x, tape = trace(SOLVERS[name](), uniform_lambda(VP, 5), VP), noise(2, 3), NoiseTape((1, 2))
    lowered = lower(table, EPS, guidance, first_tick)
    expected = solve(table, Net(), x, guidance=guidance, tape=tape, first_tick=first_tick).x
    assert torch.allclose(replay(lowered, table, Net(), x, tape), expected, rtol=1e-12, atol=1e-14)
    if not isinstance(guidance, Interval):  # which may have no guided step from tick 2 on
        assert lowered.copies == (1 if guidance is None else 2)
    assert lowered.slots <= 9


def test_what_a_graph_cannot_hold_is_refused_with_the_reason():
    table, x = trace(SOLVERS["sde-2m"](), uniform_lambda(VP, 3), VP), noise(1, 3)
    for options, reason in (
        ({"on_tick": lambda *_: None, "tape": NoiseTape((1,))}, "on_tick runs Python"),
        ({"tape": GeneratorTape()}, "NoiseTape"),
        ({"tape": NoiseTape((1,))}, "CUDA tensors, x is on 'cpu'"),
    ):
        with pytest.raises(IncompatibleError, match=reason):
            solve(table, Net(), x, graph=True, **options)
    with pytest.raises(IncompatibleError, match="Plain has no forward_batch"):
        solve(table, Plain(Net()), x, graph=True, tape=NoiseTape((1,)))
    with pytest.raises(ConfigError, match="draws noise"):
        solve(table, Net(), x, graph=True)

    with pytest.raises(IncompatibleError, match="known before the run begins, and AdaptiveGuidance is not"):
        lower(table, EPS, AdaptiveGuidance(scale=3.0))
