"""Runs the command line inside the tests' process; fixtures for the tests of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli.main import main

from .tiny import tiny_sd


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The folder of a tiny pipeline called "tiny"; its pictures are 16x16."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd().save_pretrained(path, safe_serialization=True)
    return str(path)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return run


def pixels(path: Path | str) -> np.ndarray:
    """(H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
