"""The names that the command line offers without importing torch are the library's."""

from fewstep.names import GRID_NAMES, SOLVER_NAMES
from fewstep.samplers import GRIDS, SOLVERS


def test_names_agree():
    assert tuple(SOLVERS) == SOLVER_NAMES
    assert tuple(GRIDS) == GRID_NAMES
