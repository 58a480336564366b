"""Triton's interpreter is chosen when Triton is imported, so everything under tests/interpreted runs in a process of
its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_kernels_in_the_interpreter(which):
    folder = Path(__file__).parent / "interpreted"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FEWSTEP_KERNELS": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, str(folder)]
    # From a folder of its own: `python -m` puts the current one on sys.path, and ours has a package named `kernels`.
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    print(run.stdout)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
