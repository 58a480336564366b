"""What other programs call solvers and grids, what they are called here, and whether both do the same.

Facts read in the programs' sources: k-diffusion's sampling.py and external.py; ComfyUI's samplers.py,
k_diffusion/sampling.py, k_diffusion/deis.py and extra_samplers/uni_pc.py; A1111's sd_samplers_*.py and
sd_schedulers.py; diffusers 0.42. `names` looks them up; docs/names.md shows them. No torch is imported.
"""

from __future__ import annotations

from typing import NamedTuple

SAME = "same"  # the same update rule: on the same levels the same numbers
TRUE_ORDER = "same, true order"  # the same but for the third order's term, which the original halves
GRID_DIFFERS = "grid differs"  # the same update rule, which the original runs on other levels
ABSENT = "not here"  # `ours` is then the nearest
AUTOMATIC = "A1111's schedule type 'Automatic' may mean karras: name the grid"


class Alias(NamedTuple):
    """theirs: as people write it.       ours: name of a solver or grid here, for a solver with ":key=value,..."."""

    theirs: str
    ours: str
    exact: str
    note: str = ""


_FLOW = "on flow models theirs steps in sigma, ours in lam"
_SPLIT = "on flow models theirs splits off the noise otherwise"
_NOISE = "their noise follows one Brownian path"
_DROPS = "theirs drops the last but one level"
_CFG = "part of guidance, not of the solver"
_ADAMS = "Adams-Bashforth in sigma; deis-3 is the same idea in log sigma"
_EQUAL = "Adams-Bashforth with the coefficients of equal steps"
_LCM = "for distilled models: noises the predicted image anew at every level"

A1111 = (
    Alias("Euler", "euler", SAME),
    Alias("Euler a", "ddpm", SAME, "DDPM's ancestral step and Euler's are one map"),
    Alias("Heun", "heun", SAME),
    Alias("DPM2", "dpm-2s", GRID_DIFFERS, _DROPS),
    Alias("DPM2 a", "dpm2-a", GRID_DIFFERS, _DROPS),
    Alias("DPM++ 2S a", "2s-a", SAME),
    Alias("DPM++ 2M", "2m", SAME, AUTOMATIC),
    Alias("DPM++ SDE", "dpmpp-sde", SAME, _NOISE),
    Alias("DPM++ 2M SDE", "sde-2m", SAME, _NOISE),
    Alias("DPM++ 2M SDE Heun", "sde-2m:solver_type=taylor", SAME, _NOISE),
    Alias("DPM++ 3M SDE", "sde-3m:lower_order_final=false", TRUE_ORDER, _DROPS),
    Alias("DPM fast", "fast", GRID_DIFFERS, "theirs: steps of one length in lam whatever the order, to sigma_min"),
    Alias("DPM adaptive", "adaptive-23", GRID_DIFFERS, "another controller chooses the steps"),
    Alias("DDIM", "ddim", GRID_DIFFERS, "A1111 stops at time 1, not at sigma = 0"),
    Alias("UniPC", "unipc-3:variant=bh1", GRID_DIFFERS, "A1111 takes its own times and stops above sigma = 0"),
    Alias("LMS", "deis-3", ABSENT, _ADAMS),
    Alias("PLMS", "deis-3", ABSENT, _EQUAL),
    Alias("Restart", "heun", ABSENT, "Heun that goes up in noise and down again"),
    Alias("LCM", "ddpm", ABSENT, _LCM),
    Alias("DDIM CFG++", "ddim", ABSENT, _CFG),
)

