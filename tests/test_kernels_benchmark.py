"""The benchmark of a tick: what its implementations have in common, and what is counted of them."""

import pytest
import torch

from fewstep.benchmarks import device, harness, kernels, kernels_ladder, kernels_parts
from fewstep.benchmarks.kernels_ladder import BEGIN_INDEX, GRAPH, LADDER, SHIPPED, TORCH, Smooth, Static, Work
from fewstep.benchmarks.markdown import markdown
from fewstep.errors import ConfigError
from fewstep.kernels import choice
from fewstep.kernels.ops_gram import gram

CPU = torch.device("cpu")
RUNGS = {rung.name: rung for rung in LADDER}


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """It takes long and is not ours to test."""
    monkeypatch.setattr(kernels_ladder, "compiler_problem", lambda device: "no compiler")


def work(network=None, shape=(1, 4, 8, 8), ticks=20):
    x = kernels.noise(shape, CPU)
    return Work(network or Static(x, torch.float32), x, ticks)


def test_a_cpu_has_no_rows_of_a_gpu_and_says_so():
    found, reasons = kernels_ladder.available(CPU)
    assert set(found) == {SHIPPED, BEGIN_INDEX, TORCH}
    assert f"{GRAPH}: no CUDA device" in reasons and "torch.compile: it does not work here (no compiler)" in reasons


def test_the_update_to_compile_is_the_tick(monkeypatch):
    monkeypatch.setattr(kernels_ladder, "_compiled_update", lambda: kernels_ladder._update)
    assert kernels.differs(RUNGS, "torch.compile", TORCH, CPU, kernels.TOLERANCE) is None


def test_both_loops_of_diffusers_are_one():
    ends = [RUNGS[name].prepare(work(Smooth(torch.bfloat16)))() for name in (SHIPPED, BEGIN_INDEX)]
    assert torch.equal(*ends) and ends[0].dtype == torch.bfloat16


def test_launches_and_bytes():
    """Counted in calls; where calls do not show them, from what a tick must read and write."""
    launches, moved = kernels_ladder.counted(work(), RUNGS[TORCH])
    theirs, their_bytes = kernels_ladder.counted(work(), RUNGS[BEGIN_INDEX])
    assert launches == 7 and theirs == 14 and moved < 0.6 * their_bytes
    assert kernels_ladder.counted(work(), RUNGS["torch.compile"]) is None
    assert kernels_ladder.counted(work(), RUNGS[GRAPH]) == (2, 32 * 4 * 8 * 8)
    half = Static(kernels.noise((1, 4, 8, 8), CPU), torch.bfloat16)
    assert kernels_ladder.counted(work(half), RUNGS[GRAPH]) == (2, 24 * 4 * 8 * 8)


def test_facts_of_a_large_latent(monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 1)
    monkeypatch.setattr(device, "_COPY_BYTES", {"cpu": 1 << 20})
    found = kernels.facts(work(), RUNGS[TORCH])
    assert set(found) == {"launches", "MB", "of a copy"} and found["of a copy"] > 0
    assert set(kernels.facts(work(), RUNGS[SHIPPED])) == {"launches", "MB"}


def test_products_are_the_gram_matrix():
    u, c = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cc, cd, dd = kernels_parts.products(u, c, torch.float64)
    G = gram((u, c), kernels_parts.BASIS)
    assert torch.allclose(torch.stack((cc, cd, dd), 1), G[:, (0, 0, 1), (0, 1, 1)], rtol=1e-6)


def test_forced_is_for_a_while():
    before = choice.requested()
    with choice.forced("torch"):
        assert not choice.use_triton(torch.device("cuda", 0))
        with choice.forced("auto"):
            assert not choice.use_triton(CPU)
        assert not choice.use_triton(torch.device("cuda", 0))
    assert choice._forced is None and choice.requested() == before
    with pytest.raises(ConfigError), choice.forced("cuda"):
        pass


def test_a_page_of_many_implementations_and_another_peer():
    cases = [
        harness.Case("Table", {"what": "a"}, name, lambda: lambda: None, peer="two") for name in ("one", "two", "3")
    ]
    report = harness.run(harness.Benchmark("n", "T", (), lambda: cases, "peer", skipped=["this: that"]), 0.0)
    page = markdown(report)
    assert "- this: that" in page and "Ratios here are to two." in page
    assert "| what | implementation | us per tick | ratio |" in page
    assert [row["speedup"] is None for row in report["rows"]] == [False, True, False]


def test_the_whole_benchmark_with_a_tiny_budget():
    report = harness.run(kernels.build(CPU), 0.0, only="SD 1.5, 512")
    assert {row["implementation"] for row in report["rows"]} >= {SHIPPED, BEGIN_INDEX, TORCH, "gram, torch"}
    assert any("Wan, 720p" in reason for reason in report["skipped"])


def test_for_torch_compile_the_choice_is_a_constant(monkeypatch):
    """What it asks (what is installed, which GPU) cannot be traced in every version."""
    monkeypatch.setattr(choice, "find_spec", torch.compiler.disable(choice.find_spec))
    choice._decide.cache_clear()
    x = torch.ones(3)
    function = torch.compile(lambda x: 2 * x if choice.use_triton(x) else 3 * x, fullgraph=True, backend="eager")
    assert torch.equal(function(x), 3 * x)
