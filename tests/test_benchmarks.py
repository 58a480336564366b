"""The benchmarks: no number without a passed gate, the statistics, and what can be counted instead of timed."""

import json
import platform

import pytest
import torch

from fewstep.benchmarks import harness, overhead
from fewstep.benchmarks.counting import DispatchCounter
from fewstep.benchmarks.harness import Benchmark, Case, Gate
from fewstep.benchmarks.markdown import markdown
from fewstep.guidance.cfg import CFG
from fewstep.samplers import SOLVERS

GUIDANCE = [pytest.param(None, id="none"), pytest.param(CFG(7.5), id="cfg")]


# --- harness --------------------------------------------------------------------------------------------------------


def case(implementation, key="a", run=lambda: None, **options):
    return Case("Table", {"what": key}, implementation, lambda: run, **options)


def benchmark(cases, gates=(), peer="peer"):
    return Benchmark("name", "Title", gates, lambda: cases, peer, ("A note.",))


def test_a_failed_gate_blocks_every_number(capsys, tmp_path):
    calls = []
    gates = [Gate("fine", lambda: None), Gate("same picture", lambda: "they differ by 3")]
    found = benchmark([case("fewstep", run=lambda: calls.append(1))], gates)
    assert harness.main(lambda: found, ["--minutes", "0", "--output", str(tmp_path / "out.json")]) == 1
    printed = capsys.readouterr()
    assert "same picture: they differ by 3" in printed.err
    assert not printed.out and not calls and not list(tmp_path.iterdir())


def test_a_passed_gate_is_named_in_the_report():
    report = harness.run(benchmark([case("fewstep")], [Gate("same picture", lambda: None)]), 0.0)
    assert report["gates"] == ["same picture"] and "same picture" in markdown(report)


def test_an_unknown_selection_is_no_empty_report(capsys):
    assert harness.run(benchmark([case("fewstep")]), 0.0, only="b") is None
    assert "'b'" in capsys.readouterr().err


def test_quantiles():
    assert [harness.quantile([4.0, 1.0, 3.0, 2.0, 5.0], q) for q in (0.0, 0.2, 0.5, 0.8, 1.0)] == pytest.approx(
        [1.0, 1.8, 3.0, 4.2, 5.0]
    )
    assert harness.quantile([7.0], 0.8) == 7.0


def test_speedups_pair_neighbouring_repeats():
    cases = [case("fewstep"), case("peer"), case("fewstep", "alone")]
    ours, peer, alone = harness.rows(cases, [[1.0, 2.0, 4.0], [4.0, 8.0, 16.0], [1.0, 1.0, 1.0]], "peer")
    assert ours["speedup"] == {"median": 4.0, "p20": 4.0, "p80": 4.0}
    assert peer["speedup"] is None and alone["speedup"] is None
    assert ours["repeats"] == 3 and ours["median"] == 2.0


def test_repeats_are_interleaved():
    seen = []
    cases = [case(name, run=lambda name=name: seen.append(name)) for name in ("fewstep", "peer")]
    times = harness.measure(cases, 0.0)
    assert [len(t) for t in times] == [harness.MIN_REPEATS] * 2
    timed = seen[2 * harness.WARM_UPS :]
    assert all(set(pair) == {"fewstep", "peer"} for pair in zip(timed[::2], timed[1::2], strict=True))


def test_markdown_has_an_empty_cell_where_there_is_no_peer():
    cases = [
        case("fewstep", facts=lambda: {"calls": 5.0}),
        case("peer", facts=lambda: {"calls": 12.5}),
        case("fewstep", "alone"),
    ]
    times = [[10.0] * 3, [80.0] * 3, [123.4] * 3]
    report = harness.run(benchmark(cases), 0.0) | {"rows": harness.rows(cases, times, "peer")}
    lines = markdown(report).splitlines()
    heading = "| what | fewstep, us per tick | peer, us per tick | ratio | calls, fewstep | calls, peer |"
    at = lines.index(heading)
    assert lines[at + 2 : at + 4] == [
        "| a | 10 [10, 10] | 80 [80, 80] | 8 [8, 8] | 5 | 12.5 |",
        "| alone | 123 [123, 123] |  |  |  |  |",
    ]


def test_the_report_does_not_name_the_machine(tmp_path):
    arguments = ["--minutes", "0", "--output", str(tmp_path / "out")]
    assert harness.main(lambda: benchmark([case("fewstep")]), arguments) == 0
    text = (tmp_path / "out.json").read_text() + (tmp_path / "out.md").read_text()
    assert platform.node() not in text and str(tmp_path) not in text
    assert json.loads((tmp_path / "out.json").read_text())["command"].endswith("benchmarks.name --minutes 0")


# --- counting -------------------------------------------------------------------------------------------------------


def test_counter_tells_latents_from_scalars():
    x, s = torch.ones(1, 4, 8, 8), torch.ones(())
    with DispatchCounter(latent=x.numel()) as counter:
        y = x + x
        s * s
        y.chunk(2, dim=1)
        with counter.paused():
            x * x
    assert (counter.counts.latent, counter.counts.scalar, counter.counts.host_reads) == (2, 1, 0)
    assert counter.counts.bytes == 3 * 4 * x.numel()  # two operands and a result; a view moves nothing


@pytest.mark.parametrize("read", [lambda s: s.item(), float, bool, lambda s: torch.equal(s, s)])
def test_counter_sees_host_reads(read):
    s = torch.ones(())
    with DispatchCounter(latent=16) as counter:
        read(s)
    assert counter.counts.host_reads == 1


# --- overhead -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_2m_needs_six_calls_a_tick(guidance):
    """With and without guidance. diffusers' tick is counted beside it, so that the counter is tested too."""
    x = overhead.noise(overhead.COMMON)
    found = {name: overhead.counted(build, x.numel()) for name, build in overhead.sides("2m", x, guidance)}
    assert found["fewstep"]["calls"] == (5 if guidance is None else 6)
    assert found["fewstep"]["scalar calls"] == 0
    assert found["diffusers"]["calls"] + found["diffusers"]["scalar calls"] > 50


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("name", [name for name in SOLVERS if not any(overhead.table_of(name).noisy)])
def test_solve_reads_nothing_back(name, guidance):
    """No host read and no scalar tensor, in a whole run: its first and last tick included."""
    x = overhead.noise((1, 4, 8, 8))
    build = dict(overhead.sides(name, x, guidance))["fewstep"]
    with DispatchCounter(latent=x.numel()) as counter:
        build(overhead.Uncounted(counter=counter), overhead.hook)()
    assert counter.counts.host_reads == 0 and counter.counts.scalar == 0, counter.names


def test_overhead_with_a_tiny_budget(tmp_path, capsys):
    arguments = ["--minutes", "0", "--only", "heun", "--output", str(tmp_path / "overhead")]
    assert harness.main(overhead.build, arguments) == 0
    report = json.loads((tmp_path / "overhead.json").read_text())
    assert set(report) >= {"schema", "benchmark", "command", "machine", "versions", "gates", "rows"}
    assert {row["implementation"] for row in report["rows"]} == {"fewstep", "diffusers"}
    assert all(
        row["repeats"] >= harness.MIN_REPEATS and row["p20"] <= row["median"] <= row["p80"] for row in report["rows"]
    )
    assert (tmp_path / "overhead.md").read_text() in capsys.readouterr().out
