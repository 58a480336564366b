"""The table of a run: every solver's formulas, traced once into one small matrix a tick.

`trace(solver, levels, schedule)` calls the solver's own `step` with `LinearForm`s in place of tensors, so nobody writes
a coefficient by hand. A row maps the registers [x, x0, eps, carry..., noise] to [x_next, carry_next...] and knows
neither the network's parametrisation nor guidance; `fold` turns it into the matrix over
[x, network outputs..., carry..., noise].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, IncompatibleError, NumericsError
from ..kernels.upload import uploaded
from .form import LinearForm
from .grids import Levels
from .levels import Level, NoiseSchedule
from .prediction import Parametrisation, Prediction
from .solver import Plan, Solver

Matrix = tuple[tuple[float, ...], ...]
Weights = tuple[float | Tensor, ...]  # one per network output; Tensor[B] where images differ


_MAX_FOLDED = 65_536


class Row(NamedTuple):
    """One tick: float64 coefficients [outputs][inputs]; outputs are x_next, then the next carry.

    moves[k] is the input that output k merely renames (a single coefficient 1), else None.
    evaluates: whether the tick reads x0 or eps at all.       needs_noise: whether it reads the noise.
    """

    level: Level
    inputs: tuple[str, ...]
    coefficients: Matrix
    moves: tuple[int | None, ...]
    evaluates: bool
    needs_noise: bool

    @classmethod
    def of(cls, level: Level, carry_length: int, lines: Matrix) -> Row:
        """From the coefficients over `registers_of(carry_length)`."""
        evaluates = any(line[1] != 0.0 or line[2] != 0.0 for line in lines)
        needs_noise = any(line[-1] != 0.0 for line in lines)
        return cls(level, registers_of(carry_length), lines, tuple(map(move_of, lines)), evaluates, needs_noise)

    @property
    def carry_out(self) -> int:
        """How many vectors the tick remembers."""
        return len(self.coefficients) - 1


class Folded(NamedTuple):
    """An executable row. Registers are (x, network outputs..., carry..., noise).

    live: the registers that `matrix` reads, in its column order.       matrix: [computed outputs][live], or a
    float64 tensor [B, computed outputs, live] where the weights differ per image.
    sources: per output (True, register) for a move or (False, matrix line).
    """

    live: tuple[int, ...]
    matrix: Matrix | Tensor
    sources: tuple[tuple[bool, int], ...]


def registers_of(carry_length: int) -> tuple[str, ...]:
    return ("x", "x0", "eps", *(f"carry{k}" for k in range(carry_length)), "noise")


def trace_tick(solver: Solver, plan: Plan, i: int, carry_length: int) -> Row:
    """Tick i of `solver` as a row, for a carry of the given length."""
    names = registers_of(carry_length)
    form = {name: LinearForm.register(name) for name in names}
    carry = tuple(form[name] for name in names[3:-1])
    x_next, carry_next = solver.step(plan, i, form["x"], Prediction(form["x0"], form["eps"]), carry, form["noise"])
    lines = []
    for output in (x_next, *carry_next):
        line = tuple(float(output.terms.get(name, 0.0)) for name in names)
        if not all(math.isfinite(value) for value in line):
            raise NumericsError(f"{solver} has a coefficient that is not finite at tick {i}, {plan.nodes[i]}: {output}")
        lines.append(line)
    return Row.of(plan.nodes[i], carry_length, tuple(lines))


def move_of(line: Sequence[float]) -> int | None:
    """The input that an output merely renames: its only coefficient, exactly 1."""
    nonzero = [k for k, value in enumerate(line) if value != 0.0]
    return nonzero[0] if len(nonzero) == 1 and line[nonzero[0]] == 1.0 else None


@dataclass(frozen=True, eq=False)
class Table:
    """A run, known before it starts: a plan and one row per tick (and per carry length that can occur there).

    solver: the solver's repr.       schedule: the schedule's `describe()`; origin: the schedule itself, if traced.
    keeps_edits: see Solver.         Equality is of the contents, bit for bit.
    """

    plan: Plan
    solver: str
    schedule: dict[str, Any]
    keeps_edits: bool
    _rows: dict[tuple[int, int], Row] = field(repr=False)
    origin: NoiseSchedule | None = field(default=None, repr=False)
    _tracer: tuple[Solver, Plan] | None = field(default=None, repr=False)
    _folded: dict[Any, Folded] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.plan)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        ours, theirs = ((t.plan, t.solver, t.schedule, t.keeps_edits) for t in (self, other))
        return ours == theirs and self.all_rows() == other.all_rows()

    def row(self, i: int, carry_length: int = 0) -> Row:
        """Tick i for a state that remembers `carry_length` vectors."""
        row = self._rows.get((i, carry_length))
        if row is None:
            if not 0 <= i < len(self):
                raise ConfigError(f"tick {i} does not exist: this run has {len(self)} ticks, 0 to {len(self) - 1}")
            if self._tracer is None:
                raise ConfigError(f"this table has no row for tick {i} with a carry of {carry_length} vectors")
            row = self._rows[i, carry_length] = trace_tick(*self._tracer, i, carry_length)
        return row

    @cached_property
    def noisy(self) -> tuple[bool, ...]:
        """Which ticks of an undisturbed run draw noise."""
        return tuple(row.needs_noise for row in self.rows)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of an undisturbed run, one per tick."""
        rows, length = [], 0
        for i in range(len(self)):
            rows.append(self.row(i, length))
            length = rows[-1].carry_out
        return tuple(rows)

    def all_rows(self) -> dict[tuple[int, int], Row]:
        """Every (tick, carry length) that an edited or late-started run can reach."""
        reached, lengths = {}, {0}
        for i in range(len(self)):
            for length in sorted(lengths):
                reached[i, length] = self.row(i, length)
            lengths = {0} | {reached[i, length].carry_out for length in lengths}
        return reached

    @property
    def evaluations(self) -> int:
        """Network evaluations of the run; times the number of branches and images it is the NFE."""
        return len(self)

    def fold(self, i: int, carry_length: int, parametrisation: Parametrisation, weights: Weights) -> Folded:
        """Tick i's executable row; remembered when the weights are plain numbers. The last tick's makes x alone."""
        key = (i, carry_length, parametrisation, weights)
        folded = self._folded.get(key)  # first, and only then a look at the weights: this runs every tick
        if folded is not None:
            return folded
        if any(isinstance(w, Tensor) for w in weights):
            return weighted(self.fold(i, carry_length, parametrisation, numbers_of(weights)), weights)
        if len(self._folded) >= _MAX_FOLDED:  # weights that change at every tick of many runs
            self._folded.clear()
        folded = self._folded[key] = fold(self._executed(i, carry_length), parametrisation, numbers_of(weights))
        return folded

    def _executed(self, i: int, carry_length: int) -> Row:
        """What is computed of tick i: nobody reads what the last one would remember."""
        row = self.row(i, carry_length)
        if i + 1 < len(self):
            return row
        return row._replace(coefficients=row.coefficients[:1], moves=row.moves[:1])

    def unfolded(self, i: int, carry_length: int) -> Folded:
        """Tick i's row over (x, x0, eps, carry..., noise), for a prediction that exists as tensors."""
        key = (i, carry_length)
        folded = self._folded.get(key)
        if folded is None:
            row = self._executed(i, carry_length)
            movable = (True, False, False, *(True for _ in row.inputs[3:]))
            folded = self._folded[key] = compact([list(line) for line in row.coefficients], movable)
        return folded

    def explain(self) -> str:
        """The run as text: one line per tick and output, with levels and coefficients."""
        from .table_text import explain

        return explain(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table (safetensors, float64, JSON header). It is replaced atomically."""
        from .table_file import save

        save(self, path)

    @staticmethod
    def load(path: str | PathLike[str], schedule: NoiseSchedule | None = None) -> Table:
        """Read a table back, bit for bit; with `schedule`, refuse one that was made for another schedule."""
        from .table_file import load

        return load(path, schedule)


def trace(solver: Solver, levels: Levels, schedule: NoiseSchedule) -> Table:
    """The table of `solver` over `levels`.

    levels: n + 1 levels of a run of n steps (see grids).       Errors: ConfigError for levels that are none,
    NumericsError for a coefficient that is not finite, naming tick and level.
    """
    if not hasattr(solver, "plan"):
        raise ConfigError(f"{solver!r} has no table: it chooses its steps while it runs; solve({solver!r}, network, x)")
    plan = solver.plan(levels, schedule)
    table = Table(plan, repr(solver), schedule.describe(), solver.keeps_edits, {}, schedule, (solver, plan))
    _ = table.rows  # whatever cannot work should fail here, not in the middle of a run
    return table


def fold(row: Row, parametrisation: Parametrisation, weights: tuple[float, ...]) -> Folded:
    """The executable form of `row`: x0 and eps are replaced by x and the weighted network outputs.

    weights: one number per network output, summing to 1 for a guided prediction.
    """
    columns = list(zip(*row.coefficients, strict=True))
    x, x0, eps, *rest = columns
    a, b = parametrisation.x0_row(row.level) if any(x0) else (0.0, 0.0)
    c, d = parametrisation.eps_row(row.level) if any(eps) else (0.0, 0.0)
    lines: list[list[float]] = []
    for k in range(len(row.coefficients)):
        out = x0[k] * b + eps[k] * d
        folded_x = x[k] + x0[k] * a + eps[k] * c
        lines.append([folded_x, *(out * w if out != 0.0 else 0.0 for w in weights), *(v[k] for v in rest)])
    # A network may reuse its output buffer for the next call, so an output that is remembered is copied, not renamed.
    movable = (True, *(False for _ in weights), *(True for _ in rest))
    return compact(lines, movable)


def compact(lines: Sequence[Sequence[float]], movable: Sequence[bool]) -> Folded:
    """Executable form of [outputs][registers] numbers: moves and registers that nothing reads are dropped."""
    sources: list[tuple[bool, int]] = []
    computed: list[Sequence[float]] = []
    for line in lines:
        move = move_of(line)
        if move is not None and movable[move]:
            sources.append((True, move))
        else:
            sources.append((False, len(computed)))
            computed.append(line)
    live = tuple(k for k in range(len(movable)) if any(line[k] != 0.0 for line in computed))
    return Folded(live, tuple(tuple(float(line[k]) for k in live) for line in computed), tuple(sources))


def numbers_of(weights: Weights) -> tuple[float, ...]:
    """The weights with 1 in place of every tensor."""
    return tuple(1.0 if isinstance(w, Tensor) else w for w in weights)


def weighted(folded: Folded, weights: Weights) -> Folded:
    """`folded` for `numbers_of(weights)`, its network outputs times those weights that are tensors, [B] or 0-d.

    The matrix becomes a float64 tensor [B or 1, lines, live], made on the device of the weights in a few operations.
    """
    tensors = [w for w in weights if isinstance(w, Tensor)]
    if not tensors:
        return folded
    size, device = max(w.numel() for w in tensors), tensors[0].device
    one = torch.ones(1, dtype=torch.float64, device=device)
    factors = {1 + j: w.double().reshape(-1) for j, w in enumerate(weights) if isinstance(w, Tensor)}
    columns = torch.stack([factors.get(k, one).expand(size) for k in folded.live], dim=-1)
    matrix = folded.matrix if isinstance(folded.matrix, Tensor) else uploaded(folded.matrix, device, torch.float64)
    return folded._replace(matrix=matrix * columns.unsqueeze(1))


def check_same_schedule(found: dict[str, Any], schedule: NoiseSchedule) -> None:
    """IncompatibleError when a table was made for another schedule."""
    expected = schedule.describe()
    if found != expected:
        keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
        differs = ["levels" if key == "sha256" else key for key in keys]
        raise IncompatibleError(
            f"this table was made for another noise schedule than the model's (other {', '.join(differs)}): make it "
            "again for this model, with fewstep table -m MODEL --save FILE, or trace with the model's schedule"
        )
