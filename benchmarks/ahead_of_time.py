"""What the assembler makes of each Triton kernel, for GPUs that are not there: registers, spills, width of accesses.

    python -m fewstep.benchmarks.ahead_of_time [--all] [--output docs/kernels.md]

It measures no time. It needs Triton and the disassemblers that come with it, and no GPU.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .ahead_of_time_expected import Expected, Variant
from .ahead_of_time_variants import variants

BEGIN = "<!-- made by python -m fewstep.benchmarks.ahead_of_time -->"
END = "<!-- end -->"
COLUMNS = (
    "variant", "registers", "128-bit loads", "128-bit stores", "narrower loads", "narrower stores",
    "through shared memory", "spills", "stack", "local",
)  # fmt: skip

_INSTRUCTION = re.compile(r"\b(LDG|STG|LDL|STL|LDS|STS|LDSM|STSM)((?:\.\w+)*)\s")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_WIDTHS = {"128": "128", "64": "64", "U16": "16", "S16": "16", "U8": "8", "S8": "8"}


@dataclass(frozen=True)
class Resources:
    """Of one kernel, tail and all: per thread, but shared bytes per program.

    loads, stores: instructions on global memory by width in bits ("128", "64", "32", "16", "8").
    spills: loads and stores of local memory.       through_shared: loads and stores of shared memory.
    """

    registers: int
    stack: int
    shared: int
    local: int
    loads: dict[str, int]
    stores: dict[str, int]
    spills: int
    through_shared: int


def unavailable() -> str | None:
    """Why nothing can be inspected here, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed: pip install 'fewstep[triton]'"
    from ..kernels import choice, triton_assembly

    if choice.interpreted():
        return "Triton interprets kernels here, and does not compile them: unset TRITON_INTERPRET"
    return None if triton_assembly.has_tools() else "this Triton comes without cuobjdump and nvdisasm"


def inspect(variant: Variant) -> tuple[Resources, Expected]:
    """What the kernel takes on the variant's GPU, and what its accesses should be."""
    from ..kernels import triton_assembly

    module = import_module(f"..kernels.{variant.module}", __package__)
    launch = triton_assembly.record(module, variant.kernel, variant.call)
    return read(*triton_assembly.assemble(launch, variant.arch)), variant.expect(launch)


def read(usage: str, code: str, shared: int) -> Resources:
    """See triton_assembly.Machine. cuobjdump's own figure of shared memory leaves out what a launch asks for."""
    found = _USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"no resource usage in {usage!r}")
    registers, stack, local = map(int, found.groups())
    kinds: Counter[str] = Counter()
    widths: dict[str, Counter[str]] = {"LDG": Counter(), "STG": Counter()}
    for name, modifiers in _INSTRUCTION.findall(code):
        kinds[name] += 1
        if name in widths:
            widths[name][next((_WIDTHS[m] for m in modifiers.split(".") if m in _WIDTHS), "32")] += 1
    spills = kinds["LDL"] + kinds["STL"]
    through_shared = sum(kinds[name] for name in ("LDS", "STS", "LDSM", "STSM"))
    return Resources(registers, stack, shared, local, dict(widths["LDG"]), dict(widths["STG"]), spills, through_shared)


def table(chosen: Sequence[Variant]) -> str:
    """Markdown: the versions, then a row per variant."""
    from ..kernels import triton_assembly

    rows = []
    for variant in chosen:
        found, expected = inspect(variant)
        loads, stores = expected.counted(found.loads, found.stores) or (expected.loads, expected.stores)
        rows.append((
            variant.name, f"{found.registers}",
            f"{found.loads.get('128', 0)} of {loads.get('128', 0)}",
            f"{found.stores.get('128', 0)} of {stores.get('128', 0)}",
            _narrow(found.loads), _narrow(found.stores), f"{found.through_shared}",
            f"{found.spills}", f"{found.stack}", f"{found.local}",
        ))  # fmt: skip
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return f"{triton_assembly.versions()}.\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _narrow(accesses: dict[str, int]) -> str:
    """As in "26 x 32, 2 x 16": how many of how many bits."""
    widths = sorted((int(width) for width in accesses if width != "128"), reverse=True)
    return ", ".join(f"{accesses[str(width)]} x {width}" for width in widths) or "0"


def write(text: str, path: Path) -> None:
    """Between the marks of a file that has them, else as the file."""
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    if BEGIN in page and END in page:
        text = page[: page.index(BEGIN)] + f"{BEGIN}\n\n{text}\n" + page[page.index(END) :]
    path.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Registers, spills and widths of access of the Triton kernels.")
    parser.add_argument("--all", action="store_true", help="every variant, not only those of the fast tests")
    parser.add_argument("--output", metavar="FILE", help="write FILE, or between the marks in it if it has them")
    options = parser.parse_args(argv)
    problem = unavailable()
    if problem is not None:
        print(f"ahead_of_time: {problem}", file=sys.stderr)
        return 1
    text = table([variant for variant in variants() if options.all or variant.fast])
    if options.output:
        write(text, Path(options.output))
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
