"""The core that posteriors share: batches, seeds, prompts, costs, what is told and refused."""

import math

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError, NumericsError
from fewstep.inverse.ldps import LDPS
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import InpaintBox
from fewstep.inverse.p2l import P2L
from fewstep.inverse.psld import PSLD
from fewstep.inverse.restore import restore
from fewstep.inverse.stsl import STSL
from fewstep.samplers import (
    DPMpp2S,
    State,
)

from .posterior_runs import CLOSE, IDS, METHODS, Duck, counted, far, measured, pictures, tiny


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def one(y: Measurement, k: int) -> Measurement:
    return Measurement(y.y[k : k + 1], y.operator, y.sigma_y)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_image_k_is_the_same_alone(backbone, method):
    """The first guess, the noise of run and method, and every norm belong to the image."""
    y = measured(2)
    batch = restore(backbone, y, method, seeds=(3, 4))
    assert batch.x.shape == (2, 3, 16, 16) and 0.0 <= float(batch.x.min()) and float(batch.x.max()) <= 1.0
    alone = restore(backbone, one(y, 1), method, seeds=(4,))
    assert far(alone.x, batch.x[1:]) < CLOSE
    assert alone.report.chi2 == pytest.approx(batch.report.chi2[1:], rel=1e-6)
    assert far(batch.x[0], batch.x[1]) > 1e-2


@pytest.mark.parametrize("method", METHODS[:2], ids=IDS[:2])
def test_sdxl(method):
    backbone, y = tiny(sdxl=True), measured(2)
    batch = restore(backbone, y, method, prompt=["a dog", ""])
    assert far(restore(backbone, one(y, 0), method, prompt="a dog", seeds=(0,)).x, batch.x[:1]) < CLOSE
    assert far(restore(backbone, one(y, 0), method, seeds=(0,)).x, batch.x[:1]) > CLOSE  # the prompt is heard


def test_seeds_decide(backbone):
    """Equal seeds give equal bits; one measurement with two seeds gives two pictures, those of each seed."""
    y, method = measured(1), STSL(steps=2, K=1)
    first = restore(backbone, y, method, seeds=(5,))
    assert torch.equal(first.x, restore(backbone, y, method, seeds=(5,)).x)
    both = restore(backbone, y, method, seeds=(5, 6))
    assert far(both.x[:1], first.x) < CLOSE and far(both.x[1], both.x[0]) > 1e-2
    assert torch.equal(restore(backbone, measured(2), method).x, restore(backbone, measured(2), method, seeds=(0, 1)).x)


def test_prompts_belong_to_their_image(backbone):
    y, method = measured(2), LDPS(steps=2, zeta=0.2)
    both = restore(backbone, y, method, prompt=["a dog", "a cat"])
    cat = restore(backbone, one(y, 1), method, prompt="a cat", seeds=(1,))
    assert far(both.x[1:], cat.x) < CLOSE
    assert far(both.x, restore(backbone, y, method, prompt="a dog").x) > CLOSE
    with pytest.raises(ConfigError, match="3 prompts for 2 seeds"):
        restore(backbone, y, method, prompt=["a", "b", "c"])


T, K = 2, 3


@pytest.mark.parametrize(
    "method, expected",
    [
        (STSL(steps=T, K=K), ((2 * K + 1) * T, 3 * K * T, K * T + 1, K * T, 1, 0)),
        (STSL(steps=T, K=K, eta=0.0), ((K + 1) * T, K * T, K * T + 1, K * T, 1, 0)),
        (STSL(steps=T, K=K, eta=0.0, guidance_scale=2.0), (2 * (K + 1) * T, 2 * K * T, K * T + 1, K * T, 1, 0)),
        (STSL(steps=T, K=1, init="gaussian"), (3 * T, 3 * T, T + 1, T, 0, 0)),
        (LDPS(steps=T, zeta=0.1, init="inversion"), (2 * T, T, T + 1, T, 1, 0)),
        (LDPS(steps=T, zeta=0.1, solver=DPMpp2S()), (2 * T - 1, 2 * T - 1, 2 * T, 2 * T - 1, 1, 0)),
    ],
)
def test_the_ledger_is_what_the_modules_saw(backbone, method, expected):
    """Per image: network forward, backward, decoder forward, backward, encoder forward, backward."""
    with counted(backbone.pipe) as rows:
        report = restore(backbone, measured(), method).report
    assert tuple(report.ledger.per_image(2).values()) == expected
    assert {name: n for name, n in vars(report.ledger).items() if n} == dict(rows)
    assert report.nfe == expected[0] and f"network: {expected[0]} forward, {expected[1]} backward" in str(report)