COMFY = (
    Alias("euler", "euler", SAME),
    Alias("euler_ancestral", "ddpm", SAME, _SPLIT),
    Alias("heun", "heun", SAME, _FLOW),
    Alias("dpm_2", "dpm-2s", GRID_DIFFERS, f"{_DROPS}; {_FLOW}"),
    Alias("dpm_2_ancestral", "dpm2-a", GRID_DIFFERS, f"{_DROPS}; {_SPLIT}"),
    Alias("dpm_fast", "fast", GRID_DIFFERS, "theirs: steps of one length in lam whatever the order, to sigma_min"),
    Alias("dpm_adaptive", "adaptive-23", GRID_DIFFERS, "another controller chooses the steps"),
    Alias("dpmpp_2s_ancestral", "2s-a", SAME, _SPLIT),
    Alias("dpmpp_sde", "dpmpp-sde", SAME, _NOISE),
    Alias("dpmpp_sde_gpu", "dpmpp-sde", SAME, _NOISE),
    Alias("dpmpp_2m", "2m", SAME, _FLOW),
    Alias("dpmpp_2m_sde", "sde-2m", SAME, _NOISE),
    Alias("dpmpp_2m_sde_gpu", "sde-2m", SAME, _NOISE),
    Alias("dpmpp_2m_sde_heun", "sde-2m:solver_type=taylor", SAME, _NOISE),
    Alias("dpmpp_2m_sde_heun_gpu", "sde-2m:solver_type=taylor", SAME, _NOISE),
    Alias("dpmpp_3m_sde", "sde-3m:lower_order_final=false", TRUE_ORDER, _NOISE),
    Alias("dpmpp_3m_sde_gpu", "sde-3m:lower_order_final=false", TRUE_ORDER, _NOISE),
    Alias("ddpm", "ddpm", SAME, "theirs is for variance-preserving models only"),
    Alias("ddim", "ddim", SAME),
    Alias("uni_pc", "unipc-3:variant=bh1", GRID_DIFFERS, f"{_DROPS} and stops at sigma = 0.001"),
    Alias("uni_pc_bh2", "unipc-3", GRID_DIFFERS, f"{_DROPS} and stops at sigma = 0.001"),
    Alias("res_multistep", "2m:solver_type=taylor", SAME, _FLOW),
    Alias("res_multistep_ancestral", "sde-2m:solver_type=taylor", ABSENT, "2M towards an ancestral step's lower level"),
    Alias("deis", "deis-3", ABSENT, "theirs interpolates in the time of a VP model, ours in log sigma"),
    Alias("lms", "deis-3", ABSENT, _ADAMS),
    Alias("ipndm", "deis-3", ABSENT, _EQUAL),
    Alias("ipndm_v", "deis-3", ABSENT, _ADAMS),
    Alias("heunpp2", "heun", ABSENT, "a weighted sum of up to three slopes"),
    Alias("exp_heun_2_x0", "2s:solver_type=taylor", ABSENT, "2S with its second node at the end of the step"),
    Alias("exp_heun_2_x0_sde", "dpmpp-sde", ABSENT, "the stochastic form of exp_heun_2_x0"),
    Alias("seeds_2", "dpmpp-sde", ABSENT, "the same means; its two noises are correlated otherwise"),
    Alias("seeds_3", "sde-3m", ABSENT, "SEEDS with three evaluations a step"),
    Alias("sa_solver", "sde-3m", ABSENT, "stochastic Adams with a corrector"),
    Alias("sa_solver_pece", "sde-3m", ABSENT, "stochastic Adams with a corrector, evaluated twice"),
    Alias("er_sde", "sde-3m", ABSENT, "another amount of noise at every level"),
    Alias("gradient_estimation", "2m", ABSENT, "extrapolates the slope by a fixed factor"),
    Alias("lcm", "ddpm", ABSENT, _LCM),
    Alias("euler_cfg_pp", "euler", ABSENT, _CFG),
    Alias("euler_ancestral_cfg_pp", "ddpm", ABSENT, _CFG),
    Alias("dpmpp_2s_ancestral_cfg_pp", "2s-a", ABSENT, _CFG),
    Alias("dpmpp_2m_cfg_pp", "2m", ABSENT, _CFG),
    Alias("res_multistep_cfg_pp", "2m:solver_type=taylor", ABSENT, _CFG),
    Alias("res_multistep_ancestral_cfg_pp", "sde-2m:solver_type=taylor", ABSENT, _CFG),
    Alias("gradient_estimation_cfg_pp", "2m", ABSENT, _CFG),
)

