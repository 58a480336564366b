"""The package as such: layers, what is installed, what importing costs, and what may not be in a file."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

import fewstep

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# What each folder may import besides itself and errors.py. tests/ may import anything.
LAYERS = {
    "errors": set(),
    "aliases": set(),
    "names": {"aliases"},
    "files": set(),
    "kernels": set(),
    "samplers": {"kernels", "files", "names"},
    "guidance": {"samplers", "kernels"},
    "inverse": {"guidance", "samplers", "kernels"},
    "models": {"samplers", "kernels", "files"},
    "cli": {"inverse", "guidance", "samplers", "kernels", "models", "names", "aliases", "files"},
    "benchmarks": {"inverse", "guidance", "samplers", "kernels", "models", "cli", "names"},
}
DIFFUSERS_HOMES = (
    "samplers/backbones/",
    "samplers/scheduler.py",
    "guidance/attach.py",
    "guidance/guider.py",
    "models/",
    "cli/",
    "benchmarks/",  # compares with diffusers' own schedulers
)
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load"}


@cache  # a process of git for each file that is looked at would be half a minute
def checkout_files() -> list[PurePosixPath]:
    """What git has, or would take with ``git add``."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(git, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [PurePosixPath(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


@cache
def package_folders() -> set[str]:
    """Every folder that holds an ``__init__.py``, except the tests."""
    inits = {path.parent.as_posix() for path in checkout_files() if path.name == "__init__.py"}
    return {folder for folder in inits if folder.split("/")[0] != "tests"}


def in_package(path: PurePosixPath) -> bool:
    """Whether a file of the checkout belongs into the wheel."""
    if path.parent == PurePosixPath("."):
        return path.suffix == ".py" or path.name == "py.typed"
    return path.parts[0] in {folder.split("/")[0] for folder in package_folders()}


def modules() -> list[PurePosixPath]:
    return [path for path in checkout_files() if path.suffix == ".py" and in_package(path)]


@cache
def parse(path: PurePosixPath) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


class Import(NamedTuple):
    line: int
    target: str  # "torch.nn"; inside the package a path from the root: "/samplers/table"
    in_function: bool


def imports(path: PurePosixPath) -> Iterator[Import]:
    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(child.lineno, alias.name, in_function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0:
                yield Import(child.lineno, child.module or "", in_function)
            elif isinstance(child, ast.ImportFrom):
                base = path.parts[: len(path.parts) - child.level] + tuple((child.module or "").split("."))
                base = tuple(part for part in base if part)
                yield from (
                    Import(child.lineno, "/" + "/".join((*base, alias.name)), in_function) for alias in child.names
                )
            yield from walk(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(parse(path), False)


def run_python(code: str, *, cwd: Path) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- layers ---------------------------------------------------------------------------------------------------------


def test_each_layer_imports_only_what_lies_below():
    wrong = []
    for path in modules():
        layer = path.parts[0].removesuffix(".py")
        if layer in ("__init__", "__main__"):
            continue
        assert layer in LAYERS, f"{path}: give {layer!r} a place in LAYERS"
        allowed = LAYERS[layer] | {layer, "errors"}
        for line, target, _ in imports(path):
            if target.startswith("/") and target.split("/")[1] not in allowed:
                wrong.append(f"{path}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_imports_inside_the_package_are_relative():
    own = {"fewstep", *LAYERS}
    wrong = [
        f"{path}:{line} imports {target}"
        for path in modules()
        for line, target, _ in imports(path)
        if target.split(".")[0] in own
    ]
    assert not wrong, "\n".join(wrong)


def test_diffusers_and_triton_stay_at_home():
    wrong = []
    for path in modules():
        is_triton = path.parts[0] == "kernels" and path.name.startswith("triton_")
        for line, target, in_function in imports(path):
            name = target.split(".")[0]
            if name == "diffusers" and not path.as_posix().startswith(DIFFUSERS_HOMES):
                wrong.append(f"{path}:{line} imports diffusers")
            if name == "triton" and not is_triton:
                wrong.append(f"{path}:{line} imports triton")
            if re.match(r"/kernels/triton_", target) and not (is_triton or in_function):
                wrong.append(f"{path}:{line} imports {target} at import time; do it inside a function")
    assert not wrong, "\n".join(wrong)


def test_nothing_unsafe():
    wrong = []
    for path in modules():
        wrong += [f"{path}:{i.line} imports {i.target}" for i in imports(path) if i.target in UNSAFE_MODULES]
        calls = (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call))
        wrong += [f"{path}:{c.lineno} {ast.unparse(c.func)}" for c in calls if ast.unparse(c.func) in UNSAFE_CALLS]
    assert not wrong, "\n".join(wrong)


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_are_short():
    python = [path for path in checkout_files() if path.suffix == ".py"]
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in python}
    assert not {path: length for path, length in lengths.items() if length >= 300}


def test_no_file_names_a_machine():
    folders = re.compile(rb"(?<![\w./-])/(?:work|root|home|Users)/")
    hosts = re.compile(rb"\bpypi\.(?:org|python)\b|\bpythonhosted\.|\bdownload\.pytorch\.")
    wrong = []
    for path in checkout_files():
        content = (ROOT / path).read_bytes()
        wrong += [f"{path}: {match.group()!r}" for needle in (folders, hosts) for match in needle.finditer(content)]
    assert not wrong, "\n".join(wrong)


# --- what is installed ----------------------------------------------------------------------------------------------


def test_packages_are_the_folders():
    expected = {"fewstep" if folder == "." else "fewstep." + folder.replace("/", ".") for folder in package_folders()}
    packages = PYPROJECT["tool"]["setuptools"]["packages"]
    assert packages == sorted(expected)


def test_tests_run_on_the_installed_package():
    # With the checkout on sys.path (python -m pytest) an editable install's egg-info there is found first.
    installed = next(d for d in distributions(name="fewstep") if d.read_text("RECORD"))
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    home = ROOT if editable else Path(str(installed.locate_file("fewstep")))
    assert Path(fewstep.__file__).parent.samefile(home)


def test_wheel_holds_what_git_has(tmp_path):
    files = checkout_files()
    for path in files:
        if path.parts[0] != "tests":
            (tmp_path / "src" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tmp_path / "src" / path)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tmp_path / "src")]
    if has_setuptools():
        build.append("--no-build-isolation")
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {f"fewstep/{path}" for path in files if in_package(path)}


