"""The options that `calibrate` has and `sample` has not."""

from __future__ import annotations

from typing import Annotated

from ..guidance.named import SPACES
from .option_kinds import HOW, OUT, WHAT, option, real, whole

_prompt_count = option(
    WHAT,
    "--prompts",
    metavar="N",
    parser=whole,
    help="So many samples, each with a seed of its own. [default: the prompts given; 100 captions for an embedded "
    "model, from its training world]",
)
_negative = option(
    WHAT,
    "--negative-prompt",
    "-n",
    metavar="TEXT",
    help="What the pictures should not show. A file of --policy linear then belongs to runs with a negative prompt, "
    "and else to runs without one.",
)
_policy = option(
    HOW,
    "--policy",
    metavar="NAME",
    among=("adaptive", "linear", "delta-reuse"),
    help="What to choose: adaptive (the threshold), linear (the fit of LinearAG), delta-reuse (the guided part).",
)
_target_nfe = option(
    HOW, "--target-nfe", metavar="N", parser=real, help="Spend at most so many network evaluations an image, mean."
)
_target_fidelity = option(
    HOW,
    "--target-fidelity",
    metavar="E",
    parser=real,
    help="Spend as few as keep the latents within E of full guidance's: relative RMS, mean over the prompts.",
)
_space = option(
    HOW,
    "--space",
    metavar="NAME",
    among=SPACES,
    help=f"With --policy adaptive: where predictions are compared, {', '.join(SPACES)}. [default: x0]",
)
_plan = option(
    HOW,
    "--plan",
    metavar="NAME",
    among=("chosen", "alternating"),
    help="With --policy linear: where the unconditional prediction is evaluated. chosen: where one recorded pass says, "
    "estimated everywhere else; alternating: the paper's, every second tick at first, later none, one pass per "
    "estimated tick. [default: chosen]",
)
_window = option(
    HOW,
    "--window",
    metavar="N",
    parser=whole,
    help="With --policy linear: how many of the last evaluated unconditional predictions a line reads. [default: all]",
)
_ridge = option(
    HOW, "--ridge", metavar="R", parser=real, help="With --policy linear: of the regression. [default: 1e-06]"
)
_calibration_batch = option(HOW, "--batch-size", metavar="N", parser=whole, help="Samples computed together.")
_policy_output = option(OUT, "--output", "-o", metavar="FILE", help="The policy, a .safetensors file.")
_plot = option(OUT, "--plot", metavar="FILE", help="Also draw gamma along the run, a .png file. Needs matplotlib.")

PromptCount = Annotated[int | None, _prompt_count]
Negative = Annotated[str | None, _negative]
Policy = Annotated[str, _policy]
TargetNfe = Annotated[float | None, _target_nfe]
TargetFidelity = Annotated[float | None, _target_fidelity]
Space = Annotated[str | None, _space]
Plan = Annotated[str | None, _plan]
Window = Annotated[int | None, _window]
Ridge = Annotated[float | None, _ridge]
CalibrationBatch = Annotated[int, _calibration_batch]
PolicyOutput = Annotated[str | None, _policy_output]
Plot = Annotated[str | None, _plot]
