"""What the launchers hand to Triton binds and compiles for a GPU, without one: everything but the launch itself."""

import pytest
import torch

from fewstep.guidance.cfg import CFG
from fewstep.kernels import choice, ops
from fewstep.samplers import EPS, SOLVERS, DiscreteVP, NoiseTape, graph, trace
from fewstep.samplers.grids import uniform_lambda
from fewstep.samplers.lowering import lower

pytest.importorskip("triton")
VP = DiscreteVP.scaled_linear()


class NoGPU:
    """What Triton asks of a driver before it launches."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


class Launched(list):
    """The names of the kernels that would have been launched.       ptx: the newest code of each."""

    def __init__(self):
        self.ptx = {}


@pytest.fixture
def launched(monkeypatch, tmp_path):
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    names, run = Launched(), JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        assert options["enable_fp_fusion"] is True  # its default differs between Triton's versions
        names.append(self.fn.__name__)
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        names.ptx[self.fn.__name__] = kernel.asm["ptx"]
        return kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(choice, "use_triton", lambda where: True)
    monkeypatch.setattr(driver, "_active", NoGPU())
    return names


def test_operations_are_one_launch_each(launched):
    x, u = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8).bfloat16()
    numbers = ((1.0, -2.0, 3.0), (0.5, 0.0, 1.0))
    for C in (numbers, torch.randn(2, 2, 3), torch.randn(2, 3)):
        x_next, _, fed = ops.combine(C, (x, u, u), None, ops.Feed(0, torch.bfloat16, 2))
        assert (x_next.dtype, fed.dtype, fed.shape[0]) == (torch.float32, torch.bfloat16, 4)
    ops.combine(numbers, (x.double(), u, u[:, :, ::2].repeat(1, 1, 2, 1)))
    assert launched == ["combine_kernel"] * 4
    launched.clear()
    assert ops.gram((x, u), ((1.0, 0.0), (-1.0, 1.0)), ones=True).shape == (2, 3, 3)
    assert launched == ["gram_kernel"]
    launched.clear()
    assert ops.philox_normal((1, 2), 3, (4, 8, 8), device="cpu").shape == x.shape
    assert launched == ["normal_kernel"]


def test_the_last_program_of_gram_sees_what_the_others_stored(launched):
    """Stores of all threads, then the counter with release and acquire across the GPU, then loads from L2."""
    ops.gram((torch.randn(2, 40_000), torch.randn(2, 40_000)))
    ptx = launched.ptx["gram_kernel"]
    counter = ptx.index("atom.global.gpu.acq_rel")
    assert ptx.rindex("bar.sync", 0, counter) > ptx.rindex("st.global", 0, counter)
    assert ptx.find("ld.global.cg") > counter and ptx.count("ld.global.cg") == 3


class Net:
    schedule, parametrisation, dtype = VP, EPS, torch.bfloat16

    def forward_batch(self, batch, time, branches):
        return batch.chunk(len(branches))


@pytest.mark.parametrize("name", ("unipc-3", "sde-2m"))
def test_a_captured_tick(name, launched):
    table, x, guidance = trace(SOLVERS[name](), uniform_lambda(VP, 4), VP), torch.randn(2, 4, 8, 8), CFG(3.0)
    run = graph.Captured(table, lower(table, EPS, guidance), Net(), x, lambda body, reset: body)
    run.run(x, NoiseTape((1, 2)))
    tick = ["begin_kernel", *(["normal_kernel"] if name == "sde-2m" else []), "tick_kernel"]
    assert launched == ["combine_kernel", *tick * 4]  # the batch that the run begins with, then its ticks
