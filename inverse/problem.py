"""One restoration, posed: the model, the measurement, the table of the run, and the counted ways through them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..samplers import Level, Network, NoiseTape, Outputs, Prediction, State, Table, advance, predict
from .measurement import Measurement
from .report import Ledger

INNER = 1 << 20  # ticks of the tape from here on are the methods' own; below are the solver's


class Evaluation:
    """The network's prediction at one state, detached, and the way back from it.

    leaf: what gradients are wanted in, the state itself or what the network is conditioned on, [B, ...].
    with_graph: x0 and eps.       output: the network's own, with its graph, where it runs in float16; else None.
    """

    def __init__(self, leaf: Tensor, with_graph: Prediction, output: Tensor | None = None) -> None:
        self._leaf, self._graph, self._output = leaf, with_graph, output
        self.prediction = Prediction(with_graph.x0.detach(), with_graph.eps.detach())

    def pull(self, x0: Tensor | None = None, eps: Tensor | None = None, *, keep: bool = False) -> Tensor:
        """J^T of cotangents: the gradient in the leaf of <x0, x0(z)> + <eps, eps(z)>. Frees the graph unless `keep`."""
        pairs = [(p, c) for p, c in zip(self._graph, (x0, eps), strict=True) if c is not None]
        outputs, cotangents = zip(*pairs, strict=True)
        if self._output is None:
            return torch.autograd.grad(outputs, self._leaf, cotangents, retain_graph=keep)[0]
        (reached,) = torch.autograd.grad(outputs, self._output, cotangents, retain_graph=True)
        scale = _to_one(reached)
        scaled = [c * _for(c, scale) for c in cotangents]
        gradient = torch.autograd.grad(outputs, self._leaf, scaled, retain_graph=keep)[0]
        return gradient / _for(gradient, scale)


def _to_one(cotangent: Tensor) -> Tensor:
    """[B]: the power of two that brings each image's largest entry near 1, so that float16 neither loses it nor
    overflows.

    A network in float16 would take a small cotangent for 0; a power of two costs no digit on the way back.
    """
    largest = cotangent.flatten(1).abs().amax(1)
    exponent = torch.frexp(torch.where(largest > 0.0, largest, 1.0)).exponent
    return torch.ldexp(torch.ones_like(largest), -exponent)


def _for(x: Tensor, scale: Tensor) -> Tensor:
    """scale [B], shaped to multiply x."""
    return scale.view(-1, *[1] * (x.dim() - 1))


class Problem:
    """What does not change during a run.

    backbone: a Backbone.       measurement: of as many images as there are seeds.
    network: conditioned on the prompts.      scale: of guidance; 1 evaluates the conditional branch alone.
    """

    def __init__(
        self, backbone: Any, measurement: Measurement, network: Network, table: Table, seeds: tuple[int, ...],
        scale: float,
    ) -> None:  # fmt: skip
        self.backbone, self.measurement, self.network, self.table = backbone, measurement, network, table
        self.scale = scale
        self.ledger = Ledger()
        self.tape = NoiseTape(seeds)

    @property
    def pixel_range(self) -> float:
        return self.backbone.pixel_range

    def level(self, i: int) -> Level:
        return self.table.plan.nodes[i]

    def predict(self, z: Tensor, level: Level, network: Network | None = None) -> Prediction:
        """The guided prediction at z (B, ...), with a graph where gradients are on."""
        network = self.network if network is None else network
        return predict(network.parametrisation, level, z, self._output(network, z, level))

    def evaluate(
        self, z: Tensor, level: Level, network: Network | None = None, leaf: Tensor | None = None
    ) -> Evaluation:
        """The prediction at z, and gradients back to it, or to `leaf`, which `network` is made from and needs them.

        network: another than the problem's own.
        """
        network = self.network if network is None else network
        with torch.enable_grad():
            z = z.detach()
            leaf = z.requires_grad_() if leaf is None else leaf
            output = self._output(network, z, level)
            prediction = predict(network.parametrisation, level, z, output)
            return Evaluation(leaf, prediction, output if _runs_in_half(network, z) else None)

    def _output(self, network: Network, z: Tensor, level: Level) -> Tensor:
        """The guided output, counted, in z's dtype."""
        branches = ("cond",) if self.scale == 1.0 else ("cond", "uncond")
        outputs = [self.ledger.watch("", out) for out in network(z, level, branches)]
        outputs = [out.to(z.dtype) for out in outputs]
        return outputs[0] if len(outputs) == 1 else outputs[1] + self.scale * (outputs[0] - outputs[1])

    def to_pixels(self, z0: Tensor) -> Tensor:
        """Decoded pixels, counted, with gradients where they are on. Autocast stays out of the autoencoder."""
        with torch.autocast(z0.device.type, enabled=False):
            return self.ledger.watch("decoder_", self.backbone.to_pixels(z0))

    def decode(self, z0: Tensor) -> Tensor:
        """The picture as the model gives it to people, counted: clamped, checked if it checks, on the CPU."""
        with torch.autocast(z0.device.type, enabled=False):
            return self.ledger.watch("decoder_", self.backbone.decode(z0))

    def to_latents(self, x: Tensor) -> Tensor:
        """Encoded pixels, counted, with gradients where they are on."""
        with torch.autocast(x.device.type, enabled=False):
            return self.ledger.watch("encoder_", self.backbone.to_latents(x))

    def normal(self, i: int, k: int, like: Tensor) -> Tensor:
        """Noise of the method's own for iteration k at tick i: of each image's seed, whatever its batch."""
        return self.tape.draw(INNER + 4096 * i + k, like)

    def advance(self, state: State, prediction: Prediction | Outputs) -> State:
        """The solver's tick, with its noise if it draws any."""
        i = state.tick
        s, t = self.table.plan.nodes[i], self.table.plan.targets[i]
        noise = self.tape.normal(i, s, t, state.x) if self.table.noisy[i] else None
        return advance(self.table, state, prediction, noise)


def _runs_in_half(network: Network, z: Tensor) -> bool:
    """Whether the network's gradients go through float16, of its own weights or by autocast."""
    if torch.is_autocast_enabled(z.device.type):
        return torch.get_autocast_dtype(z.device.type) == torch.float16
    return getattr(network, "dtype", None) == torch.float16
