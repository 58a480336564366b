"""A policy search on the samples of a model: its batches, what it was made for, and how it holds on other samples."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..samplers import NoiseTape, Policy
from .calibrate_runs import Bench, Nobody, Samples, Watch
from .calibrate_state import Kept
from .fingerprint import of_pipeline
from .interval import Interval
from .made_for import EMPTY, GIVEN, MadeFor
from .search import Found
from .search_runs import Pairs


class Compared(NamedTuple):
    """A policy on samples that it was not searched on.       nfe: of an image.
    error: [n] relative RMS of each image's last latents to full guidance's.
    """

    name: str
    nfe: float
    error: Tensor


def pairs_of(samples: Samples) -> tuple[Pairs, ...]:
    """The batches as a search takes them; the prompts are encoded here, once."""
    found = []
    for part in samples.batches:
        network, x, seeds = samples.network(part)
        found.append(Pairs(network, x, NoiseTape(seeds) if any(samples.table.noisy) else None))
    return tuple(found)


def made_for(samples: Samples, name: str, about: str) -> MadeFor:
    """What a policy that was searched on `samples` belongs to.       name: of the model; about: the prompts."""
    count, (first, last) = len(samples.prompts), (samples.seeds[0], samples.seeds[-1])
    seeds = f"seed {first}" if count == 1 else f"seeds {first} to {last}"
    return MadeFor.of_table(
        samples.table,
        model=name,
        weights=of_pipeline(getattr(samples.backbone, "pipe", None)),
        prediction=samples.backbone.parametrisation.name,
        scale=samples.scale,
        negative=EMPTY if samples.negative is None else GIVEN,
        calibrated_on=f"{count} prompt{'s' * (count > 1)} {about}, {seeds}",
    )


def compare(samples: Samples, found: Found, watch: Watch | None = None) -> list[Compared]:
    """The searched policy, guidance in the first steps at the same cost and at the next one above, and no guidance.

    samples: others than it was searched on.
    """
    bench = Bench(samples, Kept(None, ""), Nobody() if watch is None else watch)
    bench.full()
    policies: dict[str, Policy] = {"searched": found.policy}
    counts = samples.ticks_of_step.cumsum(0).tolist()
    affordable = [k + 1 for k, ticks in enumerate(counts) if samples.ticks + ticks <= found.nfe]
    for guided in [affordable[-1], affordable[-1] + 1] if affordable else [1]:
        if guided <= len(counts):
            name = "first step guided" if guided == 1 else f"first {guided} steps guided"
            policies[name] = Interval(samples.scale, stop=guided / len(counts))
    policies["no guidance"] = Interval(samples.scale, stop=0.0)
    measured = {name: bench.measure(policy) for name, policy in policies.items()}
    return [Compared(name, float(m.nfe.mean()), m.error) for name, m in measured.items()]


def spread(error: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    deviation = float(error.std()) if len(error) > 1 else float("nan")
    return float(error.mean()), deviation / len(error) ** 0.5
