"""What `guidance` chooses before it measures, on captions of the training set.

AG's threshold comes from gamma curves of full guidance. LinearAG's coefficients are fitted on one half of the captions,
and its plan, window and ridge are those with the smallest latent error on the other half:

    python -m fewstep.benchmarks.guidance_choose [--cache FOLDER]

prints every setting that was tried. The chosen ones stand in this file, and are what `guidance` runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..guidance import policy_file
from ..guidance.adaptive import AdaptiveGuidance
from ..guidance.cfg import CFG
from ..guidance.linear import Kind, LinearAG, kinds_alternating, kinds_leading
from ..guidance.linear_fit import fit_linear
from ..guidance.made_for import MadeFor
from ..guidance.space import Space
from ..models import DEFAULT_SCALE, embedded
from ..samplers.backbones import Backbone, load_backbone
from .guidance_pairs import CHUNK, STEPS, Measured, Row, calibration_pairs, measured, solved, table_for
from .guidance_rows import first_steps, frozen
from .guidance_statistics import paired, relative_errors
from .intervals import mean_interval

CAPTIONS = 200  # for gamma; the first FITTED of them for LinearAG, whose settings are compared on the next TRIED
FITTED, TRIED = 100, 100
TARGET = 29.5  # NFE on the calibration captions; 30 is the goal, and other prompts may cost more
SEARCHED = Path(__file__).parent / "results" / "guidance_searched.safetensors"


def gammas(backbone: Backbone, space: Space, count: int = CAPTIONS) -> NDArray[np.float64]:
    """[count, steps]: gamma of every caption at every step under full guidance."""
    row = Row("gamma", "", "", AdaptiveGuidance(2.0, space=space))
    found = []
    for first in range(0, count, CHUNK):
        scores = solved(backbone, row, calibration_pairs(first, min(CHUNK, count - first))).report.scores
        found.append(np.array([scores[i] for i in sorted(scores)]).T)
    return np.concatenate(found)


def kept_gammas(folder: Path, backbone: Backbone, space: Space) -> NDArray[np.float64]:
    """`gammas`, from the cache where it has them."""
    path = folder / f"gammas-{space}-{CAPTIONS}.npy"
    if not path.is_file():
        found = gammas(backbone, space)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        with unfinished.open("wb") as file:
            np.save(file, found)
        os.replace(unfinished, path)
    return np.load(path, allow_pickle=False)


def mean_nfe(curves: NDArray[np.float64], threshold: float) -> float:
    """What AG (rule "next") costs on these curves: the steps, and those up to the first that crosses."""
    crossed = np.maximum.accumulate(curves, axis=1) >= threshold
    steps = curves.shape[1]
    return steps + float(np.minimum((~crossed).sum(axis=1) + 1, steps).mean())


def threshold_for(curves: NDArray[np.float64], nfe: float) -> float:
    """The largest threshold that costs at most `nfe` on these curves, which are the same up to the switch."""
    candidates: Sequence[float] = np.unique(np.maximum.accumulate(curves, axis=1)).tolist()
    low, high = 0, len(candidates) - 1
    if mean_nfe(curves, candidates[0]) > nfe:
        raise ValueError(f"no threshold costs {nfe} NFE on {curves.shape[1]} steps")
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if mean_nfe(curves, candidates[middle]) <= nfe else (low, middle - 1)
    return candidates[low]


class Setting(NamedTuple):
    """How a LinearAG is fitted."""

    name: str
    kinds: tuple[Kind, ...]
    window: int | None = None
    ridge: float = 1e-6

    @property
    def text(self) -> str:
        return f"{self.name}, window {self.window or 'all'}, ridge {self.ridge:g}"


def spread(*evaluated: int) -> tuple[Kind, ...]:
    """u evaluated at these steps and estimated at all others."""
    return tuple("cfg" if i in evaluated else "linear" for i in range(STEPS))


ALTERNATING = Setting("alternating in the first 10 steps", kinds_alternating(STEPS, 10))
"""The plan of the paper."""
ALTERNATING_12 = Setting("alternating in the first 12 steps", kinds_alternating(STEPS, 12))
LEADING = Setting("u at the first 6 steps, then estimated", kinds_leading(STEPS, 6))
SPREAD = Setting("u at steps 1, 2, 4, 6, 8, 11, else estimated", spread(0, 1, 3, 5, 7, 10))
SPREAD_4 = Setting("u at steps 1, 2, 4, 7, else estimated", spread(0, 1, 3, 6))
SETTINGS = (
    ALTERNATING,
    ALTERNATING_12,
    LEADING,
    SPREAD,
    SPREAD_4,
    *(SPREAD._replace(window=w, ridge=r) for w, r in ((None, 1e-4), (2, 1e-6))),
)


def fitted(folder: Path, backbone: Backbone, setting: Setting) -> LinearAG:
    """The coefficients of a setting, from the cache where it has them; else fitted on policy."""
    path = folder / f"linear-{setting.text.replace(' ', '-').replace(',', '')}.safetensors"
    if path.is_file():
        policy = policy_file.load(path)[0]
        assert isinstance(policy, LinearAG)
        return policy

    def run(policy: Any, batch: Any) -> object:
        return solved(backbone, Row("fit", "", "", policy, scale=None), batch)

    batches = [calibration_pairs(first, CHUNK) for first in range(0, FITTED, CHUNK)]
    fit = fit_linear(run, batches, setting.kinds, scale=DEFAULT_SCALE, window=setting.window, ridge=setting.ridge)
    folder.mkdir(parents=True, exist_ok=True)
    told = {"prediction": "eps", "scale": DEFAULT_SCALE, "negative": "empty", "calibrated_on": "training captions"}
    policy_file.save(fit.policy, path, MadeFor.of_table(table_for(backbone, "2m", STEPS), **told))
    return fit.policy


LINEAR = {"linear-10": ALTERNATING, "linear-12": ALTERNATING_12, "linear-spread": SPREAD, "linear-spread-4": SPREAD_4}
"""Row -> setting, of those that are run on the test pairs. SPREAD is the nearest to CFG within 26 NFE."""


def chosen_rows(folder: Path, backbone: Backbone, names: Iterable[str] | None = None) -> dict[str, Row]:
    """The rows that need something from the training captions, or those with these names, by name.

    The searched policy is among them once there is a file of it.
    """
    makers: dict[str, Callable[[], Row]] = {"ag-calibrated": lambda: calibrated_row(folder, backbone)}
    makers |= {name: partial(linear_row, name, setting, folder, backbone) for name, setting in LINEAR.items()}
    if SEARCHED.is_file():
        policy = policy_file.load(SEARCHED)[0]
        makers["searched"] = lambda: Row("searched", "searched policy", "searched", policy, scale=None)
    return {name: make() for name, make in makers.items() if names is None or name in names}


def calibrated_row(folder: Path, backbone: Backbone) -> Row:
    threshold = threshold_for(kept_gammas(folder, backbone, "x0"), TARGET)
    return Row("ag-calibrated", f"AG, calibrated: gamma {threshold:.5f}", "AG", AdaptiveGuidance(threshold))


def linear_row(name: str, setting: Setting, folder: Path, backbone: Backbone) -> Row:
    return Row(name, f"LinearAG, {setting.name}", "LinearAG", fitted(folder, backbone, setting))


def tried(backbone: Backbone, rows: Sequence[Row], show: Callable[[str], object]) -> None:
    """Every row on the second half of the captions: NFE, latent error and accuracy beside full guidance."""
    batches = [calibration_pairs(CAPTIONS + first, CHUNK) for first in range(0, TRIED, CHUNK)]
    cfg = Row("cfg", "CFG", "CFG", CFG())
    reference = Measured.joined([measured(backbone, cfg, batch) for batch in batches])
    for row in rows:
        found = Measured.joined([measured(backbone, row, batch) for batch in batches])
        error, difference = mean_interval(relative_errors(found, reference)), paired(found, reference)
        show(f"{row.label:70} NFE {found.nfe.mean():6.2f}  latent error {error.mean:.4f}  "
             f"accuracy {found.accepted.mean():.3f}, lost {difference.lost}, gained {difference.gained}")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: every setting on captions that it was not fitted on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fewstep-guidance", help="folder")
    options = parser.parse_args(argv)
    backbone = load_backbone(str(embedded("tiny-sd")))
    curves = {space: kept_gammas(options.cache, backbone, space) for space in ("x0", "eps", "v")}
    rows = []
    for space, found in curves.items():
        threshold = threshold_for(found, TARGET)
        policy = AdaptiveGuidance(threshold, space=space)  # type: ignore[arg-type]
        rows.append(Row(f"ag-{space}", f"AG in {space}, gamma {threshold:.6f}", "AG", policy))
    rows += [Row("linear", f"LinearAG, {s.text}", "LinearAG", fitted(options.cache, backbone, s)) for s in SETTINGS]
    tried(backbone, [*rows, *first_steps((5, 6, 9)), *frozen((5, 6, 9))], print)
    return 0


if __name__ == "__main__":
    sys.exit(main())
