"""What the assembler makes of the Triton kernels, for GPUs that are not here."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from fewstep.benchmarks import ahead_of_time
from fewstep.benchmarks.ahead_of_time import BEGIN, END, inspect, variants
from fewstep.benchmarks.ahead_of_time_expected import REGISTERS, Expected
from fewstep.benchmarks.ahead_of_time_reached import Reached

DOCS = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
VARIANTS = variants()
FAST = [variant for variant in VARIANTS if variant.fast]
QUICK = (
    "combine 4x2: 2M, CFG; fp32 + bf16, n = 262144, sm_90",
    "combine 8x4: UniPC-3 that keeps edits, CFG; fp32 + bf16, n = 262144, sm_80",
    "combine 4x2: 2M, CFG per image; fp32 + bf16, n = 262145, sm_90",
    "graph tick 4x2: 2M, CFG; fp32 + bf16, n = 262144, sm_90",
    "gram 2: u and c - u; bf16, 2 images, n = 262144, sm_80",
    "philox_normal: 1 image, n = 262145, sm_90",
)
"""One of every kernel and of every way to launch it; the slow test assembles all."""
needs_tools = pytest.mark.skipif(ahead_of_time.unavailable() is not None, reason=str(ahead_of_time.unavailable()))


def check(variant):
    found, expected = inspect(variant)
    bounds = variant.reached or Reached(REGISTERS)
    assert expected.counted(found.loads, found.stores) is not None, (expected, found)
    assert found.registers <= bounds.registers
    assert found.spills <= bounds.spills and found.stack <= bounds.stack and found.local == 0
    if not expected.exchange:
        assert (found.shared, found.through_shared) == (0, 0)


@needs_tools
@pytest.mark.parametrize("name", QUICK)
def test_the_hot_path_is_wide_and_nothing_spills(name):
    (variant,) = (variant for variant in FAST if variant.name == name)
    assert variant.reached is None
    check(variant)


@needs_tools
@pytest.mark.slow
def test_every_variant():
    problems = []
    for variant in VARIANTS:
        try:
            assert not (variant.fast and variant.reached)
            check(variant)
        except AssertionError as error:
            problems.append(f"{variant.name}: {error}")
    assert not problems, "\n".join(problems)


def test_variants_have_names_of_their_own():
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


def test_the_documented_table_is_of_these_variants():
    table = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert rows[2:] == [variant.name for variant in FAST]


# --- the measurement itself -----------------------------------------------------------------------------------------


def test_instructions_are_counted_by_width():
    code = """
        /*0010*/  LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/  @P0 LDG.E.U16.CONSTANT R4, [R2] ;
        /*0030*/  LDG.E.LTC128B.64 R4, [R2] ;
        /*0040*/  LDG.E R4, [R2] ;
        /*0050*/  STG.E.128 desc[UR4][R2.64], R4 ;
        /*0060*/  STL [R1], R4 ;
        /*0070*/  LDL.LU R4, [R1] ;
        /*0080*/  LDSM.16.M88.4 R4, [R5] ;
        /*0090*/  LDC R1, c[0x0][0x28] ;
    """
    found = ahead_of_time.read(" Function k:\n  REG:40 STACK:8 SHARED:1024 LOCAL:16 CONSTANT[0]:580", code, 512)
    assert (found.registers, found.stack, found.local, found.shared) == (40, 8, 16, 512)
    assert found.loads == {"128": 1, "16": 1, "64": 1, "32": 1} and found.stores == {"128": 1}
    assert (found.spills, found.through_shared) == (2, 1)


def test_narrow_accesses_are_found_out():
    expected = Expected({"128": 2, "16": 0}, {"128": 1, "32": 0}, {"16": 1}, {"32": 1})
    assert expected.counted({"128": 2, "16": 1, "32": 7}, {"128": 1, "32": 1}) is not None
    assert expected.counted({"128": 2, "16": 4}, {"128": 1, "32": 4}) is not None  # the tail's loop unrolled
    assert expected.counted({"128": 2, "16": 4}, {"128": 1, "32": 5}) is None
    assert expected.counted({"128": 4, "16": 1}, {"128": 1, "32": 1}) is None  # whole tiles are no loop here
    assert expected.counted({"128": 1, "16": 9}, {"128": 1, "32": 1}) is None
    assert expected.counted({"128": 2, "16": 1}, {"32": 5}) is None


@needs_tools
def test_a_launch_that_is_not_one_is_refused():
    from fewstep.kernels import triton_assembly, triton_combine

    with pytest.raises(RuntimeError, match="expected one launch of combine_kernel, got 0"):
        triton_assembly.record(triton_combine, "combine_kernel", lambda module: None)


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(ahead_of_time, "find_spec", lambda name: None)
    assert ahead_of_time.main([]) == 1
    assert "pip install 'fewstep[triton]'" in capsys.readouterr().err


def test_a_table_goes_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    ahead_of_time.write("new\n", page)
    ahead_of_time.write("newer\n", page)
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\nnewer\n\n{END}\nafter\n"
    ahead_of_time.write("alone\n", tmp_path / "other.md")
    assert (tmp_path / "other.md").read_text(encoding="utf-8") == "alone\n"
