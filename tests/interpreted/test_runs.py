"""Whole runs through Triton's interpreter: equal to the reference, one launch a tick, no more bytes than must move."""

import math

import diffusers
import pytest
import torch

from fewstep.benchmarks.counting import DispatchCounter
from fewstep.guidance.cfg import CFG
from fewstep.guidance.interval import Interval
from fewstep.kernels import ops, triton_combine, triton_tick
from fewstep.samplers import EPS, SOLVERS, DiscreteVP, NoiseTape, graph, solve, trace
from fewstep.samplers.grids import uniform_lambda
from fewstep.samplers.guided import known, static
from fewstep.samplers.lowering import lower
from fewstep.samplers.policy import Run

VP = DiscreteVP.scaled_linear()
SHAPE = (2, 4, 8, 8)
SCALE = 7.5
GUIDANCE = {"none": None, "cfg": CFG(SCALE)}


def one_of_each_shape():
    """A solver for every set of folded rows that occurs: same registers, outputs and moves, same work for a kernel."""
    found = {}
    for name, make in SOLVERS.items():
        table, carries, shapes = trace(make(), uniform_lambda(VP, 4), VP), 0, set()
        for i, row in enumerate(table.rows):
            folded = table.fold(i, carries, EPS, (1.0 - SCALE, SCALE))
            shapes.add((folded.live, len(folded.matrix), folded.sources))
            carries = row.carry_out
        found.setdefault(frozenset(shapes), name)
    return list(found.values())


FAST = ("2m", "unipc-3", "sde-2m", "heun")  # several steps, three outputs, noise, two ticks a step


NAMES = one_of_each_shape()
assert set(FAST) <= set(NAMES)
every_name = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
every_guidance = pytest.mark.parametrize("guided", GUIDANCE)


class Net:
    """A batched network on which a run does little but grow with alpha: its outputs are small and flat in x."""

    schedule, parametrisation = VP, EPS

    def __init__(self, dtype=torch.float32, counter=None):
        self.dtype, self.counter, self.batches = dtype, counter, []

    def forward_batch(self, batch, time, branches):
        if self.counter is None:
            return self._forward(batch, time, branches)
        with self.counter.paused():
            return self._forward(batch, time, branches)

    def _forward(self, batch, time, branches):
        assert batch.dtype == self.dtype and batch.is_contiguous() and time.shape == ()
        self.batches.append(batch.clone())
        out = torch.tanh(batch * 0.05 * (1.0 + time / 1000.0))
        parts = out.chunk(len(branches))
        scaled = [(0.9 if b == "uncond" else 1.0) * part for b, part in zip(branches, parts, strict=True)]
        return tuple(torch.cat(scaled).to(self.dtype).chunk(len(branches)))


