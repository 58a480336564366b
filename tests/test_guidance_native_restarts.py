"""Images whose solver begins anew while the rest of their batch goes on."""

import copy

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.guidance.cfg import CFG
from fewstep.samplers import EPS, SOLVERS, DPMpp2M, NoiseTape, Outputs, Policy, advance, edit, start
from fewstep.samplers.prediction import Prediction
from fewstep.samplers.ragged import Ragged, lengths_of, restart
from fewstep.samplers.scheduler import FewstepScheduler

from .guided_problems import AG, SCALE, Pair, mixed_threshold, run, start_of, table_of
from .tiny import STABLE_DIFFUSION

EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64, values of order 1, some 40 roundings
NAMES = ("2m", "3m", "unipc-3", "sde-2m", "deis-3")


class Restarting(Policy):
    """CFG whose solver forgets image k at ticks at[k]."""

    def __init__(self, at, images=(0, 1, 2)):
        self.at, self.images = at, images

    def branches(self, i, memory):
        return {"uncond": None, "cond": None}

    def weights(self, i, gram, memory):
        return {"uncond": 1.0 - SCALE, "cond": SCALE}

    def restarts(self, i, memory):
        return tuple(j for j, k in enumerate(self.images) if i in self.at.get(k, ()))


@pytest.mark.parametrize("name", [n for n in NAMES if n in SOLVERS])
@pytest.mark.parametrize("at", ({1: (5,)}, {0: (4,), 1: (5,), 2: (6,)}, {0: (5, 7), 2: (6,)},
                                {1: (10,), 2: (10, 11)}), ids=str)  # fmt: skip
def test_a_batch_that_restarts_image_by_image_is_its_images(name, at):
    together = run(Restarting(at), name)
    undisturbed = run(CFG(SCALE), name)
    for k in range(3):
        alone = run(Restarting(at, (k,)), name, (k,))
        assert torch.allclose(together.x[k : k + 1], alone.x, **EXACT)
        moved = (together.x[k] - undisturbed.x[k]).abs().max()
        assert moved > 1e-6 if k in at else moved <= 1e-12


def advanced(table, state, i, weights, tape, as_prediction=False):
    level = table.plan.nodes[i]
    out = Outputs(state.x, level, Pair()(state.x, level, ("uncond", "cond")), EPS, weights)
    noise = tape.normal(i, level, table.plan.targets[i], state.x)
    return advance(table, state, Prediction(out.x0, out.eps) if as_prediction else out, noise)


@pytest.mark.parametrize("as_prediction", (False, True))
@pytest.mark.parametrize("name", [n for n in NAMES if n in SOLVERS])
def test_the_state_itself(name, as_prediction):
    """With weights on the device, and with predictions that exist as tensors."""
    table, tape = table_of(name), NoiseTape((7, 8, 9))
    weights = (torch.tensor([-2.0, -1.0, 0.0]).double(), torch.tensor([3.0, 2.0, 1.0]).double())
    states = [start(table, start_of())]
    for i in range(5):
        states.append(advanced(table, states[-1], i, weights, tape, as_prediction))
    held = states[-1]
    before = [t.clone() for t in (held.x, *held.carry)]
    mixed, all_new = restart(table, held, (1,)), restart(table, held, range(3))
    assert lengths_of(mixed) == (len(held.carry), 0, len(held.carry)) and all_new.carry == ()
    assert isinstance(mixed.carry, Ragged) and restart(table, mixed, (0, 2)).carry == ()
    assert restart(table, held, ()) is held
    for i in range(5, 8):
        mixed, all_new, held = (advanced(table, s, i, weights, tape, as_prediction) for s in (mixed, all_new, held))
        for k, expected in enumerate((held, all_new, held)):
            assert torch.allclose(mixed.x[k], expected.x[k], **EXACT)
    assert not isinstance(mixed.carry, Ragged) and lengths_of(mixed) == (len(held.carry),) * 3
    assert all(torch.equal(a, b) for a, b in zip(before, (states[-1].x, *states[-1].carry), strict=True))


