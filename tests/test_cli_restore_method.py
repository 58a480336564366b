"""``fewstep restore --method``: texts of methods, their solvers and grids."""

from __future__ import annotations

import pytest

from fewstep.errors import ConfigError
from fewstep.inverse.named import METHODS, fields_of, method_of, written

from . import cli_runs

cli = cli_runs.cli


@pytest.mark.parametrize("text", [*METHODS, "stsl:K=2,solver=2m,init=gaussian", "ldps:solver=sde-2m:eta=0.5"])
def test_a_method_is_its_text(text):
    method = method_of(text)
    name = text.partition(":")[0]
    values = fields_of(method)
    assert values["steps"] == method.steps
    assert method_of(written(name, values)) == method


@pytest.mark.parametrize(
    "text, solver, grid",
    [
        ("stsl:solver=sde-2m:eta=0.5", "sde-2m:eta=0.5", "time"),
        ("stsl:solver=unipc-3:variant=bh1", "unipc-3:variant=bh1", "time"),
        ("stsl:solver=DPM++ 2M Karras", "2m", "karras"),
        ("stsl:solver=DPM++ 2M Karras,grid=beta", "2m", "beta"),
        ("stsl:grid=karras:rho=5", "ddim", "karras:rho=5"),
    ],
)
def test_solvers_and_grids_of_a_method_have_our_names(text, solver, grid):
    values = fields_of(method_of(text))
    assert (values["solver"], values["grid"]) == (solver, grid)
    assert method_of(written("stsl", values)) == method_of(text)


@pytest.mark.parametrize(
    "text, words",
    [("stsl:solver=adaptive-12", "a solver of a fixed number of steps"), ("stsl:grid=no", "unknown grid 'no'")],
)
def test_what_a_method_cannot_run_with(text, words):
    with pytest.raises(ConfigError, match=words):
        method_of(text)


@pytest.mark.parametrize("how", [("--operator", "sr:help"), ("--method", "stsl:help")])
def test_help_is_there_where_it_is_looked_for(cli, how):
    code, out, err = cli("restore", *how)
    assert (code, err) == (0, "") and out == cli("restore", how[0], "help")[1]