def start_of(shape=SHAPE, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def table_of(name, n=4):
    return trace(SOLVERS[name](), uniform_lambda(VP, n), VP)


def told(guidance, table):
    """(branches, weights) of every tick."""
    plan = table.plan
    guided = static(guidance, Run(1, plan.nodes, plan.step, plan.stage, EPS))
    return [known(guided, i) for i in range(len(table))]


def run(name, guided, net=None, x=None, **options):
    x = start_of() if x is None else x
    net = net or Net()
    tape = NoiseTape(tuple(range(5, 5 + x.shape[0])))
    return solve(table_of(name), net, x, guidance=GUIDANCE[guided], tape=tape, **options).x


def tolerance(name, guided):
    """Tick i rounds at most once per register and once more, each time by 2^-24 of the sum of the terms' sizes; from
    there to the end of the run an error of x grows with alpha, as the network adds next to nothing."""
    table, guidance, x = table_of(name), GUIDANCE[guided], start_of(dtype=torch.float64)
    carries, total = [()], 0.0
    end = table.plan.targets[-1].alpha

    def add(i, state, prediction):
        nonlocal total
        folded = table.fold(i, len(carries[-1]), EPS, prediction.weights)
        registers = (prediction.x, *prediction.tensors, *carries[-1], torch.tensor(6.0))
        carries.append(state.carry)
        for line in folded.matrix:
            terms = sum(abs(c) * registers[k].abs().max() for c, k in zip(line, folded.live, strict=True))
            total += (len(line) + 1) * 2.0**-24 * float(terms) * end / table.plan.targets[i].alpha

    solve(table, Net(torch.float64), x, guidance=guidance, tape=NoiseTape((5, 6)), on_tick=add)
    return 2.0 * total  # both runs round


@every_name
@every_guidance
def test_a_whole_run_equals_the_reference(name, guided, reference):
    found, expected = run(name, guided), reference(run, name, guided)
    bound = reference(tolerance, name, guided)
    assert bound < 3e-5 * expected.abs().max()
    assert (found - expected).abs().max() <= bound


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_a_run_in_float64_equals_the_reference_to_its_last_digits(dtype, reference):
    x = start_of((1, 4, 7, 9), torch.float64)
    found, expected = (f(run, "unipc-3", "cfg", Net(dtype), x) for f in (lambda f, *a: f(*a), reference))
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", ("2m", "unipc-3", "heun"))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_networks_get_the_rounded_state(name, dtype, reference):
    net = Net(dtype)
    states = []
    run(name, "cfg", net, on_tick=lambda i, state, prediction: states.append(state.x))
    for batch, x in zip(net.batches[1:], states, strict=False):
        assert torch.equal(batch, torch.cat([x, x]).to(dtype))
    assert len(net.batches) == len(states) == len(table_of(name))


def counted(name, guided, net_dtype, shape=(1, 4, 8, 8)):
    """Counts of every tick of a run but for the network; the first includes the batch that the run begins with."""
    x = start_of(shape)
    snapshots = []
    with DispatchCounter(x.numel(), strict=True) as counter:
        snapshots.append(counter.counts)
        note = lambda *_: snapshots.append(counter.counts)  # noqa: E731
        run(name, guided, Net(net_dtype, counter), x, on_tick=note)
    assert set(counter.names) <= {
        "fewstep::combine", "fewstep::philox_normal", "aten::select", "aten::slice", "aten::unbind", "aten::detach",
        "aten::_to_copy", "aten::empty", "aten::full", "aten::lift_fresh",
    }  # fmt: skip
    return [b.since(a) for a, b in zip(snapshots, snapshots[1:], strict=False)], counter


@every_name
@every_guidance
@pytest.mark.parametrize("net", (torch.float32, torch.bfloat16))
def test_one_launch_a_tick_and_no_byte_too_many(name, guided, net):
    table, guidance = table_of(name), GUIDANCE[guided]
    ticks, _ = counted(name, guided, net)
    branches = 1 if guidance is None else 2
    n, carry, known_weights = 4 * 8 * 8, 0, told(guidance, table)
    for i, tick in enumerate(ticks):
        row, last = table.row(i, carry), i + 1 == len(table)
        folded = table.fold(i, carry, EPS, known_weights[i][1])
        carry = row.carry_out
        computed = sum(not moved for moved, _ in folded.sources)
        assert len(folded.live) <= 8 and computed <= 4
        sizes = [4, *[net.itemsize] * branches, *[4] * 8]
        wanted = sum(sizes[k] for k in folded.live) + 4 * computed
        if not last:  # the batch; where it has x's dtype, x is a part of it
            wanted += branches * net.itemsize - (4 if net == torch.float32 else 0)
        launches = 1 + row.needs_noise
        if row.needs_noise:
            wanted += 4  # the noise is written
        if i == 0 and not (branches == 1 and net == torch.float32):  # the first batch is made of x alone
            launches, wanted = launches + 1, wanted + 4 + branches * net.itemsize
        assert (tick.launches, tick.bytes, tick.host_reads) == (launches, wanted * n, 0), i


def diffusers_tick(dtype, shape=(1, 4, 8, 8)):
    """The same for a pipeline's loop around DPM-Solver++(2M) with guidance, in steady state."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(0)
    x = torch.randn(shape).to(dtype)
    snapshots = []
    with DispatchCounter(x.numel()) as counter:
        for t in scheduler.timesteps:
            batch = scheduler.scale_model_input(torch.cat([x] * 2), t)
            with counter.paused():
                out = torch.tanh(batch)
            u, c = out.chunk(2)
            x = scheduler.step(u + SCALE * (c - u), t, x, return_dict=False)[0]
            snapshots.append(counter.counts)
    return snapshots[5].since(snapshots[4])


@pytest.mark.parametrize(("dtype", "per_element", "part"), [(torch.float32, 28, 5), (torch.bfloat16, 24, 4)], ids=str)
def test_a_fraction_of_what_diffusers_moves(dtype, per_element, part):
    tick = counted("2m", "cfg", dtype)[0][2]
    theirs = diffusers_tick(dtype)
    assert tick.bytes == per_element * 4 * 8 * 8
    assert part * tick.bytes <= theirs.bytes
    assert tick.launches == 1
    if diffusers.__version__ == "0.42.1":  # what the README says of it
        moved = {torch.float32: (14, 144), torch.bfloat16: (16, 96)}
        assert (theirs.launches, theirs.bytes / (4 * 8 * 8)) == moved[dtype]


def test_statistics_are_one_launch_more():
    table, x = table_of("2m"), start_of()
    u, c = (start_of() * k for k in (0.3, 0.5))
    state = graph.start(table, x)
    with DispatchCounter(x.numel(), strict=True) as counter:
        gram = ops.gram((u, c), basis=((1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)))
        cosine = gram[:, 0, 1] / (gram[:, 0, 0] * gram[:, 1, 1]).sqrt()
        weights = torch.where(cosine > 0.99, 0.0, 1.0 - SCALE), torch.where(cosine > 0.99, 1.0, SCALE)
        from fewstep.samplers import Outputs, advance

        advance(table, state, Outputs(x, table.plan.nodes[0], (u, c), EPS, weights))
    assert counter.counts.launches == 2, counter.names


# --- what a CUDA graph replays, run tick by tick on the CPU ----------------------------------------------------------


GUIDANCE_KINDS = (None, CFG(SCALE), Interval(SCALE, start=0.2, stop=0.6))


def captured(table, net, x, guidance, first_tick=0):
    lowered = lower(table, net.parametrisation, guidance, first_tick)
    return graph.Captured(table, lowered, net, x, lambda body, reset: body)


@every_name
@pytest.mark.parametrize("guidance", GUIDANCE_KINDS, ids=("none", "cfg", "interval"))
def test_the_captured_ticks_equal_the_loop_bitwise(name, guidance):
    table, x, tape = table_of(name), start_of(), NoiseTape((5, 6))
    net = Net(torch.bfloat16 if name == "2m" else torch.float32)
    expected = solve(table, net, x, guidance=guidance, tape=tape).x
    replayed = captured(table, net, x, guidance)
    for _ in range(2 if name in ("unipc-3", "sde-2m") else 1):  # and again: nothing is left over
        result = replayed.run(x, tape)
        assert torch.equal(result.x, expected)
    assert [t.branches for t in result.report.ticks] == [branches for branches, _ in told(guidance, table)]


def test_a_captured_run_that_begins_later_and_odd_sizes():
    table, x, net = table_of("3m", 5), start_of((1, 3, 5, 7)), Net(torch.bfloat16)
    expected = solve(table, net, x, guidance=CFG(SCALE), first_tick=2).x
    replayed = captured(table, net, x, CFG(SCALE), 2)
    assert torch.equal(replayed.run(x, None).x, expected)
    same, other = (lower(table, EPS, CFG(scale), 2) for scale in (SCALE, 2.0))
    assert replayed.serves(table, same, net, x) and not replayed.serves(table, other, net, x)
    assert not replayed.serves(table, same, Net(), x) and not replayed.serves(table, same, net, x.double())


def test_a_tick_reads_a_register_that_only_its_second_line_needs():
    """No solver's row has that shape; per image, conjugate gradients have."""
    n = 40
    arena, out, noise = torch.randn(3, 48), torch.randn(1, n), torch.randn(1, n)
    x = arena[0, :n].clone()
    memory = triton_tick.Memory(
        arena=arena, feed=torch.zeros(1, n), coefficients=torch.tensor([[2.0, 0.0, 0.0, 0.0, 3.0, 5.0]]),
        slots=torch.tensor([[0, 1, 2, 1]], dtype=torch.int32), counter=torch.zeros(1, dtype=torch.int32),
        tick=torch.zeros(1, dtype=torch.int32), times=torch.tensor([7.0]), time=torch.zeros(()),
    )  # fmt: skip
    triton_tick.begin(memory)
    triton_tick.advance(memory, n, (out,), (noise,), 0)
    assert float(memory.time) == 7.0 and int(memory.counter) == 1
    assert torch.equal(arena[1, :n], 2.0 * x) and torch.equal(memory.feed[0], 2.0 * x)
    assert torch.allclose(arena[2, :n], 3.0 * out[0] + 5.0 * noise[0])


def test_one_graph_serves_a_whole_run_of_cfg(monkeypatch):
    kinds = []
    table, x, net = table_of("unipc-3", 8), start_of(), Net()
    lowered = lower(table, EPS, CFG(SCALE))
    graph.Captured(table, lowered, net, x, lambda body, reset: kinds.append(body) or body)
    assert len(kinds) == 1 and len(table) == 8
    assert lowered.slots <= 9


def test_a_tick_in_the_arena_reads_and_writes_only_what_it_must():
    """Slots and outputs that a tick does not use hold NaN and keep it."""
    table, x, net = table_of("2m"), start_of(), Net()
    replayed = captured(table, net, x, None)
    replayed._memory.arena.fill_(math.nan)
    assert torch.equal(replayed.run(x, None).x, solve(table, net, x).x)
    assert triton_tick.launch_options is triton_combine.launch_options
