"""The options that only ``fewstep restore`` has: names, help and sections."""

from __future__ import annotations

from typing import Annotated

from ..inverse.named import METHODS, OPERATOR_NAMES
from .option_kinds import HOW, OUT, WHAT, argument, option, real, whole

_inputs = argument(WHAT, "INPUT", "Pictures to restore, or folders of them.")
_operator = option(
    WHAT,
    "--operator",
    metavar="NAME[:KEY=VALUE,...]",
    among=OPERATOR_NAMES,
    help=f"What was done to the picture: {', '.join(OPERATOR_NAMES)}. --operator help lists their keys.",
)
_noise_std = option(
    WHAT,
    "--noise-std",
    metavar="S",
    parser=real,
    help="Standard deviation of its noise, where pixels are from 0 to 1.",
)
_simulate = option(
    WHAT,
    "--simulate/--no-simulate",
    shown=False,
    help="INPUT is a clean picture: degrade it first, restore that, and compare.",
)
_noise_seed = option(WHAT, "--noise-seed", metavar="N", parser=whole, help="Of the noise that --simulate adds.")
_prompt = option(WHAT, "--prompt", "-p", metavar="TEXT", help="What the picture shows, if you know. Default: none.")
_samples = option(
    WHAT,
    "--samples",
    metavar="N",
    parser=whole,
    help="Restore each picture N times, with seeds from --seed on; also writes their mean and standard deviation.",
)
_seed = option(WHAT, "--seed", metavar="N", parser=whole, help="Seed of the first sample.")
_height = option(WHAT, "--height", "-H", metavar="PIXELS", parser=whole, help="Of what comes out. Default: as INPUT.")
_width = option(WHAT, "--width", "-W", metavar="PIXELS", parser=whole, help="Likewise.")
_method = option(
    HOW,
    "--method",
    metavar="NAME[:KEY=VALUE,...]",
    among=tuple(METHODS),
    help=f"Posterior sampler: {', '.join(METHODS)}. --method help lists their keys.",
)
_steps = option(HOW, "--steps", metavar="N", parser=whole, help="From noise to picture. Default: the method's own.")
_scale = option(
    HOW,
    "--guidance-scale",
    "-g",
    metavar="W",
    parser=real,
    help="How closely to follow the prompt, from 1, which is no guidance. Default: the method's own.",
)
_batch_size = option(
    HOW,
    "--batch-size",
    metavar="N",
    parser=whole,
    help="Samples of a picture computed together. With 1, each can be made again alone to the last bit.",
)
_checkpoint = option(
    HOW,
    "--checkpoint/--no-checkpoint",
    shown=False,
    help="Less memory, more time: activations are computed again instead of kept.",
)
_side = option(
    OUT,
    "--side-by-side/--no-side-by-side",
    shown=False,
    help="Degraded, restored and (with --simulate) true picture in one. Default: yes in a folder, no for a file.",
)

Inputs = Annotated[list[str] | None, _inputs]
Operator = Annotated[str | None, _operator]
NoiseStd = Annotated[float, _noise_std]
Simulate = Annotated[bool, _simulate]
NoiseSeed = Annotated[int, _noise_seed]
Prompt = Annotated[str, _prompt]
Samples = Annotated[int, _samples]
Seed = Annotated[int, _seed]
Height = Annotated[int | None, _height]
Width = Annotated[int | None, _width]
Method = Annotated[str, _method]
Steps = Annotated[int | None, _steps]
Scale = Annotated[float | None, _scale]
BatchSize = Annotated[int, _batch_size]
Checkpoint = Annotated[bool, _checkpoint]
Side = Annotated[bool | None, _side]
