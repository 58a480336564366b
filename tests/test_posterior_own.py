"""Operators and posteriors of somebody else's: the example of docs/restore.md, and what mistakes are told."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.errors import ConfigError, FewstepError, IncompatibleError, NumericsError
from fewstep.inverse.ldps import LDPS
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import Denoise
from fewstep.inverse.posterior import Done, Posterior
from fewstep.inverse.problem import Problem
from fewstep.inverse.restore import restore
from fewstep.inverse.stsl import STSL
from fewstep.samplers import SDEDPMpp2M, State, edit
from fewstep.samplers.backbones import backbone_of

from .posterior_runs import SIGMA, measured, pictures, tiny
from .tiny_pixels import tiny_pixels


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def _of_the_page() -> Any:
    """MyMethod, as docs/restore.md writes it."""
    text = (Path(__file__).parent.parent / "docs" / "restore.md").read_text(encoding="utf-8")
    (block,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "class MyMethod" in block
    )
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(compile(block[: block.index("\nresult = ")], "restore.md", "exec"), namespace)
    return namespace["MyMethod"]


MyMethod = _of_the_page()


def test_the_example_of_the_page_is_ldps(backbone):
    mine, ours = (restore(backbone, measured(), method).x for method in (MyMethod(steps=3), LDPS(steps=3, zeta=0.1)))
    assert torch.equal(mine, ours)


@dataclass(frozen=True, kw_only=True)
class Wrong(MyMethod):
    """Returns what `make` makes of what it should."""

    steps: int = 3
    make: Any = None

    def tick(self, problem: Problem, state: State, memory: Any) -> Any:
        return self.make(super().tick(problem, state, memory), state)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda done, state: done.state, r"tick must return Done\(state, prediction, residual\), got State"),
        (lambda done, state: None, "got NoneType"),
        (lambda done, state: done._replace(state=done.state.x), "must return Done"),
        (lambda done, state: done._replace(state=state), "the state of tick 1, got that of 0"),
        (lambda done, state: done._replace(residual=0.5), r"shape \(2,\), one per image, got float"),
        (lambda done, state: done._replace(residual=done.residual.sum()), r"got \(\)"),
    ],
)
def test_what_a_tick_returns_is_checked(backbone, make, words):
    with pytest.raises(IncompatibleError, match=words):
        restore(backbone, measured(), Wrong(make=make))


@dataclass(frozen=True, kw_only=True)
class NoStepSize(Posterior):
    steps: int = 2

    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        prediction = problem.predict(state.x, problem.level(state.tick))
        after = problem.advance(state, prediction)
        return Done(edit(problem.table, after, after.x * math.nan), prediction, torch.zeros(problem.measurement.batch))


def test_a_method_without_a_step_size_diverges_with_the_step_named(backbone):
    with pytest.raises(NumericsError, match=r"NoStepSize diverged at step 1 of 2 \(time 0, image 0\): take more steps"):
        restore(backbone, measured(), NoStepSize())


def test_a_solver_and_a_grid_by_name(backbone):
    method = STSL(steps=3, solver="sde-2m:eta=0.5", grid="karras:rho=5")
    assert method.solver == SDEDPMpp2M(eta=0.5)
    assert restore(backbone, measured(), LDPS(steps=3, zeta=0.1, solver="2m", grid="karras:rho=5")).x.isfinite().all()
    for wrong, words in (("no", "unknown solver"), (SDEDPMpp2M, "an instance"), ("DPM++ 2M Karras", "names a grid")):
        with pytest.raises(ConfigError, match=words):
            STSL(solver=wrong)  # type: ignore[arg-type]


class Own:
    """An operator that only measures."""

    def __init__(self, A: Any, guess: Any = lambda y: y) -> None:
        self.A, self.guess = A, guess


@pytest.mark.parametrize(
    "operator, words",
    [
        (Own(lambda x: torch.from_numpy(x.detach().numpy() * 1.0)), r"A\(x\) of Own has no gradient in x"),
        (Own(lambda x: (x, x)), r"A\(x\) of Own must be a tensor \(B, ...\), got tuple"),
        (Own(lambda x: x, lambda y: None), "first picture of Own must be a tensor .* got NoneType"),
        (Own(lambda x: x, lambda y: np.zeros((2, 3, 16, 16))), "got ndarray"),
        (Own(lambda x: x, lambda y: y[:1]), r"of 2 picture\(s\), got \(1, 3, 16, 16\)"),
        (Own(lambda x: x, lambda y: y * math.nan), "first picture of Own holds values that are not finite"),
    ],
)
def test_mistakes_of_an_operator_are_named(backbone, operator, words):
    with pytest.raises(IncompatibleError, match=words):
        restore(backbone, Measurement(pictures(2), operator, SIGMA), LDPS(steps=2, zeta=0.1))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Measurement(pictures(1), Denoise, SIGMA), r"Denoise is a class: give an operator, such as Denoise\("),
        (lambda: Measurement.simulate(lambda x: x, pictures(1), SIGMA, (0,)), r"function is no operator"),
        (lambda: Measurement.simulate(torch.nn.AvgPool2d(2), pictures(1), SIGMA, (0,)), "AvgPool2d is no operator"),
        (lambda: Measurement.simulate(Denoise(), pictures(1), SIGMA, (0, 1)), r"2 seeds for 1 picture\(s\)"),
        (lambda: Measurement.simulate(Denoise(), pictures(1), SIGMA, 3), r"seeds are one per image"),  # type: ignore[arg-type]
        (lambda: restore(tiny(), measured(1), seeds=3), "seeds are one per image"),  # type: ignore[arg-type]
        (lambda: restore(tiny(), measured(1), prompt=None), "prompt is a text"),  # type: ignore[arg-type]
        (lambda: restore(tiny(), measured(1), STSL), "such as STSL.., got the class STSL"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_of_a_call_are_named(call, words):
    with pytest.raises(FewstepError, match=words):
        call()


def test_a_y_in_other_units_is_said_where_the_run_diverges(backbone):
    y = measured(1)
    with pytest.raises(NumericsError, match=r"y reaches \d+.*, and pixels are in \[0, 1\]"):
        restore(backbone, Measurement(255.0 * y.y, y.operator, SIGMA), STSL(steps=3, K=1, zeta=1e6))


def test_numpy_has_numbers_too():
    y = Measurement(pictures(1), Denoise(), np.float32(0.25))  # type: ignore[arg-type]
    assert type(y.sigma_y) is float and y.sigma_y == 0.25


class Averaging:
    """2x2 means; the adjoint spreads a quarter of each."""

    def A(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4.0


def test_the_first_picture_of_an_adjoint_has_the_right_brightness():
    y = Measurement.simulate(Averaging(), pictures(2), 0.0, (0, 1))
    assert torch.allclose(Averaging().A(y.guess()), y.y)
    dark = Measurement(torch.zeros_like(y.y), Averaging(), SIGMA)
    assert not dark.guess().any()


def test_a_measurement_of_other_colours_is_refused_by_a_model_of_pixels():
    backbone = backbone_of(tiny_pixels())
    grey = Measurement(pictures(1)[:, :1], Denoise(), SIGMA)
    with pytest.raises(ConfigError, match=r"this model's pictures have 3 channel\(s\), got 1"):
        restore(backbone, grey, LDPS(steps=2, zeta=0.1))
