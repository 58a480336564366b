"""Adaptive guidance through Triton's interpreter: images of one batch that switch at their own ticks."""

import math

import pytest
import torch

from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.samplers import EPS, SOLVERS, DiscreteVP, feeding, solve, trace
from fewstep.samplers.grids import uniform_lambda

VP = DiscreteVP.scaled_linear()
SHAPE = (2, 4, 8, 8)
SCALE = 7.5


class Apart:
    """A batched network whose branches come closer from tick to tick, at each image's own pace."""

    schedule, parametrisation, dtype = VP, EPS, torch.float32

    def __call__(self, x, level, branches, rows=None):
        raise AssertionError("not batched")

    def forward_batch(self, batch, time, branches):
        return self.forward_rows(batch, time, branches, (None,) * len(branches))

    def forward_rows(self, batch, time, branches, images):
        everyone = tuple(range(SHAPE[0]))
        rows = [k for v in images for k in (everyone if v is None else v)]
        counts = [SHAPE[0] if v is None else len(v) for v in images]
        parts = torch.tanh(batch * 0.05).split(counts)
        numbers = torch.tensor(rows).split(counts)
        return tuple(self._turned(p, k, b, time) for p, k, b in zip(parts, numbers, branches, strict=True))

    def _turned(self, part, images, branch, time):
        if branch == "cond":
            return part
        turn = (time / 1000.0 * (1.0 + 3.0 * images)).view(-1, 1, 1, 1)
        return torch.cos(turn) * part + torch.sin(turn) * part.flip(-1)


@pytest.mark.parametrize(
    "options", ({}, {"on_switch": "delta_reuse"}, {"lower_order": True}, {"rule": "same"}, {"lag": 1}), ids=str
)
@pytest.mark.parametrize("name", ("2m", pytest.param("unipc-3", marks=pytest.mark.slow)))
def test_images_that_switch_at_their_own_ticks(name, options, reference, monkeypatch):
    """NaN in what they did not evaluate must not be read by a kernel either."""
    policy = AdaptiveGuidance(0.9, scale=SCALE, space="raw", **options)
    table = trace(SOLVERS[name](), uniform_lambda(VP, 6), VP)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(feeding, "unfilled", lambda like: torch.full_like(like, math.nan))
    found = solve(table, Apart(), x, guidance=policy)
    expected = reference(solve, table, Apart(), x, guidance=policy)
    switched = found.report.switched
    assert len(set(switched)) == 2 and all(0 < k < 6 for k in switched)
    assert switched == expected.report.switched
    assert (found.x - expected.x).abs().max() <= 3e-5 * expected.x.abs().max()
