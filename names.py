"""The names that the command line offers, without importing torch."""

SOLVER_NAMES = (
    "2m", "3m", "3m-as-released", "2s", "3s", "fast++", "unipc-2", "unipc-3", "unipc-4", "deis-2", "deis-3",
    "dpm-2m", "dpm-3m", "dpm-2s", "dpm-3s", "fast", "heun", "euler", "ddim", "ddpm", "sde-2m",
)  # fmt: skip
GRID_NAMES = ("lambda", "karras", "time", "linspace", "leading", "trailing")
