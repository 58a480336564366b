"""How the settings of `restore` are chosen: the best mean PSNR of eight, on four scenes that no row is measured on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError
from .restore_measure import collected
from .restore_problems import TASKS
from .restore_rows import GRID, METHODS, Settings, tuning_rows

COMMITTED = Path(__file__).parent / "restore_settings.json"


class Tried(NamedTuple):
    """One setting of one method on one task. psnr: mean, dB, -inf where a run diverged; None where it was not run."""

    task: str
    kind: str
    setting: dict[str, Any]
    psnr: float | None
    right: int
    chi2: float
    failed: str


def tried(folder: Path, task: str, kind: str) -> list[Tried]:
    """All settings of a method on a task, with what the cache knows of them."""
    found = []
    for setting, row in zip(GRID[kind], tuning_rows(task, kind), strict=True):
        m = collected(folder, row)
        if m is None or len(m.psnr) < row.pictures:
            found.append(Tried(task, kind, setting, None, 0, float("nan"), ""))
            continue
        failed = next((text for text in m.failed.tolist() if text), "")
        mean = float("-inf") if failed else float(np.mean(m.psnr))
        found.append(Tried(task, kind, setting, mean, int(m.accepted.sum()), float(np.mean(m.chi2)), failed))
    return found


def chosen(runs: list[Tried]) -> dict[str, Any] | None:
    """The setting of the highest PSNR; None before all were run.       Errors: ConfigError where all diverged."""
    known = [(t.psnr, t.setting) for t in runs if t.psnr is not None]
    if len(known) < len(runs):
        return None
    best, setting = max(known, key=lambda pair: pair[0])
    if best == float("-inf"):
        raise ConfigError(f"all settings of {runs[0].kind} diverge on task {runs[0].task}: give GRID smaller ones")
    return setting


def at_edge(kind: str, setting: Mapping[str, Any]) -> list[str]:
    """The fields that were chosen at the end of what was tried: a better value may lie beyond."""
    tried_values = {name: sorted({s[name] for s in GRID[kind]}) for name in setting}
    return [name for name, value in setting.items() if value in (tried_values[name][0], tried_values[name][-1])]


def read_settings(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """task -> method -> field -> value; {} where there is no file.       Errors: ConfigError for another file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        for task, methods in found.items():
            for kind, setting in methods.items():
                if task not in TASKS or kind not in METHODS or set(setting) != set(GRID[kind][0]):
                    raise KeyError(f"{task}, {kind}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path.name} holds no settings of this benchmark ({error}): delete it, and type --tune"
        ) from None
    return found


def write_settings(path: Path, settings: Settings, command: str) -> None:
    """The file, in the order of tasks and methods; what another process wrote meanwhile is kept."""
    whole = read_settings(path)
    for task, methods in settings.items():
        whole.setdefault(task, {}).update({kind: dict(setting) for kind, setting in methods.items()})
    ordered = {task: {kind: whole[task][kind] for kind in METHODS if kind in whole[task]}
               for task in TASKS if task in whole}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps({"command": command, "settings": ordered}, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
