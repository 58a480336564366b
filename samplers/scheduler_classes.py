"""diffusers' scheduler classes by name: what they fill in by default, and which ones no solver here can stand in for.

Only names: nothing here imports diffusers. A class that is in neither table is judged by the fields of its config.
"""

from __future__ import annotations

from typing import Any

_SD_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
_SD_SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"}
_COSINE = {"sigma_min": 0.3, "sigma_max": 500, "sigma_data": 1.0, "prediction_type": "v_prediction"}

DDPM_DEFAULTS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
"""What most classes take for a field that a config file leaves out."""

CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "LCMScheduler": _SD_SCALED,
    "TCDScheduler": _SD_SCALED,
    "HeunDiscreteScheduler": _SD_LINEAR,
    "KDPM2DiscreteScheduler": _SD_LINEAR,
    "KDPM2AncestralDiscreteScheduler": _SD_LINEAR,
    "DPMSolverSDEScheduler": _SD_LINEAR,
    "UnCLIPScheduler": {**DDPM_DEFAULTS, "beta_schedule": "squaredcos_cap_v2"},
    "CogVideoXDDIMScheduler": {**_SD_SCALED, "snr_shift_scale": 3.0},
    "CogVideoXDPMScheduler": {**_SD_SCALED, "snr_shift_scale": 3.0},
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "CosineDPMSolverMultistepScheduler": _COSINE,
}
"""The classes that take other values."""

SIGMA_TIMES = {
    "EDMEulerScheduler": "log",
    "EDMDPMSolverMultistepScheduler": "log",
    "CosineDPMSolverMultistepScheduler": "atan",
}
"""The classes whose networks are preconditioned, and the function of sigma that those are fed."""

FLOW_CLASSES = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
)
"""The classes of rectified-flow networks."""

_TOKENS = "its model predicts discrete tokens, not a clean image or noise"
_CONSISTENCY = "its network is a consistency model, which jumps to the clean image and follows no differential equation"
_STAGES = "its networks work in stages of growing resolution, which it joins by noise of its own"
_OWN_TIME = "its network is told a time of its own that fewstep does not know"

REFUSED_CLASSES: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": _CONSISTENCY,
    "ConsistencyDecoderScheduler": _CONSISTENCY,
    "SCMScheduler": _CONSISTENCY,
    "FlowMapEulerDiscreteScheduler": "its network predicts the mean velocity between two times, not that at one time",
    "PiflowScheduler": "its network predicts a policy for a whole segment, not a velocity",
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "MiniMaxH3Scheduler": "its num_inference_steps counts grid points, one more than evaluations, and " + _OWN_TIME,
    "RFD4ProteinaScheduler": "its model moves proteins, each part on a schedule of its own",
    "IPNDMScheduler": _OWN_TIME,
    "DDPMWuerstchenScheduler": _OWN_TIME,
    "KarrasVeScheduler": _OWN_TIME,
    "ScoreSdeVeScheduler": _OWN_TIME,
    "ScoreSdeVpScheduler": _OWN_TIME,
}
"""The classes that are refused, and why."""
