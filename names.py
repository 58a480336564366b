"""The names that the command line offers, without importing torch."""

SOLVER_NAMES = ("2m", "3m", "2s", "unipc-2", "unipc-3", "heun", "euler", "ddim", "ddpm", "sde-2m")
GRID_NAMES = ("lambda", "karras", "time", "linspace", "leading", "trailing")
