r"""P2L: LDPS that tunes the prompt's embedding to the measurement, and returns to the encoder's range now and then.

At every step, with C the embedding and x = D(z0hat(z_t, C)):

    K times    C <- Adam(C, grad_C |y - A(x)|)                  z_t fixed; C and Adam's moments go on from step to step
    then       z_{t-1} = solver(z0hat, eps) - zeta grad_{z_t} |y - A(x)|            of the tuned C
    every n-th step the solver is given E(prox(x)) for z0hat:
               prox(x) = argmin_u gamma / 2 |A u - y|^2 + 1/2 |u - x|^2

Source: Chung et al. 2023, "Prompt-tuning Latent Diffusion Models for Inverse Problems", arXiv:2310.01110. Of the
article we have read the abstract, not its equations or settings, and its authors published no code. Rules and defaults
are those of a public re-implementation (the comparison of Spagnoletti et al. 2025, arXiv:2503.12615). There

- A of pixels in [0, 1] is tuned to a y in [-1, 1];
- on Stable Diffusion the step uses the embedding from before the last Adam step, and that embedding is rounded to half
  precision after every step of 1e-4;
- pixels are clamped inside the losses, so what lies beyond [0, 1] has no gradient; here it has;
- Adam's second moment is at least 1e-8, which holds back entries with small gradients; here it is Adam's own rule;
- a run begins from noise alone unless it is told otherwise; here, as for every latent method, from the noised first
  guess (`init`);
- for some tasks z is moved by Adam too; that is another method, which is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import IncompatibleError
from ..samplers import Level, Prediction, State, edit
from ..samplers.backbones.base import UNetNetwork
from .checks import check_number
from .likelihood import Weighting, check_weighting, prox
from .measurement import Measurement
from .operators import is_linear, name_of
from .operators.base import check_choice, check_whole
from .pixels import data_gradient, decoded_gradient
from .posterior import Done, Posterior
from .problem import Problem

TEXT = "encoder_hidden_states"
BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam's own


class Tuned(NamedTuple):
    """An embedding and its optimiser. C, m, v: (B, tokens, width) float32.       count: of the steps taken."""

    C: Tensor
    m: Tensor
    v: Tensor
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class P2L(Posterior):
    """K: steps of Adam on the embedding at each step (1 for Stable Diffusion, 5 for SDXL).       lr: their size.
    zeta: step along the gradient of the data loss in z.       weighting: of that loss, see likelihood.
    project_every: how often z0hat is replaced by E(prox(x)), counted so that 8 in 1,000 steps are the times t with
    t mod 8 = 1; 0 is never. Needs a linear measurement.       gamma: of the prox.
    eps: of a projected step: "state" is what z_t and the new z0hat leave over, "network" what the network predicted.

    Needs a network with text embeddings (Stable Diffusion, SDXL); the prompt's embedding is where the tuning begins,
    the pooled one of SDXL stays as it is. With K = 0 and project_every = 0 this is LDPS.
    Cost a step: K + 1 evaluations of network and decoder, forward and backward; the encoder once per projection.
    """

    steps: int = 1000
    K: int = 1
    lr: float = 1e-4
    zeta: float = 0.05
    weighting: Weighting = "norm"
    project_every: int = 8
    gamma: float = 1.0
    eps: Literal["state", "network"] = "state"

    step_size: ClassVar[str] = "zeta"
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.K, "K", 0, 1000)
        check_number(self.lr, "lr", 1e-4)
        check_number(self.zeta, "zeta", 0.05, zero=True)
        check_weighting(self.weighting)
        check_whole(self.project_every, "project_every", 0)
        check_number(self.gamma, "gamma", 1.0)
        check_choice(self.eps, "eps", ("state", "network"))

    def check(self, measurement: Measurement) -> None:
        check_weighting(self.weighting, measurement.sigma_y)
        if self.project_every and not is_linear(measurement.operator):
            raise IncompatibleError(f"P2L's projection needs a linear operator, got {name_of(measurement.operator)}: "
                                    "take project_every=0, or LDPS()")  # fmt: skip

    def begin(self, problem: Problem) -> Tuned:
        network = problem.network
        if not isinstance(network, UNetNetwork) or TEXT not in network.conditions["cond"]:
            raise IncompatibleError(f"P2L tunes text embeddings, which {type(network).__name__} has not: take LDPS(), "
                                    "or a Stable Diffusion or SDXL pipeline")  # fmt: skip
        C = network.conditions["cond"][TEXT]
        C = C.detach().double() if C.dtype == torch.float64 else C.detach().float()
        return Tuned(C, torch.zeros_like(C), torch.zeros_like(C))

    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        i, z = state.tick, state.x
        level, tuned = problem.level(i), memory
        for _ in range(self.K):
            tuned = self._tune(problem, z, level, tuned)
        evaluation = problem.evaluate(z, level, _with_text(problem.network, tuned.C))
        p = evaluation.prediction
        x, g, residual = decoded_gradient(problem, p.x0, self.weighting, level)
        if self.project_every and (len(problem.table) - 1 - i) % self.project_every == 1 % self.project_every:
            p = self._projected(problem, z, level, p, x)
        after = problem.advance(state, p)
        after = edit(problem.table, after, after.x - self.zeta * evaluation.pull(x0=g))
        return Done(after, p, residual, tuned)

    def _tune(self, problem: Problem, z: Tensor, level: Level, tuned: Tuned) -> Tuned:
        """One step of Adam on C (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1)."""
        with torch.enable_grad():
            C = tuned.C.detach().requires_grad_()
            evaluation = problem.evaluate(z, level, _with_text(problem.network, C), leaf=C)
        g, _ = data_gradient(problem, evaluation.prediction.x0, self.weighting, level)
        gradient = evaluation.pull(x0=g)
        count = tuned.count + 1
        m = BETA1 * tuned.m + (1.0 - BETA1) * gradient
        v = BETA2 * tuned.v + (1.0 - BETA2) * gradient.square()
        mhat, vhat = m / (1.0 - BETA1**count), v / (1.0 - BETA2**count)
        return Tuned(tuned.C - self.lr * mhat / (vhat.sqrt() + TINY), m, v, count)

    def _projected(self, problem: Problem, z: Tensor, level: Level, p: Prediction, x: Tensor) -> Prediction:
        """The prediction whose x0 is in the encoder's range and nearer to y. Pixels of a model are clamped."""
        clamped = problem.pixel_range == 2.0
        x = prox(problem.measurement, x.clamp(0.0, 1.0) if clamped else x, self.gamma)
        x0 = problem.to_latents(x.clamp(0.0, 1.0) if clamped else x)
        if self.eps == "network":
            return Prediction(x0, p.eps)
        return Prediction(x0, (z - float(level.alpha) * x0) / float(level.sigma))


def _with_text(network: Any, C: Tensor) -> UNetNetwork:
    """A network like this one with another embedding for the prompts; the original is not touched."""
    cond = network.conditions["cond"]
    conditions = {**network.conditions, "cond": {**cond, TEXT: C.to(cond[TEXT].dtype)}}
    return UNetNetwork(network.unet, conditions, network.schedule, network.parametrisation)
