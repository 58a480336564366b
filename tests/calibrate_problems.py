"""Samples of a tiny model for the tests of calibration, and a backbone that is interrupted."""

from __future__ import annotations

from fewstep.guidance.calibrate_runs import Samples
from fewstep.guidance.layout import table_of
from fewstep.samplers.backbones import backbone_of
from fewstep.samplers.solver_config import solver_of

from .tiny import tiny_sd

PROMPTS = ("a", "b b", "c d e")
N = len(PROMPTS)


def samples_of(solver: str = "2m", steps: int = 6, **others) -> Samples:
    backbone = backbone_of(tiny_sd())
    table = table_of(backbone.schedule, solver_of(solver), steps=steps)
    return Samples(backbone, table, PROMPTS, tuple(range(N)), 4.0, **{"batch": 2, **others})


class Interrupting:
    """A backbone whose network is interrupted after some calls."""

    def __init__(self, backbone, calls: int) -> None:
        self._backbone, self.left = backbone, calls
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def encode(self, *args, **kwargs):
        network = self._backbone.encode(*args, **kwargs)

        def call(x, level, branches, rows=None):
            self.calls += 1
            if self.calls > self.left:
                raise KeyboardInterrupt
            return network(x, level, branches, rows)

        call.schedule, call.parametrisation = network.schedule, network.parametrisation
        return call
