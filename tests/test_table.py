"""Tables: printing, saving, refusing what is damaged or made for another schedule."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.samplers import (
    EPS,
    SOLVERS,
    DiscreteVP,
    DPMpp2M,
    LinearVP,
    NoiseTape,
    Outputs,
    Table,
    UniPC,
    advance,
    edit,
    solve,
    start,
    trace,
    uniform_lambda,
)

from .problems import Mixture

SD = DiscreteVP.scaled_linear()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_saved_table_is_the_same_table(name, tmp_path):
    """Bit for bit, with every row that an edited run needs, and without the solver at hand."""
    table = trace(SOLVERS[name](), uniform_lambda(SD, 7), SD)
    table.save(tmp_path / "run.table")
    loaded = Table.load(tmp_path / "run.table", SD)
    assert loaded == table and loaded.all_rows() == table.all_rows()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    ends = [solve(t, Mixture(SD), x, tape=NoiseTape((1, 2))).x for t in (table, loaded)]
    assert torch.equal(*ends)
    network = Mixture(SD)
    for t in (table, loaded):
        state = start(t, x)
        for level in t.plan.nodes:
            outputs = Outputs(state.x, level, network(state.x, level, ("cond",)), EPS)
            state = edit(t, advance(t, state, outputs, torch.zeros_like(x)), state.x + 0.1)
        ends.append(state.x)
    assert torch.equal(*ends[2:])


def tampered(tmp_path, change):
    """A saved table after `change(tensors, metadata)`."""
    path = tmp_path / "run.table"
    trace(DPMpp2M(), uniform_lambda(SD, 4), SD).save(path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def set_value(name, index, value):
    def change(tensors, metadata):
        tensors[name][index] = value

    return change


def drop(name):
    return lambda tensors, metadata: tensors.pop(name)


def replaced(name, tensor):
    return lambda tensors, metadata: tensors.update({name: tensor})


def metadata_is(name, value):
    return lambda tensors, metadata: metadata.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("row.1.1", (0, 0), math.nan), "not finite"),
        (set_value("nodes", (1, 1), math.inf), "not finite"),
        (drop("row.2.0"), "no row for tick 2"),
        (drop("order"), "lacks"),
        (replaced("row.1.1", torch.zeros(2, 9, dtype=torch.float64)), "shape"),
        (replaced("row.1.1", torch.zeros(2, 5)), "float32"),
        (replaced("row.9.0", torch.zeros(2, 4, dtype=torch.float64)), "tick 9"),
        (replaced("row.x", torch.zeros(1)), "entry"),
        (replaced("nodes", torch.zeros(20_000, 3, dtype=torch.float64)), "shape"),
        (replaced("nodes", torch.zeros(4, 3, dtype=torch.float64)), "no noise level"),
        (set_value("nodes", (1, 1), -1.0), "no noise level"),
        (set_value("nodes", (1, 1), 0.5), "do not begin where"),
        (set_value("stage", 1, 10**15), "stage"),
        (set_value("step", 2, -5), "step -5"),
        (set_value("order", 0, -5), "order -5"),
        (replaced("junk", torch.zeros(1)), "entry 'junk'"),
        (metadata_is("table", "[" * 200_000), "does not describe"),
        (metadata_is("table", json.dumps({"solver": "s", "schedule": {}, "keeps_edits": True})), "does not describe"),
        (metadata_is("table", '{"solver": "s", "schedule": {"kind": "x", "n": NaN}, "keeps_edits": true}'), "describe"),
        (metadata_is("table", '{"solver": "\\u001b", "schedule": {"kind": "x"}, "keeps_edits": true}'), "describe"),
        (metadata_is("version", "99"), "version '99'"),
        (metadata_is("format", "other"), "another kind"),
        (metadata_is("table", "[]"), "does not describe"),
        (metadata_is("table", json.dumps({"solver": 1, "schedule": {}, "keeps_edits": True})), "does not describe"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, change, message):
    with pytest.raises((ConfigError, IncompatibleError), match=message):
        Table.load(tampered(tmp_path, change))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("not a table at all, but long enough to have a header")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "empty", "missing"):
        with pytest.raises(ConfigError):
            Table.load(tmp_path / name)


def test_another_schedule_is_refused(tmp_path):
    trace(DPMpp2M(), uniform_lambda(SD, 4), SD).save(tmp_path / "run.table")
    for other in (DiscreteVP.linear(), LinearVP(), DiscreteVP.scaled_linear(beta_end=0.0121)):
        with pytest.raises(IncompatibleError, match="another noise schedule"):
            Table.load(tmp_path / "run.table", other)


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        trace(DPMpp2M(), uniform_lambda(SD, 4), SD).save(tmp_path / "run.table")
    assert list(tmp_path.iterdir()) == []


def test_explain_shows_every_coefficient():
    table = trace(UniPC(2), uniform_lambda(SD, 4), SD)
    text = table.explain()
    assert "4 network evaluations" in text and "-inf" not in text and "inf" in text
    assert text.count("x      <-") == 4
    for row in table.rows:
        for value in itertools.chain.from_iterable(row.coefficients):
            assert value in (0.0, 1.0, -1.0) or f"{abs(value):.6g}" in text


def test_tables_that_differ_are_not_equal(tmp_path):
    def flip(tensors, metadata):
        metadata["table"] = metadata["table"].replace('"keeps_edits": true', '"keeps_edits": false')

    table = trace(DPMpp2M(), uniform_lambda(SD, 4), SD)
    assert Table.load(tampered(tmp_path, flip)) != table
    assert trace(DPMpp2M("taylor"), uniform_lambda(SD, 4), SD) != table


def test_tables_are_readable_by_others_and_go_where_they_can(tmp_path):
    table = trace(DPMpp2M(), uniform_lambda(SD, 4), SD)
    table.save(tmp_path / "run.table")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "run.table").stat().st_mode == (tmp_path / "plain").stat().st_mode
    for place in (tmp_path / "missing" / "run.table", tmp_path):
        with pytest.raises(ConfigError, match="cannot be written"):
            table.save(place)
