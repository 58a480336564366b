"""The options that `search` has and the other commands have not."""

from __future__ import annotations

from typing import Annotated

import typer

from .option_kinds import HOW, OUT, WHAT, option, real, whole

_LEARN = "How to search"


def _numbers(text: str | tuple[float, ...]) -> tuple[float, ...]:
    if isinstance(text, tuple):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers with commas between them, got {text!r}") from None


_prompt_count = option(
    WHAT,
    "--prompts",
    metavar="N",
    parser=whole,
    help="So many prompts to search on, each with a seed of its own. [default: those given; 64 captions for an "
    "embedded model, from its training world]",
)
_held_out = option(
    WHAT,
    "--held-out",
    metavar="N",
    parser=whole,
    help="So many other prompts to measure the result on; 0 for none. Of prompts that are given, the last quarter. "
    "[default: 32]",
)
_negative = option(
    WHAT,
    "--negative-prompt",
    "-n",
    metavar="TEXT",
    help="What the pictures should not show. The file then belongs to runs with a negative prompt, and else to runs "
    "without one.",
)
_target_nfe = option(
    HOW,
    "--target-nfe",
    metavar="N",
    parser=real,
    help="At most so many network evaluations an image. [default: 1.3 times what the run takes without guidance]",
)
_strengths = option(
    HOW,
    "--strengths",
    metavar="W,...",
    parser=_numbers,
    help="Guidance scales that a guided step may have. [default: the guidance scale alone]",
)
_minutes = option(_LEARN, "--minutes", metavar="M", parser=real, help="Stop after so long, interrupted parts included.")
_iterations = option(_LEARN, "--iterations", metavar="N", parser=whole, help="Iterations of the gradient descent.")
_rate = option(_LEARN, "--rate", metavar="R", parser=real, help="The size of a step of the descent.")
_cost_weight = option(
    _LEARN, "--cost-weight", metavar="C", parser=real, help="Weight of an evaluation above the target in the loss."
)
_temperature = option(
    _LEARN,
    "--temperature",
    metavar="FIRST,LAST",
    parser=_numbers,
    help="Of the softmax, at both ends of the descent. [default: 1,1]",
)
_gumbel = option(_LEARN, "--gumbel/--no-gumbel", shown=False, help="Draw Gumbel noise for the softmax.")
_changes = option(_LEARN, "--changes", metavar="N", parser=whole, help="Try at most so many single changes afterwards.")
_batch = option(_LEARN, "--batch-size", metavar="N", parser=whole, help="Images computed together.")
_output = option(OUT, "--output", "-o", metavar="FILE", help="The policy, a .safetensors file.")
_plot = option(OUT, "--plot", metavar="FILE", help="Also draw the choices, a .png file. Needs matplotlib.")

PromptCount = Annotated[int | None, _prompt_count]
Negative = Annotated[str | None, _negative]
HeldOut = Annotated[int | None, _held_out]
TargetNfe = Annotated[float | None, _target_nfe]
Strengths = Annotated[tuple | None, _strengths]
Minutes = Annotated[float, _minutes]
Iterations = Annotated[int, _iterations]
Rate = Annotated[float, _rate]
CostWeight = Annotated[float, _cost_weight]
Temperature = Annotated[tuple | None, _temperature]
Gumbel = Annotated[bool, _gumbel]
Changes = Annotated[int, _changes]
Batch = Annotated[int, _batch]
PolicyOutput = Annotated[str | None, _output]
Plot = Annotated[str | None, _plot]
