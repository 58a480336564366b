"""Tables on disk: safetensors with float64 matrices and a JSON header. Loading gives the same bits back or refuses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError
from .grids import MAX_STEPS
from .levels import Level, NoiseSchedule
from .safe_file import Kind
from .solver import Plan

if TYPE_CHECKING:
    from .table import Table

KIND = Kind("fewstep table", "fewstep-table", 1, "Table.save", max_header=16 << 20)
MAX_TICKS = MAX_STEPS
MAX_VECTORS = 64  # registers or outputs of one tick
PLAN = ("nodes", "targets", "step", "stage", "order")
ROW = re.compile(r"row\.(\d{1,5})\.(\d{1,2})")


def save(table: Table, path: str | PathLike[str]) -> None:
    """Write every row that a run can reach. The file appears whole or not at all."""
    KIND.write(path, encode(table))


def encode(table: Table, notes: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The file's bytes. notes: more metadata, which `load` does not read."""
    from safetensors.torch import save as to_bytes

    plan = table.plan
    if len(plan) > MAX_TICKS:
        raise ConfigError(f"a table file holds at most {MAX_TICKS} ticks, this run has {len(plan)}")
    tensors = {f"row.{i}.{length}": torch.tensor(row.coefficients, dtype=torch.float64)
               for (i, length), row in table.all_rows().items()}  # fmt: skip
    for name, levels in (("nodes", plan.nodes), ("targets", plan.targets)):
        tensors[name] = torch.tensor([[float(v) for v in level] for level in levels], dtype=torch.float64)
    for name in ("step", "stage", "order"):
        tensors[name] = torch.tensor(getattr(plan, name), dtype=torch.int64)
    header = {"solver": table.solver, "schedule": table.schedule, "keeps_edits": table.keeps_edits}
    return to_bytes(tensors, {**notes, **KIND.marks, "table": json.dumps(header, allow_nan=False)})


def load(path: str | PathLike[str], schedule: NoiseSchedule | None = None) -> Table:
    """Read a table. ConfigError for a file that is none, IncompatibleError for another schedule or version."""
    from .table import Table, check_same_schedule

    metadata, tensors = KIND.read(Path(path), lambda file: _check_entries(file, path))
    header = _header(metadata.get("table", ""), Path(path))
    if schedule is not None:
        check_same_schedule(header["schedule"], schedule)
    plan = _plan(tensors, path)
    rows = {}
    for name, tensor in tensors.items():
        if match := ROW.fullmatch(name):
            i, length = int(match[1]), int(match[2])
            rows[i, length] = _row(tensor, plan, i, length, path)
    table = Table(plan, header["solver"], header["schedule"], header["keeps_edits"], rows)
    table.all_rows()  # complete, or ConfigError
    return table


def _check_entries(file: Any, path: Any) -> None:
    """Nothing but small entries of the known names."""
    for name in file.keys():
        shape = file.get_slice(name).get_shape()
        if name not in PLAN and not ROW.fullmatch(name):
            raise KIND.refuse(path, f"it has an entry {name[:40]!r}")
        limits = (MAX_TICKS, 3) if name in PLAN else (MAX_VECTORS, MAX_VECTORS)
        if not 1 <= len(shape) <= 2 or any(n > limit for n, limit in zip(shape, limits, strict=False)):
            raise KIND.refuse(path, f"its entry {name} has the shape {shape}")


def _header(text: str, path: Path) -> dict[str, Any]:
    header = KIND.header(text, path, "a table")
    try:
        fields = (header["solver"], header["schedule"], header["keeps_edits"], header["schedule"]["kind"])
    except (KeyError, TypeError) as error:
        raise KIND.refuse(path, "its header does not describe a table") from error
    well_typed = all(isinstance(v, kind) for v, kind in zip(fields, (str, dict, bool, str), strict=True))
    if not well_typed or not (fields[0].isprintable() and fields[3].isprintable()):
        raise KIND.refuse(path, "its header does not describe a table")
    return header


def _plan(tensors: dict[str, torch.Tensor], path: Any) -> Plan:
    if any(name not in tensors for name in PLAN):
        raise KIND.refuse(path, f"it lacks one of {', '.join(PLAN)}")
    nodes, targets, *counts = (tensors[name] for name in PLAN)
    n = nodes.shape[0] if nodes.dim() == 2 else 0
    shapes = [tuple(nodes.shape), tuple(targets.shape), *(tuple(c.shape) for c in counts)]
    if not 1 <= n <= MAX_TICKS or shapes != [(n, 3), (n, 3), (n,), (n,), (n,)]:
        raise KIND.refuse(path, f"its plan has shapes {shapes}")
    if nodes.dtype != torch.float64 or targets.dtype != torch.float64 or any(c.dtype != torch.int64 for c in counts):
        raise KIND.refuse(path, "its plan has wrong dtypes")
    levels = [tuple(Level(*line) for line in t.tolist()) for t in (nodes, targets)]
    plan = Plan(levels[0], levels[1], *(tuple(c.tolist()) for c in counts))
    _check_plan(plan, path)
    return plan


def _check_plan(plan: Plan, path: Any) -> None:
    """Levels are levels, each tick begins where the one before ended, counts are counts."""
    for level in (*plan.nodes, *plan.targets):
        fits = all(map(math.isfinite, level)) and min(level.alpha, level.sigma) >= 0 < level.alpha + level.sigma
        if not fits:
            raise KIND.refuse(path, f"it has a level that is not finite or no noise level: {tuple(level)}")
    if plan.nodes[1:] != plan.targets[:-1]:
        raise KIND.refuse(path, "its ticks do not begin where the ones before end")
    step, stage = 0, -1
    for i in range(len(plan)):
        step, stage = (step, stage + 1) if plan.step[i] == step else (step + 1, 0)
        if (plan.step[i], plan.stage[i]) != (step, stage) or not 1 <= plan.order[i] <= MAX_VECTORS:
            raise KIND.refuse(path, f"tick {i} has step {plan.step[i]}, stage {plan.stage[i]}, order {plan.order[i]}")


def _row(tensor: torch.Tensor, plan: Plan, i: int, length: int, path: Any) -> Any:
    from .table import Row, registers_of

    names = registers_of(length) if 0 <= length <= MAX_VECTORS else ()
    shaped = tensor.dim() == 2 and 1 <= tensor.shape[0] <= MAX_VECTORS and tensor.shape[1] == len(names)
    if not shaped or tensor.dtype != torch.float64 or not 0 <= i < len(plan):
        raise KIND.refuse(path, f"tick {i} has coefficients of shape {tuple(tensor.shape)}, {tensor.dtype}")
    if not bool(torch.isfinite(tensor).all()):
        raise KIND.refuse(path, f"tick {i} has a coefficient that is not finite")
    return Row.of(plan.nodes[i], length, tuple(tuple(line) for line in tensor.tolist()))