_RAMP = "from 15 steps on theirs keeps its order to the end"
_HALF = "3m-as-released has the halved term"
_INNER = "theirs evaluates at nodes of its grid, ours at fixed fractions of a step in lam"

# With options: as in its config, those that differ from the default, in alphabetical order.
DIFFUSERS = (
    Alias("DPMSolverMultistepScheduler", "2m", SAME),
    Alias("DPMSolverMultistepScheduler:solver_type=heun", "2m:solver_type=taylor", SAME),
    Alias("DPMSolverMultistepScheduler:solver_order=1", "ddim", SAME),
    Alias("DPMSolverMultistepScheduler:solver_order=3", "3m", TRUE_ORDER, "its steps of order 2 are in midpoint form"),
    Alias("DPMSolverMultistepScheduler:solver_order=3,solver_type=heun", "3m", TRUE_ORDER, _HALF),
    Alias("DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++", "sde-2m", SAME),
    Alias("DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++,solver_type=heun",
          "sde-2m:solver_type=taylor", SAME),
    Alias("DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++,solver_order=3", "sde-3m", ABSENT,
          "theirs has a wrong sign in the third order's term"),
    Alias("DPMSolverMultistepScheduler:algorithm_type=dpmsolver", "dpm-2m", SAME, _RAMP),
    Alias("DPMSolverMultistepScheduler:algorithm_type=dpmsolver,solver_order=3", "dpm-3m", TRUE_ORDER,
          "its steps of order 2 are in midpoint form"),
    Alias("DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver", "sde-2m", ABSENT, "noise prediction with noise"),
    Alias("DPMSolverSinglestepScheduler", "2s", GRID_DIFFERS, _INNER),
    Alias("DPMSolverSinglestepScheduler:solver_type=heun", "2s:solver_type=taylor", GRID_DIFFERS, _INNER),
    Alias("DPMSolverSinglestepScheduler:solver_order=3", "3s", ABSENT, "theirs has another second stage"),
    Alias("UniPCMultistepScheduler", "unipc-2", SAME),
    Alias("UniPCMultistepScheduler:solver_type=bh1", "unipc-2:variant=bh1", SAME),
    Alias("UniPCMultistepScheduler:solver_order=3", "unipc-3", SAME),
    Alias("UniPCMultistepScheduler:solver_order=3,solver_type=bh1", "unipc-3:variant=bh1", SAME),
    Alias("DEISMultistepScheduler", "deis-2", SAME, _RAMP),
    Alias("DEISMultistepScheduler:solver_order=3", "deis-3", SAME, _RAMP),
    Alias("DDIMScheduler", "ddim", SAME, "without clip_sample"),
    Alias("DDPMScheduler", "ddpm", SAME, "without clip_sample; variance_type fixed_small"),
    Alias("EulerDiscreteScheduler", "euler", SAME),
    Alias("EulerAncestralDiscreteScheduler", "ddpm", SAME),
    Alias("HeunDiscreteScheduler", "heun", SAME),
    Alias("KDPM2DiscreteScheduler", "dpm-2s", SAME),
    Alias("KDPM2AncestralDiscreteScheduler", "dpm2-a", SAME),
    Alias("DPMSolverSDEScheduler", "dpmpp-sde", SAME, _NOISE),
    Alias("FlowMatchEulerDiscreteScheduler", "euler", SAME),
    Alias("FlowMatchHeunDiscreteScheduler", "heun", ABSENT, "averages velocities, ours noise predictions"),
    Alias("LMSDiscreteScheduler", "deis-3", ABSENT, _ADAMS),
    Alias("PNDMScheduler", "deis-3", ABSENT, _EQUAL),
    Alias("IPNDMScheduler", "deis-3", ABSENT, _EQUAL),
    Alias("SASolverScheduler", "sde-3m", ABSENT, "stochastic Adams with a corrector"),
    Alias("LCMScheduler", "ddpm", ABSENT, _LCM),
    Alias("TCDScheduler", "ddpm", ABSENT, "for distilled models"),
)  # fmt: skip

