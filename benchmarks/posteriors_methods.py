"""The rows of `posteriors`: who samples, with what."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import NumericsError
from ..inverse.dps import DPS, DPSGaussian
from ..inverse.ldps import LDPS
from ..inverse.pigdm import PiGDM
from ..inverse.posterior import Posterior
from ..inverse.psld import PSLD
from ..inverse.stsl import STSL
from ..inverse.tmpd import TMPD
from ..samplers import DDIM, GRIDS, NoiseTape, Solver, initial_noise, solve, trace
from .posteriors_problems import Posed

SAMPLES = 300


@dataclass(frozen=True)
class Row:
    """name: in files.       label: in tables.       work: what runs; one seed a sample.
    linear: only where y is linear in x.
    """

    name: str
    label: str
    work: Callable[[Posed, tuple[int, ...]], tuple[Tensor, dict[str, float]]]
    steps: int
    linear: bool = False


def measured(row: Row, posed: Posed, samples: int) -> tuple[Tensor | None, dict[str, Any]]:
    """Latents (n, d), or None and why, and what they cost: NFE and seconds."""
    seeds = tuple(range(100_000 * posed.seed, 100_000 * posed.seed + samples))
    clock = time.perf_counter()
    try:
        z, cost = row.work(posed, seeds)
    except NumericsError as error:
        return None, {"diverged": str(error)}
    return z, {**cost, "seconds": time.perf_counter() - clock}


def exact_draws(posed: Posed, seeds: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
    """Another set of draws of the exact posterior: the best that any row can be."""
    return posed.exact.sample(len(seeds), 30_000 + posed.seed), {}


def oracle(solver: Solver, steps: int) -> Callable[[Posed, tuple[int, ...]], tuple[Tensor, dict[str, float]]]:
    """The exact posterior's own network through `solve`: what is left is the error of the steps."""

    def work(posed: Posed, seeds: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
        backbone = posed.backbone
        table = trace(solver, GRIDS["time"](backbone.schedule, steps), backbone.schedule)
        x = initial_noise(seeds, (1, 1, backbone.prior.dimension)).double()
        result = solve(table, backbone.network(posed.exact), x, tape=NoiseTape(seeds))
        return result.x.flatten(1), {"forward": result.report.nfe / len(seeds), "backward": 0.0}

    return work


def restored(posterior: Posterior) -> Callable[[Posed, tuple[int, ...]], tuple[Tensor, dict[str, float]]]:
    """A posterior, all samples of a problem in one batch."""

    def work(posed: Posed, seeds: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
        method = posterior
        if isinstance(method, TMPD):  # as many iterations as y has entries solve its system
            method = replace(method, iterations=posed.measurement.y[0].numel())
        result = method(posed.backbone, posed.measurement, seeds=seeds)
        cost = result.report.ledger.per_image(len(seeds))
        return posed.latents(result.x), {"forward": cost["forward"], "backward": cost["backward"]}

    return work


def _row(name: str, label: str, posterior: Posterior, linear: bool = False) -> Row:
    return Row(name, label, restored(posterior), posterior.steps, linear)


ROWS: tuple[Row, ...] = (
    Row("floor", "floor: exact draws", exact_draws, 0),
    Row("oracle-1000", "oracle, ancestral", oracle(DDIM(eta=1.0), 1000), 1000),
    Row("oracle-100", "oracle, ancestral", oracle(DDIM(eta=1.0), 100), 100),
    Row("oracle-50", "oracle, DDIM", oracle(DDIM(), 50), 50),
    _row("tmpd-1000", "TMPD", TMPD(steps=1000), True),
    _row("tmpd-100", "TMPD", TMPD(steps=100), True),
    _row("pigdm-1000", "PiGDM", PiGDM(steps=1000), True),
    _row("pigdm-100", "PiGDM", PiGDM(steps=100), True),
    _row("dps-gaussian", "DPSGaussian", DPSGaussian()),
    _row("dps-0.3", "DPS, zeta 0.3", DPS(zeta=0.3)),
    _row("ldps-0.1", "LDPS, zeta 0.1", LDPS(zeta=0.1, weighting="norm")),
    _row("psld-0.1", "PSLD, omega 0.1, gamma 0.01", PSLD(omega=0.1, gamma=0.01, weighting="norm"), True),
    _row("stsl", "STSL, polyak, zeta 0.2 (the default)", STSL(weighting="polyak", zeta=0.2)),
    _row("stsl-norm", "STSL, norm, zeta 0.1", STSL(weighting="norm", zeta=0.1)),
    _row("stsl-norm-first", "STSL, norm, zeta 0.1, eta 0", STSL(weighting="norm", zeta=0.1, eta=0.0)),
    _row("stsl-gaussian", "STSL, gaussian, zeta 0.2", STSL(weighting="gaussian", zeta=0.2)),
)


def applies(row: Row, posed: Posed) -> bool:
    return posed.linear or not row.linear
