"""The operations without a GPU: who runs them, how torch's library sees them, runs lowered for CUDA graphs."""

import importlib.util
import math

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError, MissingDependencyError
from fewstep.guidance.cfg import CFG
from fewstep.kernels import choice, library, ops
from fewstep.samplers import EPS, SOLVERS, DiscreteVP, GeneratorTape, NoiseTape, solve, trace
from fewstep.samplers.backbones.base import UNetNetwork
from fewstep.samplers.grids import uniform_lambda
from fewstep.samplers.lowering import lower

VP = DiscreteVP.scaled_linear()
CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)

# ---------------------------------------------------------------- FEWSTEP_KERNELS


@pytest.fixture
def requested(monkeypatch):
    """Sets FEWSTEP_KERNELS as a fresh process would see it."""

    def request(value=None, interpret="0", triton=True):
        monkeypatch.delenv(choice.VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(choice.VARIABLE, value)
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        spec = importlib.util.find_spec("torch") if triton else None
        monkeypatch.setattr(choice, "find_spec", lambda name: spec)
        monkeypatch.setattr(choice, "_supported", lambda device: True)
        choice.requested.cache_clear()
        choice._decide.cache_clear()

    yield request
    monkeypatch.undo()
    choice.requested.cache_clear()
    choice._decide.cache_clear()


def test_auto_is_triton_on_cuda_and_torch_elsewhere(requested):
    for value in (None, "auto"):
        requested(value)
        assert choice.use_triton(CUDA) and not choice.use_triton(CPU) and not choice.use_triton(torch.device("mps"))
        requested(value, triton=False)
        assert not choice.use_triton(CUDA)
        requested(value, interpret="1")
        assert not choice.use_triton(CPU)


def test_torch_is_never_triton(requested):
    requested("torch")
    assert not choice.use_triton(CUDA)


def test_triton_is_triton_or_an_error(requested):
    requested("triton")
    assert choice.use_triton(CUDA)
    with pytest.raises(IncompatibleError, match="the tensors are on 'cpu'"):
        ops.combine(((1.0,),), (torch.ones(1, 2),))
    requested("triton", interpret="1")
    assert choice.use_triton(CPU)
    with pytest.raises(IncompatibleError, match="'mps'"):
        choice.use_triton(torch.device("mps"))
    requested("triton", triton=False)
    with pytest.raises(MissingDependencyError, match="pip install"):
        choice.use_triton(CUDA)


def test_other_words_are_refused(requested):
    requested("Triton")
    with pytest.raises(ConfigError, match="must be one of auto, torch, triton, got 'Triton'"):
        choice.use_triton(CPU)


# ---------------------------------------------------------------- combine


def test_the_feed_is_the_new_x_cast_and_repeated():
    x, u = torch.randn(2, 3, 4), torch.randn(2, 3, 4).half()
    C = ((0.5, 2.0), (1.0, -1.0))
    x_next, other, fed = ops.combine(C, (x, u), None, ops.Feed(0, torch.float16, 3))
    assert torch.equal(x_next, ops.combine(C, (x, u))[0]) and torch.equal(other, ops.combine(C, (x, u))[1])
    assert torch.equal(fed, torch.cat([x_next] * 3).half())
    x_next, _, fed = ops.combine(C, (x, u), None, ops.Feed(0, torch.float32, 2))
    assert x_next.data_ptr() == fed.data_ptr() and torch.equal(fed, torch.cat([x_next] * 2))


def test_what_does_not_fit_is_refused():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="1 output dtypes for 2 lines"):
        ops.combine(((1.0,), (2.0,)), (x,), (torch.float32,))
    for feed in (ops.Feed(2, torch.float32), ops.Feed(-1, torch.float32), ops.Feed(0, torch.float32, 0)):
        with pytest.raises(ValueError, match="does not fit 2 lines"):
            ops.combine(((1.0,), (2.0,)), (x,), None, feed)


def registers(n=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, dtype=dtype, generator=generator, requires_grad=True) for _ in range(n)]


LINES, DTYPES, COPIES = [1, 0, 1], [torch.float64] * 3, [2, 1, 1]


