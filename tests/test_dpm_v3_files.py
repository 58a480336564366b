"""Files of the statistics of DPM-Solver-v3, and values that are none."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.samplers import EDM, DPMv3, EmpiricalStatistics, uniform_lambda

from .solver_rows import VP, states

DATA = EmpiricalStatistics.constant(1.0, 0.0)
WAVY = EmpiricalStatistics.of(
    [-1.0, 0.0, 0.5, 2.0], [0.9, 0.5, 0.4, 0.1], [0.1, -0.2, 0.0, 0.4], [0.0, 0.1, 0.2, 0.0], VP
)


def test_statistics_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "statistics.safetensors"
    columns = (states(4, 3, 2, seed=k) for k in range(3))
    saved = EmpiricalStatistics.of(WAVY.lam, *columns, VP)
    saved.save(path)
    loaded = EmpiricalStatistics.load(path, VP)
    for name in ("lam", "l", "s", "b"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name))
    assert loaded.schedule == saved.schedule and repr(loaded) == repr(saved)
    DATA.save(path)
    assert EmpiricalStatistics.load(path, EDM()).schedule is None


def broken(kind: str, tensors: dict, header: dict) -> None:
    if kind == "nan":
        tensors["l"][1] = math.nan
    elif kind == "order":
        tensors["lam"] = tensors["lam"].flip(0).contiguous()
    elif kind == "entry":
        tensors["extra"] = torch.zeros(1)
    elif kind == "missing":
        del tensors["b"]
    elif kind == "dtype":
        tensors["s"] = tensors["s"].float()
    elif kind == "shape":
        tensors["s"] = tensors["s"][:-1]
    elif kind == "kind":
        header["format"] = "fewstep-table"
    elif kind == "schedule":
        header["schedule"] = json.dumps({"kind": ["x"]})
    elif kind == "json":
        header["schedule"] = "NaN"


KINDS = ("nan", "order", "entry", "missing", "dtype", "shape", "kind", "schedule", "json")


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_refused(tmp_path, kind):
    path = tmp_path / "statistics.safetensors"
    WAVY.save(path)
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    tensors = load_file(path)
    broken(kind, tensors, header)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, header)
    with pytest.raises(ConfigError, match="statistics"):
        EmpiricalStatistics.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "statistics.safetensors"
    with pytest.raises(ConfigError, match="there is no file"):
        EmpiricalStatistics.load(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="no sensible size"):
        EmpiricalStatistics.load(path)
    WAVY.save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match="not a usable"):
        EmpiricalStatistics.load(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        WAVY.save(tmp_path / "nowhere" / "statistics")


def test_statistics_of_another_schedule_are_refused(tmp_path):
    WAVY.save(tmp_path / "file")
    for use in (
        lambda: EmpiricalStatistics.load(tmp_path / "file", EDM()),
        lambda: DPMv3(WAVY).plan(uniform_lambda(EDM(), 4), EDM()),
    ):
        with pytest.raises(IncompatibleError, match="another noise schedule"):
            use()


@pytest.mark.parametrize(
    "values",
    [
        ([0.0, 1.0], [1.0] * 2, [1.0] * 2, [1.0] * 2),
        ([0.0, 2.0, 1.0], [1.0] * 3, [1.0] * 3, [1.0] * 3),
        ([0.0, 1.0, 2.0], [1.0] * 2, [1.0] * 3, [1.0] * 3),
        ([0.0, 1.0, 2.0], [1.0, math.inf, 1.0], [1.0] * 3, [1.0] * 3),
    ],
)
def test_values_that_are_no_statistics_are_refused(values):
    with pytest.raises(ConfigError):
        EmpiricalStatistics.of(*values)
