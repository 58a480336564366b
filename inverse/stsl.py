r"""STSL: a second-order correction to posterior sampling, from a surrogate loss.

At every step, K times with a fresh probe u ~ N(0, I), then the solver's step:

    L(y, z_t) = lambda |y - A(D(z0hat(z_t)))|^2 + (eta / d) u^T (s(z_t + u) - s(z_t)),    z_t <- z_t - grad L

s is the score at the level of z_t, d the number of entries of z. E[u^T s(z + u)] is the trace of the Hessian of log p_t
under a unit Gaussian blur (Stein), so the second term seeks places where the clean latent is less uncertain; u^T s(z)
has mean zero and takes variance away. It is no likelihood of second order, and does not make the sampler exact.

Source: Rout et al. 2024, "Beyond First-Order Tweedie: Solving Inverse Problems using Latent Diffusion", CVPR 2024,
arXiv:2312.00852, equation 4 and algorithm 1, known to us from summaries only; there is no official code. What they
leave open, lambda above all, is an option here; its default, zeta = 0.2, was chosen on scenes of `tiny-sd` while the
method was written (docs/restore.md has what it gives there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from ..errors import ConfigError
from ..samplers import Level, State, edit
from .checks import check_number
from .likelihood import Weighting, check_weighting
from .measurement import Measurement
from .pixels import data_step
from .posterior import Done, Posterior
from .problem import Problem

Probe = Literal["unit", "sigma"]
TraceWeight = Literal["variance", "constant"]


@dataclass(frozen=True, kw_only=True)
class STSL(Posterior):
    """steps, K, eta as published: 50 steps of DDIM, K = 5, eta = 0.02, begun from the noised first guess.

    zeta: step of one inner iteration along the gradient of the data loss.
    weighting: of the data loss, see pixels.data_step. "polyak", the default, is lambda chosen anew at every iteration
    from residual and gradient; "norm" is lambda = zeta / |y - A(x)|.
    probe: "unit" perturbs by u, as published; "sigma" by delta u, delta the noise level's sigma, and divides by delta.
    trace_weight: "constant" is eta as published; "variance" is eta sigma_t^2, because the score's 1 / sigma_t makes
    the constant one grow without bound towards the end.

    Cost a step: 2 K + 1 evaluations forward and 3 K backward (K + 1 and K where eta is 0), K decodings both ways.
    """

    steps: int = 50
    K: int = 5
    eta: float = 0.02
    zeta: float = 0.2
    weighting: Weighting = "polyak"
    probe: Probe = "unit"
    trace_weight: TraceWeight = "variance"

    step_size: ClassVar[str] = "zeta"
    remedy: ClassVar[str] = "take another weighting, or more steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.zeta, "zeta", 0.2, zero=True)
        check_number(self.eta, "eta", 0.02, zero=True)
        check_weighting(self.weighting, polyak=True)
        if not (isinstance(self.K, int) and not isinstance(self.K, bool) and 1 <= self.K <= 1000):
            raise ConfigError(f"K is the number of inner iterations, 1 to 1000, got {self.K!r}")
        for name, value, known in (("probe", self.probe, Probe), ("trace_weight", self.trace_weight, TraceWeight)):
            if value not in get_args(known):
                raise ConfigError(f"{name} {value!r} does not exist: expected {' or '.join(get_args(known))}")

    @classmethod
    def paper_exact(cls, *, zeta: float, eta: float = 0.02, K: int = 5) -> STSL:
        """The literal reading: the squared residual, a unit probe, a constant eta.

        zeta: lambda, of the order of 1 / sigma_y^2 in the article, in whose pixels, from -1 to 1, that is
        1 / (2 sigma_y)^2 of a Measurement's sigma_y; its values per task are not known to us.
        """
        return cls(zeta=zeta, eta=eta, K=K, weighting="squared", probe="unit", trace_weight="constant")

    def check(self, measurement: Measurement) -> None:
        check_weighting(self.weighting, measurement.sigma_y, polyak=True)

    def tick(self, problem: Problem, state: State, memory: Any) -> Done:
        i, z = state.tick, state.x
        level = problem.level(i)
        for k in range(self.K):
            z, residual = self._inner(problem, z, level, i, k)
        state = edit(problem.table, state, z)
        p = problem.predict(z, level)
        return Done(problem.advance(state, p), p, residual)

    def _inner(self, problem: Problem, z: Tensor, level: Level, i: int, k: int) -> tuple[Tensor, Tensor]:
        """(z - grad L, |r| [B] before it)."""
        evaluation = problem.evaluate(z, level)
        data, residual = data_step(problem, evaluation, self.zeta, self.weighting, level, keep=self.eta != 0.0)
        if self.eta == 0.0:
            return z - data, residual
        u = problem.normal(i, k, z)
        delta = 1.0 if self.probe == "unit" else float(level.sigma)
        v = self._trace_weight(level) / (z[0].numel() * delta) * u
        near = evaluation.pull(eps=score_cotangent(-v, level))
        far = problem.evaluate(z + delta * u, level).pull(eps=score_cotangent(v, level))
        return z - (data + near + far), residual

    def _trace_weight(self, level: Level) -> float:
        return self.eta * (float(level.sigma) ** 2 if self.trace_weight == "variance" else 1.0)


def score_cotangent(v: Tensor, level: Level) -> Tensor:
    """What <v, s> is as <., eps>: the score is s = -eps / sigma."""
    return v * (-1.0 / float(level.sigma))
