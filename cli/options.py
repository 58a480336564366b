"""The options of the commands: names, help and sections. What a value may be is checked in `checks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from ..guidance.named import NAMES
from ..models import EMBEDDED
from ..names import ADAPTIVE_NAMES, DEFAULT_GRID, DEFAULT_SOLVER, GRID_NAMES, LAMBDA_GRID, SOLVER_NAMES
from .checks import DTYPES, FORMATS, OFFLOADS
from .config import use_config
from .how import DEFAULT_STEPS
from .settings import DEFAULT_STRENGTH

_WHAT, _HOW, _MODEL, _OUT, _TALK = "What to make", "How to sample", "Model", "Output", "What is printed"


def _whole(text: str | int) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, got {text!r}") from None


def _real(text: str | float) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, got {text!r}") from None


def _argument(section: str, metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help, show_default=False, rich_help_panel=section)


def _option(
    section: str,
    *names: str,
    help: str,
    metavar: str | None = None,
    among: Sequence[str] = (),
    shown: bool = True,
    parser: Callable[[str], Any] | None = None,
    callback: Callable[..., Any] | None = None,
) -> Any:
    """callback: called first, before the other options are read.
    among: what shell completion offers.       shown: whether the help page shows the default."""

    def matches(incomplete: str) -> list[str]:
        return [name for name in among if name.startswith(incomplete)]

    return typer.Option(
        *names,
        help=help,
        metavar=metavar,
        autocompletion=matches if among else None,
        show_default=shown,
        parser=parser,
        callback=callback,
        is_eager=callback is not None,
        rich_help_panel=section,
    )


_prompts = _argument(_WHAT, "PROMPT", "One or several prompts, quoted.")
_prompt_file = _option(
    _WHAT, "--prompt-file", metavar="FILE", help="Prompts from a text file, one a line; - reads standard input."
)
_negative = _option(_WHAT, "--negative-prompt", "-n", metavar="TEXT", help="What the pictures should not show.")
_num_images = _option(_WHAT, "--num-images", metavar="N", parser=_whole, help="Pictures per prompt.")
_seed = _option(
    _WHAT, "--seed", metavar="N", parser=_whole, help="Seed of the first picture; picture k of the run has seed N + k."
)
_height = _option(
    _WHAT, "--height", "-H", metavar="PIXELS", parser=_whole, help="Default: what the model was trained at."
)
_width = _option(
    _WHAT, "--width", "-W", metavar="PIXELS", parser=_whole, help="Default: what the model was trained at."
)
_init_image = _option(
    _WHAT, "--init-image", metavar="FILE", help="A picture to start from; it also gives the size, unless that is given."
)
_strength = _option(
    _WHAT,
    "--strength",
    metavar="S",
    parser=_real,
    help="With --init-image: how much of the noise schedule is run, in (0, 1]; 1 keeps nothing of the picture, small "
    f"values nearly all. All --steps are run. [default: {DEFAULT_STRENGTH}]",
)
_table_strength = _option(
    _HOW, "--strength", metavar="S", parser=_real, help="The table of a run that starts from a picture: see sample."
)


def _solver_option(names: Sequence[str], more: str) -> Any:
    return _option(
        _HOW,
        "--solver",
        metavar="NAME[:KEY=VALUE,...]",
        among=names,
        help=f"Update rule: {', '.join(SOLVER_NAMES)}; {more}or as other programs call it, such as 'DPM++ 2M Karras'. "
        f"[default: {DEFAULT_SOLVER}]",
    )


_solver = _solver_option(
    (*SOLVER_NAMES, *ADAPTIVE_NAMES), f"choosing their steps themselves {', '.join(ADAPTIVE_NAMES)}; "
)
_table_solver = _solver_option(SOLVER_NAMES, "")
_schedule = _option(
    _HOW,
    "--schedule",
    metavar="NAME[:KEY=VALUE,...]",
    among=GRID_NAMES,
    help=f"Noise levels: {', '.join(GRID_NAMES)}. [default: what the solver's name says, else what suits "
    f"it: {DEFAULT_GRID}, or {LAMBDA_GRID} for 2m, 3m, unipc and sde]",
)
_steps = _option(
    _HOW,
    "--steps",
    metavar="N",
    parser=_whole,
    help=f"Steps from noise to picture. [default: {DEFAULT_STEPS}]",
)
_nfe = _option(
    _HOW,
    "--nfe",
    metavar="N",
    parser=_whole,
    help="Instead of --steps: at most N network evaluations a picture. Guidance takes two for each of the solver's.",
)
_table = _option(
    _HOW, "--table", metavar="FILE", help="Run exactly this table, which fewstep table --save has written."
)
_scale = _option(
    _HOW,
    "--guidance-scale",
    "-g",
    metavar="W",
    parser=_real,
    help="How closely to follow the prompt; from 1, which is no guidance, at half the cost. Default: the model's own.",
)
_guidance = _option(
    _HOW,
    "--guidance",
    metavar="FILE|NAME[:KEY=VALUE,...]",
    among=tuple(NAMES),
    help=f"Which network evaluations guidance makes: {', '.join(NAMES)}, or a file of fewstep calibrate. "
    "[default: cfg, two for each of the solver's]",
)
_batch_size = _option(
    _HOW,
    "--batch-size",
    metavar="N",
    parser=_whole,
    help="Pictures computed together. With 1, each can be made again alone to the last bit.",
)
_model = _option(
    _MODEL,
    "--model",
    "-m",
    metavar="MODEL",
    among=tuple(EMBEDDED),
    help=f"Embedded model ({', '.join(EMBEDDED)}), diffusers folder, .safetensors file or hub id (owner/name).",
)
_lora = _option(
    _MODEL,
    "--lora",
    metavar="PATH[:WEIGHT]",
    help="A LoRA (.safetensors) to add to the model, with weight 1 unless given; may be repeated. Needs peft.",
)
_offload = _option(
    _MODEL,
    "--offload",
    metavar="NAME",
    among=OFFLOADS,
    help="model: keep the model in the CPU's memory and move each part to the GPU while it is used.",
)
_variant = _option(_MODEL, "--variant", metavar="NAME", help="Weights of this variant, such as fp16.")
_revision = _option(_MODEL, "--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
_dtype = _option(
    _MODEL, "--dtype", metavar="NAME", among=DTYPES, help=f"Precision of the network: {', '.join(DTYPES)}."
)
_device = _option(
    _MODEL, "--device", metavar="NAME", help="cpu, cuda, cuda:N, mps, or auto: CUDA if there is one, else the CPU."
)
_output = _option(
    _OUT, "--output", "-o", metavar="PATH", shown=False, help="Folder, or a file that ends in .png. Default: outputs."
)
_grid = _option(_OUT, "--grid/--no-grid", shown=False, help="Also write one picture of all pictures.")
_no_metadata = _option(
    _OUT, "--no-metadata/--metadata", shown=False, help="Write PNGs without prompt and settings in them."
)
_dry_run = _option(
    _OUT, "--dry-run/--no-dry-run", shown=False, help="Check all that needs no weights, say what would be done, stop."
)
_save = _option(_OUT, "--save", metavar="FILE", help="Also write the table to a .safetensors file for sample --table.")
_config = _option(
    _HOW,
    "--config",
    metavar="FILE",
    callback=use_config,
    help="Options from a TOML file, such as steps = 8. What the command line says has priority.",
)
_format = _option(_TALK, "--format", metavar="NAME", among=FORMATS, help=f"Of standard output: {' or '.join(FORMATS)}.")
_quiet = _option(_TALK, "--quiet/--no-quiet", "-q", shown=False, help="Only errors and warnings on standard error.")
_verbose = _option(_TALK, "--verbose/--no-verbose", "-v", shown=False, help="Also what other libraries say.")
_debug = _option(_TALK, "--debug", help="Show the traceback of an error.")
_pictures = _argument("What to read", "PNG", "Pictures made by fewstep.")

Prompts = Annotated[list[str] | None, _prompts]
PromptFile = Annotated[str | None, _prompt_file]
Negative = Annotated[str | None, _negative]
NumImages = Annotated[int, _num_images]
Seed = Annotated[int, _seed]
Height = Annotated[int | None, _height]
Width = Annotated[int | None, _width]
InitImage = Annotated[str | None, _init_image]
Strength = Annotated[float | None, _strength]
TableStrength = Annotated[float | None, _table_strength]
Solver = Annotated[str | None, _solver]
TableSolver = Annotated[str | None, _table_solver]
Schedule = Annotated[str | None, _schedule]
Steps = Annotated[int | None, _steps]
Nfe = Annotated[int | None, _nfe]
Table = Annotated[str | None, _table]
Lora = Annotated[list[str] | None, _lora]
Offload = Annotated[str | None, _offload]
Save = Annotated[str | None, _save]
Config = Annotated[list[str] | None, _config]
Scale = Annotated[float | None, _scale]
Guidance = Annotated[str | None, _guidance]
BatchSize = Annotated[int, _batch_size]
Model = Annotated[str, _model]
Variant = Annotated[str | None, _variant]
Revision = Annotated[str | None, _revision]
Dtype = Annotated[str, _dtype]
Device = Annotated[str, _device]
Output = Annotated[str | None, _output]
Grid = Annotated[bool, _grid]
NoMetadata = Annotated[bool, _no_metadata]
DryRun = Annotated[bool, _dry_run]
Format = Annotated[str, _format]
Quiet = Annotated[bool, _quiet]
Verbose = Annotated[bool, _verbose]
Debug = Annotated[bool, _debug]
Pictures = Annotated[list[str], _pictures]
