"""The options of the commands: names, help and sections. What a value may be is checked in `checks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from ..guidance.named import NAMES
from ..models import EMBEDDED
from ..names import ADAPTIVE_NAMES, DEFAULT_GRID, DEFAULT_SOLVER, GRID_NAMES, LAMBDA_GRID, SOLVER_NAMES
from .checks import DTYPES, FORMATS, OFFLOADS
from .config import use_config
from .how import DEFAULT_STEPS
from .option_kinds import HOW, MODEL, OUT, TALK, WHAT, argument, option, real, whole
from .settings import DEFAULT_STRENGTH

_prompts = argument(WHAT, "PROMPT", "One or several prompts, quoted.")
_prompt_file = option(
    WHAT, "--prompt-file", metavar="FILE", help="Prompts from a text file, one a line; - reads standard input."
)
_negative = option(WHAT, "--negative-prompt", "-n", metavar="TEXT", help="What the pictures should not show.")
_num_images = option(WHAT, "--num-images", metavar="N", parser=whole, help="Pictures per prompt.")
_seed = option(
    WHAT, "--seed", metavar="N", parser=whole, help="Seed of the first picture; picture k of the run has seed N + k."
)
_height = option(WHAT, "--height", "-H", metavar="PIXELS", parser=whole, help="Default: what the model was trained at.")
_width = option(WHAT, "--width", "-W", metavar="PIXELS", parser=whole, help="Default: what the model was trained at.")
_init_image = option(
    WHAT, "--init-image", metavar="FILE", help="A picture to start from; it also gives the size, unless that is given."
)
_strength = option(
    WHAT,
    "--strength",
    metavar="S",
    parser=real,
    help="With --init-image: how much of the noise schedule is run, in (0, 1]; 1 keeps nothing of the picture, small "
    f"values nearly all. All --steps are run. [default: {DEFAULT_STRENGTH}]",
)
_table_strength = option(
    HOW, "--strength", metavar="S", parser=real, help="The table of a run that starts from a picture: see sample."
)


def _solver_option(names: Sequence[str], more: str) -> Any:
    return option(
        HOW,
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
_schedule = option(
    HOW,
    "--schedule",
    metavar="NAME[:KEY=VALUE,...]",
    among=GRID_NAMES,
    help=f"Noise levels: {', '.join(GRID_NAMES)}. [default: what the solver's name says, else what suits "
    f"it: {DEFAULT_GRID}, or {LAMBDA_GRID} for 2m, 3m, unipc and sde]",
)
_steps = option(
    HOW,
    "--steps",
    metavar="N",
    parser=whole,
    help=f"Steps from noise to picture. [default: {DEFAULT_STEPS}]",
)
_nfe = option(
    HOW,
    "--nfe",
    metavar="N",
    parser=whole,
    help="Instead of --steps: at most N network evaluations a picture. Guidance takes two for each of the solver's.",
)
_table = option(HOW, "--table", metavar="FILE", help="Run exactly this table, which fewstep table --save has written.")
_scale = option(
    HOW,
    "--guidance-scale",
    "-g",
    metavar="W",
    parser=real,
    help="How closely to follow the prompt; from 1, which is no guidance, at half the cost. Default: the model's own.",
)
_guidance = option(
    HOW,
    "--guidance",
    metavar="FILE|NAME[:KEY=VALUE,...]",
    among=tuple(NAMES),
    help=f"Which network evaluations guidance makes: {', '.join(NAMES)}, or a file of fewstep calibrate or "
    "fewstep search. [default: cfg, two for each of the solver's]",
)
_batch_size = option(
    HOW,
    "--batch-size",
    metavar="N",
    parser=whole,
    help="Pictures computed together. With 1, each can be made again alone to the last bit.",
)
_model = option(
    MODEL,
    "--model",
    "-m",
    metavar="MODEL",
    among=tuple(EMBEDDED),
    help=f"Embedded model ({', '.join(EMBEDDED)}), diffusers folder, .safetensors file or hub id (owner/name).",
)
_lora = option(
    MODEL,
    "--lora",
    metavar="PATH[:WEIGHT]",
    help="A LoRA (.safetensors) to add to the model, with weight 1 unless given; may be repeated. Needs peft.",
)
_offload = option(
    MODEL,
    "--offload",
    metavar="NAME",
    among=OFFLOADS,
    help="model: keep the model in the CPU's memory and move each part to the GPU while it is used.",
)
_variant = option(MODEL, "--variant", metavar="NAME", help="Weights of this variant, such as fp16.")
_revision = option(MODEL, "--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
_dtype = option(MODEL, "--dtype", metavar="NAME", among=DTYPES, help=f"Precision of the network: {', '.join(DTYPES)}.")
_device = option(
    MODEL, "--device", metavar="NAME", help="cpu, cuda, cuda:N, mps, or auto: CUDA if there is one, else the CPU."
)
_output = option(
    OUT, "--output", "-o", metavar="PATH", shown=False, help="Folder, or a file that ends in .png. Default: outputs."
)
_grid = option(OUT, "--grid/--no-grid", shown=False, help="Also write one picture of all pictures.")
_no_metadata = option(
    OUT, "--no-metadata/--metadata", shown=False, help="Write PNGs without prompt and settings in them."
)
_dry_run = option(
    OUT, "--dry-run/--no-dry-run", shown=False, help="Check all that needs no weights, say what would be done, stop."
)
_save = option(OUT, "--save", metavar="FILE", help="Also write the table to a .safetensors file for sample --table.")
_config = option(
    HOW,
    "--config",
    metavar="FILE",
    callback=use_config,
    help="Options from a TOML file, such as steps = 8. What the command line says has priority.",
)
_format = option(TALK, "--format", metavar="NAME", among=FORMATS, help=f"Of standard output: {' or '.join(FORMATS)}.")
_quiet = option(TALK, "--quiet/--no-quiet", "-q", shown=False, help="Only errors and warnings on standard error.")
_verbose = option(TALK, "--verbose/--no-verbose", "-v", shown=False, help="Also what other libraries say.")
_debug = option(TALK, "--debug", help="Show the traceback of an error.")
_pictures = argument("What to read", "FILE", "Pictures made by fewstep, or files of guidance policies.")

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