def has_setuptools() -> bool:
    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except ImportError:
        return False


# --- importing ------------------------------------------------------------------------------------------------------


def test_import_is_light(tmp_path):
    code = "import sys, fewstep; dir(fewstep), fewstep.__version__; print(*sys.modules)"
    loaded = set(run_python(code, cwd=tmp_path).split())
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "triton", "typer"}


def test_public_names():
    assert fewstep.__all__ == sorted(fewstep.__all__)
    assert set(fewstep.__all__) <= set(dir(fewstep))
    assert fewstep.__version__ == PYPROJECT["project"]["version"]
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        fewstep.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", fewstep.__all__)
def test_every_public_name_exists(name):
    assert getattr(fewstep, name) is not None


@pytest.mark.slow
def test_every_module_imports_without_triton(tmp_path):
    names = [".".join(("fewstep", *path.with_suffix("").parts)) for path in modules() if "triton_" not in path.name]
    code = f"import sys, importlib; sys.modules['triton'] = None\nfor n in {names!r}: importlib.import_module(n)"
    run_python(code, cwd=tmp_path)


# The root of the checkout is on sys.path with `python -c`, `python -m`, a script beside it and `python -m pytest`.
# There `import kernels`, which transformers and diffusers probe for, finds our folder.
PROBE = f"""
import transformers, diffusers
from transformers import CLIPTextModel
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
import kernels
assert kernels.__path__[0] == {str(ROOT / "kernels")!r}, kernels
assert not transformers.utils.is_kernels_available() and not diffusers.utils.is_kernels_available()
"""


@pytest.mark.parametrize(
    "way",
    ["-c", *(pytest.param(way, marks=pytest.mark.slow) for way in ("-m", "script", "-m pytest"))],
)
def test_checkout_on_the_path_breaks_nobody(way, tmp_path):
    script = tmp_path / "test_probe.py"
    script.write_text("def test_probe():\n" + PROBE.replace("\n", "\n    "), encoding="utf-8")
    arguments, environment = {
        "-c": (["-c", PROBE], {}),
        "-m": (["-m", "timeit", "-n1", "-r1", PROBE], {}),
        "script": (["-c", PROBE], {"PYTHONPATH": str(ROOT)}),  # the same first entry, without a file in the root
        "-m pytest": (["-m", "pytest", "-q", "--rootdir", str(tmp_path), str(script)], {}),
    }[way]
    cwd = tmp_path if way == "script" else ROOT
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
