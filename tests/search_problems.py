"""What the tests of the policy search share: small problems, some with known answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewstep.guidance.search import Pairs
from fewstep.guidance.search_loss import Relaxation, distance_of
from fewstep.guidance.search_runs import states_of
from fewstep.samplers import EPS, CosineVP, DPMpp2M, NoiseTape, trace, uniform_lambda

from .gaussians import SIZE, Gaussians, anisotropic, normal
from .tiny import tiny_unet

W, STEPS, IMAGES = 3.0, 6, 3
SCHEDULE = CosineVP()


@dataclass
class Apart(Gaussians):
    """The branches differ at some ticks only; elsewhere "uncond" is what "cond" is.       where: their levels."""

    where: tuple = ()

    def __call__(self, x, level, branches, rows=None):
        found = dict(zip(branches, super().__call__(x, level, branches, rows), strict=True))
        if level not in self.where and "uncond" in found:
            found["uncond"] = super().__call__(x, level, ("cond",), rows)[0]
        return tuple(found[branch] for branch in branches)


def table_for(solver=None, steps=STEPS):
    return trace(DPMpp2M() if solver is None else solver, uniform_lambda(SCHEDULE, steps), SCHEDULE)


def batch(table, seed, *, where=None, tape=False):
    """IMAGES pairs. where: the steps at which the branches differ; all if it is not given."""
    variances = dict(zip(("cond", "uncond"), anisotropic(5), strict=True))
    means = {"cond": normal(IMAGES, SIZE, seed=seed), "uncond": normal(1, SIZE, seed=1)}
    nodes = tuple(
        node for node, k in zip(table.plan.nodes, table.plan.step, strict=True) if where is None or k in where
    )
    seeds = tuple(range(seed, seed + IMAGES))
    network = Apart(SCHEDULE, means, variances, where=nodes)
    return Pairs(network, normal(IMAGES, SIZE, seed=1000 + seed), NoiseTape(seeds) if tape else None)


def prepared(settings, solver=None, tape=False):
    """(relaxation, a batch, x*, D(x_1, x*), logits that are not special)."""
    table = table_for(solver)
    pairs = batch(table, 7, tape=tape)
    relaxation = Relaxation(table, settings)
    full, none = (states_of(table, pairs, [w] * relaxation.steps)[-1].x for w in (settings.scale, 1.0))
    logits = normal(relaxation.steps, len(settings.candidates), seed=3)
    return relaxation, pairs, full, float(distance_of(none, full)), logits


class Convolutions:
    """A tiny UNet with a fixed condition per branch."""

    schedule = SCHEDULE

    def __init__(self):
        self.parametrisation = EPS
        self.unet = tiny_unet(in_channels=4, cross_attention_dim=32, attention_head_dim=4)
        generator = torch.Generator().manual_seed(0)
        self.text = {b: torch.randn(1, 5, 32, generator=generator) for b in ("cond", "uncond")}

    def __call__(self, x, level, branches, rows=None):
        return tuple(self.unet(x, level.time, self.text[b], return_dict=False)[0] for b in branches)