def test_gradients_of_the_operation_equal_those_through_plain_torch():
    """The operation's own formula, the transposed matrix, against autograd through the reference; twice."""
    C, r = ((1.5, -0.5, 0.0), (0.0, 2.0, 0.3)), registers()
    flat = [c for line in C for c in line]
    cotangents = [torch.randn(4, 5, dtype=torch.float64), *(torch.randn(2, 5, dtype=torch.float64) for _ in range(2))]
    ours = torch.ops.fewstep.combine(flat, r, LINES, DTYPES, COPIES)
    plain = library._run(C, r, LINES, DTYPES, COPIES)
    for a, b in zip(torch.autograd.grad(ours, r, cotangents), torch.autograd.grad(plain, r, cotangents), strict=True):
        assert torch.allclose(a, b, rtol=1e-14, atol=0)
    each = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    ours = torch.ops.fewstep.combine_each(each, r, LINES, DTYPES, COPIES)
    plain = library._run(each, r, LINES, DTYPES, COPIES)
    found, expected = (torch.autograd.grad(y, (each, *r), cotangents, create_graph=True) for y in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-13)
    again = [torch.autograd.grad(sum(g.square().sum() for g in y), (each, *r)) for y in (found, expected)]
    for a, b in zip(*again, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_gradients_stop_at_registers_that_are_not_read():
    x, nan = registers(1)[0], torch.full((2, 5), math.nan, dtype=torch.float64, requires_grad=True)
    each = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    for run in (lambda: torch.ops.fewstep.combine_each(each, [x, nan], [0, 1], [torch.float64] * 2, [1, 1]),
                lambda: ops.combine(each, (x, nan))):  # fmt: skip
        grads = torch.autograd.grad(sum(y.sum() for y in run()), (each, x, nan))
        assert all(g.isfinite().all() for g in grads)
        assert grads[2].abs().max() == 0.0 and grads[0][..., 1].abs().max() == 0.0


def test_a_zero_in_a_column_that_is_read_has_its_gradient():
    """Else a learned matrix could never leave the zeros that it starts from."""
    each = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    r = registers(2)
    (grad,) = torch.autograd.grad(ops.combine(each, r)[0].sum(), each)
    assert torch.allclose(grad[0, 0], torch.stack([t.sum() for t in r]))


def test_torch_compile_sees_one_opaque_operation():
    C = [1.5, -0.5, 2.0]

    def update(x, u, c):
        return torch.ops.fewstep.combine(C, [x, u, c], [0, 0], [torch.float32, torch.float16], [1, 2])

    inputs = [t.detach().float() for t in registers()]
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*inputs), update(*inputs), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype


# ---------------------------------------------------------------- networks that take a batch


class Net:
    schedule, parametrisation, dtype = VP, EPS, torch.float64

    def __init__(self):
        self.seen = []

    def forward_batch(self, batch, time, branches):
        self.seen.append((batch.shape[0], batch.dtype, float(time)))
        out = torch.tanh(0.3 * batch * (1.0 + time / 1000.0))
        return out.chunk(len(branches))

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


class Interval:
    def branches(self, i, memory):
        return ("uncond", "cond") if 1 <= i < 3 else ("cond",)

    def weights(self, i, gram, memory):
        return (-2.0, 3.0) if 1 <= i < 3 else (1.0,)


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
@pytest.mark.parametrize("guidance", (None, CFG(3.0), Interval()), ids=("none", "cfg", "interval"))
@pytest.mark.parametrize("first_tick", (0, 2))
def test_a_lowered_run_is_the_run(name, guidance, first_tick):
    table, x, tape = trace(SOLVERS[name](), uniform_lambda(VP, 5), VP), noise(2, 3), NoiseTape((1, 2))
    lowered = lower(table, EPS, guidance, first_tick)
    expected = solve(table, Net(), x, guidance=guidance, tape=tape, first_tick=first_tick).x
    assert torch.allclose(replay(lowered, table, Net(), x, tape), expected, rtol=1e-12, atol=1e-14)
    assert lowered.copies == (1 if guidance is None else 2) and lowered.slots <= 9


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

    class PerImage(Interval):
        def weights(self, i, gram, memory):
            return (torch.tensor([-2.0]), torch.tensor([3.0])) if 1 <= i < 3 else (1.0,)

    with pytest.raises(IncompatibleError, match="weights that are numbers"):
        lower(table, EPS, PerImage())
