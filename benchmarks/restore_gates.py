"""What must hold before `restore` gives any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..inverse.posterior import Posterior
from ..inverse.restore import restore
from ..samplers.backbones import Backbone
from .harness import Gate
from .restore_memory import peak_of
from .restore_problems import TASKS, measurement, seeds
from .restore_rows import FORWARDS, MAIN, METHODS

FEW = 2  # steps that the gates run
SEEN = {"forward": "network", "decoder_forward": "decoder", "encoder_forward": "encoder"}


def gates(backbone: Backbone) -> list[Gate]:
    return [
        Gate("forwards, decodings and encodings in a report are those that the model's parts count",
             _of_each(lambda name, method: _counts(backbone, method))),
        Gate(f"1x is {FORWARDS} forwards an image for every method",
             _of_each(lambda name, method: _budget(backbone, method))),
        Gate("a run's peak memory is the same in 2 and in 4 steps",
             _of_each(lambda name, method: _memory(backbone, method))),
        Gate("the runs are those of fewstep.restore", lambda: _is_restore(backbone)),
    ]  # fmt: skip


def _of_each(check: Callable[[str, Posterior], str | None]) -> Callable[[], str | None]:
    """The first problem of any method, with its name."""

    def run() -> str | None:
        for name in MAIN:
            problem = check(name, METHODS[name])
            if problem is not None:
                return f"{name}: {problem}"
        return None

    return run


def _restored(backbone: Backbone, method: Posterior, steps: int) -> Any:
    y = measurement(TASKS["sr"], "test", 0, 1)
    return replace(method, steps=steps)(backbone, y, seeds=seeds("test", 0, 1))


def _counts(backbone: Backbone, method: Posterior) -> str | None:
    with counted(backbone) as parts:
        ledger = _restored(backbone, method, FEW).report.ledger
    for field, part in SEEN.items():
        if getattr(ledger, field) != parts[part]:
            return f"{field} is {getattr(ledger, field)} in the report, and the {part} saw {parts[part]}"
    return None


@contextmanager
def counted(backbone: Backbone) -> Iterator[Counter[str]]:
    """Rows that go through network, decoder and encoder inside."""
    found: Counter[str] = Counter()
    pipe: Any = getattr(backbone, "pipe")  # noqa: B009
    parts = {"network": pipe.unet, "decoder": pipe.vae.decoder, "encoder": pipe.vae.encoder}

    def counting(name: str) -> Callable[[Any, Any, Any], None]:
        def count(module: Any, args: Any, kwargs: Any) -> None:
            found[name] += len(args[0] if args else kwargs["sample"])

        return count

    hooks = [module.register_forward_pre_hook(counting(name), with_kwargs=True) for name, module in parts.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _budget(backbone: Backbone, method: Posterior) -> str | None:
    """The cost of a step, from two runs, times the steps: nothing else may cost a forward."""
    short, long = (_restored(backbone, method, steps).report.nfe for steps in (1, FEW))
    whole = (long - short) / (FEW - 1) * method.steps
    if short != long - short:
        return f"one step takes {short:g} forwards and the second {long - short:g}"
    return None if whole == FORWARDS else f"{method.steps} steps take {whole:g} forwards"


def _memory(backbone: Backbone, method: Posterior) -> str | None:
    small = replace(method, K=1) if hasattr(method, "K") else method  # type: ignore[call-arg]
    few, more = peak_of(backbone, small, 2), peak_of(backbone, small, 4)
    return None if few == more else f"{few} bytes in 2 steps and {more} in 4"


def _is_restore(backbone: Backbone) -> str | None:
    y, run_seeds = measurement(TASKS["sr"], "test", 0, 2), seeds("test", 0, 2)
    method = replace(METHODS["ldps"], steps=FEW)
    ours = method(backbone, y, seeds=run_seeds).x
    theirs = restore(backbone, y, method, seeds=run_seeds).x
    return None if torch.equal(ours, theirs) else "their pictures differ"
