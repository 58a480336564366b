"""The machine code of a launch for a GPU that is not there.

A launcher is called with tensors on the meta device while a recorder stands in for its kernel. So dtypes, constants
and the number of warps are those of a real launch, and Triton compiles them for any GPU without having one.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WARP = 32
Place = tuple[int, ...]  # of an argument; inside a tuple of arguments one number more
_TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip


class Launch(NamedTuple):
    """One launch: the kernel, its arguments by name, and the compiler's options (num_warps, enable_fp_fusion)."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def threads(self) -> int:
        return _WARP * self.options["num_warps"]


class _Recorder:
    """Stands where the kernel stands and takes its launches down."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[Launch] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def run(*values: Any, **named: Any) -> None:
            names = [parameter.name for parameter in self.kernel.params]
            arguments = dict(zip(names, values, strict=False)) | {k: v for k, v in named.items() if k in names}
            self.launches.append(Launch(self.kernel, arguments, {k: v for k, v in named.items() if k not in names}))

        return run


def record(module: ModuleType, kernel: str, call: Callable[[ModuleType], object]) -> Launch:
    """The launch of `module.<kernel>` that `call(module)` makes. RuntimeError if it is not exactly one."""
    recorder = _Recorder(getattr(module, kernel))
    if not isinstance(recorder.kernel, triton.JITFunction):
        raise RuntimeError(f"{kernel} cannot be compiled: Triton's interpreter is on (TRITON_INTERPRET)")
    with patch.object(module, kernel, recorder):
        call(module)
    if len(recorder.launches) != 1:
        raise RuntimeError(f"expected one launch of {kernel}, got {len(recorder.launches)}")
    return recorder.launches[0]


class Machine(NamedTuple):
    """usage: what `cuobjdump -res-usage` says.       code: `nvdisasm -c`.       shared: bytes a program asks for."""

    usage: str
    code: str
    shared: int


def assemble(launch: Launch, arch: int) -> Machine:
    """The launch compiled for a GPU. arch: 90 is sm_90."""
    source = _source(launch)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TRITON_CACHE_DIR=folder):
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, _WARP), options=launch.options)
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage, code = _output("cuobjdump", "-res-usage", str(cubin)), _output("nvdisasm", "-c", str(cubin))
        return Machine(usage, code, compiled.metadata.shared)


def has_tools() -> bool:
    """Whether this Triton brings NVIDIA's disassemblers."""
    return all((TOOLS / name).is_file() for name in ("cuobjdump", "nvdisasm"))


def versions() -> str:
    """Triton's version and the assembler's: the numbers depend on both."""
    release = _output("ptxas", "--version").partition("release ")[2].partition(",")[0]
    return f"Triton {triton.__version__}, ptxas {release}"


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout


def _source(launch: Launch) -> ASTSource:
    """The arguments specialised as Triton's own launcher does it: constants, and what is a multiple of 16."""
    signature: dict[str, Any] = {}
    constants: dict[Place, Any] = {}
    aligned: list[Place] = []
    for k, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[k,] = "constexpr", value
        else:
            signature[parameter.name] = _typed(value, (k,), parameter, constants, aligned)
    attributes = {place: [["tt.divisibility", 16]] for place in aligned}
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def _typed(value: Any, place: Place, parameter: Any, constants: dict[Place, Any], aligned: list[Place]) -> Any:
    """Triton's type of an argument. A whole number 1 becomes a constant; memory is taken to be aligned."""
    if isinstance(value, tuple):
        return tuple(_typed(v, (*place, k), parameter, constants, aligned) for k, v in enumerate(value))
    if isinstance(value, float):
        return "fp32"
    specialised = not parameter.do_not_specialize
    if value is None or (specialised and isinstance(value, int) and value == 1):
        constants[place] = value
        return "constexpr"
    if specialised and not parameter.do_not_specialize_on_alignment and (isinstance(value, Tensor) or value % 16 == 0):
        aligned.append(place)
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype]
    return "i32" if -(2**31) <= value < 2**31 else "i64"