@pytest.mark.parametrize(
    "method, option",
    [
        (LDPS(steps=3, zeta=1e9), "zeta"),
        (STSL(steps=3, K=1, zeta=1e9, weighting="norm"), "zeta"),
        (PSLD(steps=3, omega=1e9), "omega"),
        (P2L(steps=3, zeta=1e9), "zeta"),
    ],
)
def test_a_run_that_diverges_says_where_and_what_to_lower(backbone, method, option):
    with pytest.raises(NumericsError, match=rf"step 1 of 3 .*image 0.*lower {option}, which is 1000000000\.0"):
        restore(backbone, measured(), method)


def test_one_image_that_diverges_is_named(backbone):
    def spoil(tick):
        x = tick.state.x.clone()
        x[1] = math.nan
        return tick.state._replace(x=x)

    with pytest.raises(NumericsError, match=r"step 2 of 3 .*image 1"):
        restore(backbone, measured(), LDPS(steps=3, zeta=0.1), on_tick=spoil)


def test_on_tick_is_told_and_may_edit(backbone):
    ticks = []
    result = restore(backbone, measured(), LDPS(steps=3, zeta=0.1), on_tick=lambda tick: ticks.append(tick))
    assert [(t.tick, t.ticks) for t in ticks] == [(0, 3), (1, 3), (2, 3)]
    assert [line.residual for line in result.report.ticks] == [tuple(t.residual.tolist()) for t in ticks]
    assert ticks[0].level == result.report.ticks[0].level and ticks[-1].state.tick == 3

    def blank(tick):
        return tick.state._replace(x=torch.zeros_like(tick.state.x)) if tick.tick == 2 else None

    edited = restore(backbone, measured(), LDPS(steps=3, zeta=0.1), on_tick=blank)
    with torch.no_grad():
        zero = backbone.to_pixels(torch.zeros(2, 4, 8, 8, dtype=torch.float64)).clamp(0.0, 1.0)
    assert far(edited.x, zero) < CLOSE
    for wrong in (5, State(7, ticks[0].state.x)):
        with pytest.raises(IncompatibleError, match="on_tick"):
            restore(backbone, measured(), LDPS(steps=3, zeta=0.1), on_tick=lambda tick, wrong=wrong: wrong)


def test_an_operator_of_somebody_else(backbone):
    """A and A_adjoint are enough, for the first guess too."""
    y = measured(operator=Duck())
    for method in (STSL(steps=2, K=1), LDPS(steps=2, zeta=0.1), P2L(steps=2, zeta=0.1)):
        assert restore(backbone, y, method).x.shape == (2, 3, 16, 16)


def test_what_was_not_measured_has_no_say(backbone):
    y, method = measured(operator=InpaintBox()), STSL(steps=2, K=1)
    hole = y.y == 0.0
    other = Measurement(torch.where(hole, 9.0, y.y), y.operator, y.sigma_y)
    assert torch.equal(restore(backbone, y, method).x, restore(backbone, other, method).x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LDPS(steps=0),
        lambda: LDPS(steps=2.5),  # type: ignore[arg-type]
        lambda: LDPS(grid="no"),
        lambda: LDPS(init="no"),  # type: ignore[arg-type]
        lambda: LDPS(guidance_scale=math.nan),
        lambda: STSL(K=0),
        lambda: STSL(eta=-1.0),
        lambda: STSL(zeta=math.inf),
        lambda: STSL(probe="no"),  # type: ignore[arg-type]
        lambda: STSL(trace_weight="no"),  # type: ignore[arg-type]
        lambda: STSL(weighting="no"),  # type: ignore[arg-type]
    ],
)
def test_numbers_that_cannot_be(make):
    with pytest.raises(ConfigError, match=r"got|expected|unknown grid"):
        make()


def test_what_restore_is_given(backbone):
    y, method = measured(), LDPS(steps=2)
    for call, words in (
        (lambda: restore(backbone, y.y, method), "Measurement"),
        (lambda: restore(backbone, y, "stsl"), "Posterior"),
        (lambda: restore(backbone, Measurement(pictures(1)[:, :1], y.operator, 0.1), method), "made for|channels"),
    ):
        with pytest.raises((IncompatibleError, ConfigError), match=words):
            call()
    with pytest.raises(ConfigError, match="2 measurements for 1 seeds"):
        restore(backbone, y, method, seeds=(1,))
    with pytest.raises(ConfigError, match="no seed"):
        restore(backbone, y, method, seeds=())
