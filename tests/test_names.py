"""Names of solvers and grids, ours and other programs'."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from fewstep.aliases import ABSENT, GRID_DIFFERS, GRID_TABLES, SAME, SOLVER_TABLES, TRUE_ORDER
from fewstep.errors import ConfigError
from fewstep.names import (
    ADAPTIVE_NAMES,
    DEFAULT_SOLVER,
    GRID_NAMES,
    SOLVER_NAMES,
    default_grid,
    resolve_grid,
    resolve_solver,
)
from fewstep.samplers import (
    EPS,
    FLOW,
    GRIDS,
    SOLVERS,
    DiscreteVP,
    DPMpp2M,
    DPMpp2S,
    SDEDPMpp2M,
    UniPC,
    V,
    karras,
)
from fewstep.samplers.defaults import default_grid as of_solver
from fewstep.samplers.defaults import default_solver
from fewstep.samplers.solver_config import grid_of, solver_and_grid, solver_of

DOC = Path(__file__).resolve().parents[1] / "docs" / "names.md"
SD = DiscreteVP.scaled_linear()
SOLVER_ROWS = list(chain(*SOLVER_TABLES.values()))
GRID_ROWS = list(chain(*GRID_TABLES.values()))


def test_names_agree():
    assert tuple(SOLVERS) == SOLVER_NAMES
    assert tuple(GRIDS) == GRID_NAMES


@pytest.mark.parametrize("name", [*SOLVER_NAMES, *ADAPTIVE_NAMES])
def test_our_names_are_themselves(name):
    assert resolve_solver(name) == (name, None, SAME)
    if name in SOLVERS:
        assert solver_of(name) == SOLVERS[name]()


@pytest.mark.parametrize("alias", SOLVER_ROWS, ids=lambda alias: alias.theirs)
def test_every_solver_of_the_table(alias):
    name = alias.ours.partition(":")[0]
    assert name in SOLVERS or name in ADAPTIVE_NAMES  # the nearest one too
    if name in SOLVERS:
        solver_of(alias.ours)
    if alias.exact == ABSENT:
        with pytest.raises(ConfigError, match=f"not here: .*nearest is '{alias.ours}'"):
            resolve_solver(alias.theirs)
    else:
        named = resolve_solver(alias.theirs)
        assert named.solver == alias.ours and named.grid is None
        if alias.theirs.lower() not in SOLVERS:  # else it is our own name
            assert named.exact.startswith(alias.exact)


@pytest.mark.parametrize("alias", GRID_ROWS, ids=lambda alias: alias.theirs)
def test_every_grid_of_the_table(alias):
    assert alias.ours in GRIDS
    if alias.exact == ABSENT:
        with pytest.raises(ConfigError, match=f"not here: .*nearest is '{alias.ours}'"):
            resolve_grid(alias.theirs)
    else:
        assert resolve_grid(alias.theirs).grid == alias.ours


def test_one_name_has_one_meaning():
    for rows in (SOLVER_ROWS, GRID_ROWS):
        meaning = {}
        for alias in rows:
            assert alias.exact in (SAME, TRUE_ORDER, GRID_DIFFERS, ABSENT)
            assert alias.note or alias.exact == SAME
            key = alias.theirs.lower().replace("++", "pp").replace("_", "").replace(" ", "")
            assert meaning.setdefault(key, alias.ours) == alias.ours, alias


@pytest.mark.parametrize(
    ("text", "solver", "grid"),
    [
        ("DPM++ 2M Karras", "2m", "karras"),
        ("dpmpp_2m", "2m", None),
        ("  dpm++ 2m   SGM uniform ", "2m", "linspace"),
        ("DPM++ 2M SDE Heun Exponential", "sde-2m:solver_type=taylor", "exponential"),
        ("DPM++ 2M SDE Heun Karras:eta=0.5", "sde-2m:solver_type=taylor,eta=0.5", "karras"),
        ("dpm-2m Simple", "dpm-2m", "trailing"),
        ("DPM2 Karras", "dpm-2s", "karras"),
        ("Euler a", "ddpm", None),
        ("UniPC", "unipc-3:variant=bh1", None),
        ("uni_pc_bh2 beta", "unipc-3", "beta"),
        ("sde-2m: eta=0.5", "sde-2m:eta=0.5", None),
        ("DPMSolverMultistepScheduler:use_karras_sigmas=true", "2m", "karras"),
        ("DPMSolverMultistepScheduler:use_karras_sigmas=False, solver_order=2", "2m", None),
        ("UniPCMultistepScheduler:solver_type=bh1,solver_order=3", "unipc-3:variant=bh1", None),
        ("UniPCMultistepScheduler:timestep_spacing=trailing", "unipc-2", "trailing"),
    ],
)  # fmt: skip
def test_what_people_type(text, solver, grid):
    named = resolve_solver(text)
    assert (named.solver, named.grid) == (solver, grid)
    assert solver_and_grid(text) == (solver_of(solver), grid) if text != "UniPC" else True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpmpp_4m", "unknown solver 'dpmpp_4m': did you mean 'DPM\\+\\+ 2M' or .*docs/names.md"),
        ("", "unknown solver '': ours are 2m, 3m"),
        ("karras", "'karras' is a grid, not a solver"),
        ("DPM++ 2M KL Optimal", "the grid 'KL Optimal' is not here: equal steps in arctan"),
        ("deis", "not here: theirs interpolates in the time of a VP model, ours in log sigma. The nearest is 'deis-3'"),
        ("DPMSolverMultistepScheduler:solver_order=7", "with 'solver_order=7' is not in the table; of this class"),
        ("DPMSolverMultistepScheduler:solver_order", "written key=value,key=value, got 'solver_order'"),
    ],
)  # fmt: skip
def test_what_cannot_be_resolved_says_what_can(text, message):
    with pytest.raises(ConfigError, match=message):
        resolve_solver(text)


def test_grids_that_cannot_be_resolved():
    with pytest.raises(ConfigError, match="'2m' is a solver, not a grid"):
        resolve_grid("2m")
    with pytest.raises(ConfigError, match="unknown grid 'karas': did you mean 'Karras'"):
        resolve_grid("karas")


def test_names_cost_no_torch():
    code = "import sys, fewstep.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hyper_parameters_have_their_fields_types():
    assert solver_of("sde-2m:eta=0.5,solver_type=taylor") == SDEDPMpp2M(0.5, "taylor")
    assert solver_of("2m:lower_order_final=false") == DPMpp2M(lower_order_final=False)
    assert solver_of("DPMpp2S:r1=0.3") == DPMpp2S(0.3) == solver_of({"name": "2s", "r1": 0.3})
    assert solver_of({"name": "DPM++ 2M SDE", "eta": 0.5}) == SDEDPMpp2M(0.5)
    assert solver_of({"name": "UniPC", "order": 3}) == UniPC(3) == solver_of("unipc-3")
    levels = grid_of("karras:rho=5")(SD, 4)
    assert levels == karras(SD, 4, rho=5.0) != karras(SD, 4)
    assert grid_of("SGM Uniform") is GRIDS["linspace"]
    assert grid_of("karras:to_zero=false")(SD, 4)[-1].sigma > 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sde-2m:foo=1", "solver sde-2m has no parameter 'foo'; it has eta, solver_type, lower_order_final"),
        ("sde-2m:eta=much", "eta of solver sde-2m must be a number, got 'much'"),
        ("sde-2m:eta=0.1,eta=0.2", "eta is given twice"),
        ("sde-2m:eta=3", "eta must be between 0"),
        ("unipc-3:order=2.5", "order of solver unipc-3 must be a whole number, got '2.5'"),
        ("2m:lower_order_final=1", "must be true or false, got '1'"),
        ("unipc-3:variant=bh7", "must be one of bh1, bh2, vary, got 'bh7'"),
        ("sde-2m:eta=__import__('os')", "must be a number"),
        ("DPM++ 2M Karras", "names a grid too, .*grid='karras'"),
        ("UniPC", "'UniPC' is the class UniPC.order=2.* here, and 'unipc-3:variant=bh1' in other programs"),
        ("adaptive-23", "chooses its steps while it runs"),
    ],
)
def test_solver_of_refuses(text, message):
    with pytest.raises(ConfigError, match=message):
        solver_of(text)


def test_grid_of_refuses():
    with pytest.raises(ConfigError, match="grid karras has no parameter 'foo'; it has rho"):
        grid_of("karras:foo=1")
    with pytest.raises(ConfigError, match="rho of grid karras must be a number, got 'x'"):
        grid_of("karras:rho=x")
    with pytest.raises(ConfigError, match="got 3; for explicit times"):
        grid_of(3)  # type: ignore[arg-type]


def times(grid, n):
    return [level.time for level in GRIDS[grid](SD, n)[:-1]]


@pytest.mark.parametrize("n", [1, 4, 10, 20, 30, 7])
def test_grids_of_other_programs(n):
    """ComfyUI's rules for a model of 1000 times, written out; sigma = 0 follows."""
    divides = 1000 % n == 0
    normal = [999.0 - 999.0 * i / (n - 1) for i in range(n)] if n > 1 else [999.0]
    assert times("time", n) == pytest.approx(normal, abs=1e-9)
    simple = [999 - int(x * 1000 / n) for x in range(n)]
    apart = max(abs(a - b) for a, b in zip(times("trailing", n), simple, strict=True))
    assert apart == 0 if divides else 0 < apart <= 1
    ddim_uniform = list(range(1, 1000, 1000 // n))[::-1]
    assert (times("leading", n) == ddim_uniform) == divides
    assert divides or len(ddim_uniform) > n
    sgm_uniform = [999.0 - 999.0 * i / n for i in range(n)]
    assert times("linspace", n) == [round(t) for t in sgm_uniform]
    sbars = [math.exp(-level.lam) for level in GRIDS["exponential"](SD, n)[:-1]]
    ends = [math.exp(-float(level.lam)) for level in (SD.noisiest, SD.cleanest)]
    exponential = [ends[0] * (ends[1] / ends[0]) ** (i / max(n - 1, 1)) for i in range(n)]
    assert sbars == pytest.approx(exponential, rel=1e-9)


def rows_of(tables):
    """The lines of docs/names.md that the tables make."""
    for program, aliases in tables.items():
        for alias in aliases:
            ours = f"nearest: `{alias.ours}`" if alias.exact == ABSENT else f"`{alias.ours}`"
            yield f"| {program} | `{alias.theirs}` | {ours} | {alias.exact}{'; ' + alias.note if alias.note else ''} |"


def test_the_document_is_the_table():
    text = DOC.read_text(encoding="utf-8")
    assert f"# {resolve_solver('DPM++ 2M SDE Karras')}\n" in text
    programs = tuple(f"| {program} |" for program in SOLVER_TABLES)
    rows = [line for line in text.splitlines() if line.startswith(programs)]
    assert rows == [*rows_of(SOLVER_TABLES), *rows_of(GRID_TABLES)]


def test_the_solvers_page_has_every_name():
    page = (Path(__file__).parents[1] / "docs" / "solvers.md").read_text(encoding="utf-8")
    missing = [name for name in (*SOLVER_NAMES, *ADAPTIVE_NAMES, *GRID_NAMES) if f"`{name}`" not in page]
    assert not missing


def test_the_command_line_has_the_librarys_defaults():
    assert SOLVERS[DEFAULT_SOLVER]() == default_solver(EPS)
    for name, make in SOLVERS.items():
        assert default_grid(name) == of_solver(make(), EPS) == of_solver(make(), V)
        assert of_solver(make(), FLOW) == "flow"
