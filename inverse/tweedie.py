"""Guidance as a score: what the measurement adds to the prediction, so that any solver runs on the result."""

from __future__ import annotations

from torch import Tensor

from ..samplers import Level, Prediction


def guided(p: Prediction, level: Level, step: Tensor) -> Prediction:
    r"""The prediction under the score of the posterior, s' = s + g with g = grad_{x_t} log p(y | x_t).

    step: sigma_t^2 g, of x's shape. With Tweedie's formula x0hat = (x_t + sigma_t^2 s) / alpha_t and eps = -sigma_t s,

        x0' = x0hat + (sigma_t^2 / alpha_t) g        eps' = eps - sigma_t g

    and x_t = alpha_t x0' + sigma_t eps' still. At alpha_t = 0 x_t says nothing about the picture, the true g is 0 and
    its share in x0' cannot be had from it: the prediction is returned as it is.
    Source: Efron 2011, "Tweedie's Formula and Selection Bias", J. Am. Stat. Assoc. 106 (496), for the posterior.
    """
    alpha, sigma = float(level.alpha), float(level.sigma)
    return p if alpha == 0.0 else Prediction(p.x0 + step / alpha, p.eps - step / sigma)
