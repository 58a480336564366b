"""Teach the text encoder of ``tiny-sd`` to say what stands where, before the picture network sees it.

The encoder is causal and every prompt of the world ends before token 16, so the end tokens that fill a prompt up to 24
have read all of it and know their own position. Linear heads ask each of them one question: tokens 16 to 20 what stands
at one of the five canonical places (centre, left, right, top, bottom), token 21 the background, tokens 22 and 23
everything. The picture network then finds the attributes of one object together in one token. The heads are thrown
away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .captions import Request, parse_caption
from .scenes import BACKGROUNDS, COLOURS, INVERSE, PLACES, SHAPES, SIZES
from .tiny_sd import TEXT_LENGTH, TEXT_WIDTH
from .training import Budget, learning_rate, set_learning_rate

FIRST_SLOT = 16
_CHOICES = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)
_GROUNDS = len(BACKGROUNDS) + 1


def targets_of(caption: str) -> list[int]:
    """Shape, colour and size at each of the five places, then the background: 16 class numbers; 0 = none or not said.

    The empty caption says nothing of everything.
    """
    request = parse_caption(caption) if caption else Request(())
    relations = (request.relation, INVERSE[request.relation]) if request.relation else (None,)
    here = dict(zip(relations, request.things, strict=False))
    numbers: list[int] = []
    for place in PLACES:
        thing = here.get(place)
        if thing is None:
            numbers += [0, 0, 0]
        else:
            size = 0 if thing.size is None else 1 + list(SIZES).index(thing.size)
            numbers += [1 + SHAPES.index(thing.shape), 1 + list(COLOURS).index(thing.colour), size]
    ground = 0 if request.background is None else 1 + list(BACKGROUNDS).index(request.background)
    return [*numbers, ground]


class Heads(nn.Module):
    """Linear read-outs of the last eight text states; used in pretraining only."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = nn.Linear(TEXT_WIDTH, sum(_CHOICES))
        self.ground = nn.Linear(TEXT_WIDTH, _GROUNDS)
        self.summary = nn.Linear(TEXT_WIDTH, len(PLACES) * sum(_CHOICES) + _GROUNDS)

    def forward(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, 24, 128), targets (B, 16) -> (mean loss, part of captions read without a mistake)."""
        places, slots = len(PLACES), states[:, FIRST_SLOT : FIRST_SLOT + len(PLACES)]
        local = torch.cat([self.slot(slots).flatten(1), self.ground(states[:, FIRST_SLOT + places])], 1)
        logits = torch.stack([local, *(self.summary(s) for s in states[:, FIRST_SLOT + places + 1 :].unbind(1))], 1)
        losses, right = [], []
        for i, part in enumerate(logits.split([*_CHOICES * places, _GROUNDS], dim=2)):
            wanted = targets[:, i, None].expand(-1, part.shape[1])
            losses.append(F.cross_entropy(part.flatten(0, 1), wanted.flatten()))
            right.append((part.argmax(2) == wanted).all(1))
        return torch.stack(losses).mean(), torch.stack(right).all(0).float().mean()


def pretrain(
    encoder: nn.Module, tokens: Tensor, targets: Tensor, minutes: float, report: Callable[..., None], batch: int = 128
) -> None:
    """Train the encoder in place on captions: tokens (N, 24), targets (N, 16)."""
    assert tokens.shape[1] == TEXT_LENGTH
    heads, budget, step = Heads().to(tokens.device), Budget(minutes), 0
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    while budget.progress < 1:
        set_learning_rate(optimiser, learning_rate(1e-3, step, budget.progress))
        rows = torch.randint(len(tokens), (batch,))
        with torch.autocast(tokens.device.type, torch.bfloat16):
            states = encoder(tokens[rows]).last_hidden_state
        loss, right = heads(states.float(), targets[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        if step % 200 == 0:
            report(text_step=step, minutes=budget.used / 60, loss=loss.item(), right=right.item())