_LEADING = "the same where the steps divide 1000; else theirs takes more steps"
_TRAILING = "the same where the steps divide 1000; else a time may differ by 1"

GRIDS_A1111 = (
    Alias("Uniform", "time", SAME),
    Alias("Normal", "time", SAME),
    Alias("Karras", "karras", SAME),
    Alias("Exponential", "exponential", SAME),
    Alias("Polyexponential", "polyexponential", SAME),
    Alias("SGM Uniform", "linspace", GRID_DIFFERS, "theirs does not round the times"),
    Alias("Simple", "trailing", GRID_DIFFERS, _TRAILING),
    Alias("Beta", "beta", SAME),
    Alias("DDIM", "leading", GRID_DIFFERS, _LEADING),
    Alias("Align Your Steps", "ays-sd", ABSENT, "say for which model: ays-sd, ays-sdxl or ays-svd"),
    Alias("KL Optimal", "karras", ABSENT, "equal steps in arctan(sigma)"),
    Alias("Karras Exponential", "karras", ABSENT, "a blend of two grids that ends above sigma = 0"),
    Alias("Automatic", "time", ABSENT, "A1111 then chooses by the sampler: name the grid"),
)

GRIDS_COMFY = (
    Alias("normal", "time", SAME, "ComfyUI feeds the network the nearest whole time"),
    Alias("karras", "karras", SAME, "ComfyUI feeds the network the nearest whole time"),
    Alias("exponential", "exponential", SAME, "ComfyUI feeds the network the nearest whole time"),
    Alias("sgm_uniform", "linspace", GRID_DIFFERS, "theirs does not round the levels"),
    Alias("simple", "trailing", GRID_DIFFERS, _TRAILING),
    Alias("ddim_uniform", "leading", GRID_DIFFERS, _LEADING),
    Alias("beta", "beta", GRID_DIFFERS, "theirs takes quantiles of the times, ours of sigma as diffusers does"),
    Alias("kl_optimal", "karras", ABSENT, "equal steps in arctan(sigma)"),
    Alias("linear_quadratic", "time", ABSENT, "half of the steps close to the noise"),
    Alias("align_your_steps", "ays-sd", ABSENT, "say for which model: ays-sd, ays-sdxl or ays-svd"),
)

_LINSPACE = "the same for their multistep solvers; Euler, Heun and DDIM end at time 0"

GRIDS_DIFFUSERS = (
    Alias("use_karras_sigmas", "karras", SAME, "diffusers rounds the times, not the levels"),
    Alias("use_exponential_sigmas", "exponential", SAME, "diffusers cuts the times off to whole numbers"),
    Alias("use_beta_sigmas", "beta", SAME, "diffusers cuts the times off to whole numbers"),
    Alias("use_lu_lambdas", "lambda", SAME, "diffusers rounds the times, not the levels"),
    Alias("timestep_spacing=linspace", "linspace", GRID_DIFFERS, _LINSPACE),
    Alias("timestep_spacing=leading", "leading", GRID_DIFFERS, "the same for their DDIM and Euler with steps_offset=1"),
    Alias("timestep_spacing=trailing", "trailing", SAME),
)

SOLVER_TABLES = {"A1111": A1111, "ComfyUI": COMFY, "diffusers": DIFFUSERS}
GRID_TABLES = {"A1111": GRIDS_A1111, "ComfyUI": GRIDS_COMFY, "diffusers": GRIDS_DIFFUSERS}