def test_memory_that_an_image_lost_is_not_read():
    table, tape = table_of("3m"), NoiseTape((7, 8, 9))
    state = start(table, start_of())
    for i in range(5):
        state = advanced(table, state, i, (-2.0, 3.0), tape)
    expected = restart(table, state, (1,))
    for lost in state.carry:
        lost[1] = float("nan")
    broken = restart(table, state, (1,))
    for i in range(5, 8):
        expected, broken = (advanced(table, s, i, (-2.0, 3.0), tape) for s in (expected, broken))
        assert torch.equal(expected.x, broken.x)


def test_an_edit_keeps_who_remembers_what():
    table, tape = table_of("2m"), NoiseTape((7, 8, 9))
    state = advanced(table, start(table, start_of()), 0, (-2.0, 3.0), tape)
    state = edit(table, restart(table, state, (2,)), state.x + 1.0)
    assert lengths_of(state) == (1, 1, 0) and lengths_of(copy.deepcopy(state)) == (1, 1, 0)


def test_what_cannot_restart():
    table, tape = table_of("2s"), NoiseTape((7, 8, 9))
    state = advanced(table, start(table, start_of()), 0, (-2.0, 3.0), tape)
    with pytest.raises(IncompatibleError, match="middle of a step"):
        restart(table, state, (0,))
    state = advanced(table_of("2m"), start(table_of("2m"), start_of()), 0, (-2.0, 3.0), tape)
    with pytest.raises(ConfigError, match="0 to 2"):
        restart(table_of("2m"), state, (3,))


@pytest.mark.parametrize("name", ("2m", "3m", "unipc-3"))
def test_lower_order_begins_anew_where_an_image_switches(name):
    threshold = mixed_threshold(name)
    plain, lower = (run(AG(threshold, scale=SCALE, lower_order=flag), name) for flag in (False, True))
    at = {k: (tick,) for k, tick in enumerate(plain.report.switched) if tick is not None}
    assert len({*at.values()}) == 3
    for k in range(3):
        alone = run(AG(threshold, scale=SCALE, lower_order=True), name, (k,))
        assert torch.allclose(lower.x[k : k + 1], alone.x, **EXACT)
        assert (lower.x[k] - plain.x[k]).abs().max() > 1e-6

    class Both(AG):
        """The same switches, the restarts of another policy."""

        def restarts(self, i, memory):
            return Restarting(at).restarts(i, memory)

    assert torch.equal(run(Both(threshold, scale=SCALE), name).x, lower.x)


@pytest.mark.parametrize("images", ((1,), (0, 1, 2)))
def test_a_scheduler_restarts_rows_of_its_sample(images):
    """Against one that was never disturbed, and one that begins its run at that tick."""
    ours, plain = (FewstepScheduler(**STABLE_DIFFUSION, solver=DPMpp2M()) for _ in range(2))
    for scheduler in (ours, plain):
        scheduler.set_timesteps(8)
    ours.restart((0,))  # before the first step there is nothing to forget
    a = b = start_of(dtype=torch.float32)
    for i, t in enumerate(ours.timesteps):
        if i == 4:
            ours.restart(images)
            fresh = FewstepScheduler(**STABLE_DIFFUSION, solver=DPMpp2M())
            fresh.set_timesteps(8)
            fresh.set_begin_index(4)
            c = b
        out = torch.tanh(b)
        a = ours.step(out, t, a, return_dict=False)[0]
        if i >= 4:
            c = fresh.step(out, t, c, return_dict=False)[0]
        b = plain.step(out, t, b, return_dict=False)[0]
    for k in range(3):
        expected = c if k in images else b
        assert torch.allclose(a[k], expected[k], rtol=0.0, atol=1e-5)
        assert (b[k] - c[k]).abs().max() > 1e-3
