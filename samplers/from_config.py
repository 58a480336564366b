"""The noise schedule and the parametrisation that a diffusers scheduler config describes.

A config is a plain mapping, `pipe.scheduler.config` or the contents of a ``scheduler_config.json``; nothing here
imports diffusers. What cannot be honoured exactly is refused by name: a schedule that is a little wrong gives pictures
that are a little wrong, and nobody sees why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .levels import DiscreteVP, NoiseSchedule, RectifiedFlow
from .prediction import EPS, FLOW, X0, Parametrisation, V
from .shift import shift_levels as shift_levels  # its old place

MAX_TRAIN_TIMESTEPS = 100_000
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES: dict[str, Parametrisation] = {
    "epsilon": EPS,
    "sample": X0,
    "v_prediction": V,
    "flow_prediction": FLOW,
}

_VP_KEYS = ("beta_schedule", "beta_start", "beta_end", "trained_betas")
_FLOW_KEYS = ("shift", "base_shift", "use_dynamic_shifting")

# What a diffusers class takes for a field that its file leaves out. All others: DDPM's values.
_DDPM = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_SD_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
_SD_SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_CLASS_DEFAULTS = {
    "LCMScheduler": _SD_SCALED,
    "TCDScheduler": _SD_SCALED,
    "HeunDiscreteScheduler": _SD_LINEAR,
    "KDPM2DiscreteScheduler": _SD_LINEAR,
    "KDPM2AncestralDiscreteScheduler": _SD_LINEAR,
    "DPMSolverSDEScheduler": _SD_LINEAR,
}


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise levels that the model behind `config` was trained on.

    config: a diffusers scheduler config.       Returns DiscreteVP with float64 levels, or RectifiedFlow with times 0 to
    num_train_timesteps.       Errors: ConfigError for a schedule that is unknown or not supported, by the field's name.
    """
    config = with_defaults(config)
    total = config["num_train_timesteps"]
    if isinstance(total, bool) or not isinstance(total, int) or not 2 <= total <= MAX_TRAIN_TIMESTEPS:
        raise ConfigError(f"num_train_timesteps must be a whole number from 2 to {MAX_TRAIN_TIMESTEPS}, got {total!r}")
    if config.get("thresholding"):
        raise ConfigError("thresholding=True is not supported yet; thresholding=False leaves it out")
    if is_flow(config):
        shift_from_config(config)  # refuses what is not a plain shift
        return RectifiedFlow(time_scale=float(total))
    _refuse_other_processes(config)
    betas = _betas(config, total)
    return DiscreteVP.from_betas(betas, zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")))


def parametrisation_from_config(config: Mapping[str, Any]) -> Parametrisation:
    """What the network's output means, from `prediction_type`: EPS, X0, V or FLOW.

    A flow-matching config has no such field; it is FLOW. Errors: ConfigError for an unknown value.
    """
    name = config.get("prediction_type") or ("flow_prediction" if is_flow(config) else "epsilon")
    if name not in PREDICTION_TYPES:
        raise ConfigError(f"prediction_type {name!r} is not supported; expected one of {', '.join(PREDICTION_TYPES)}")
    return PREDICTION_TYPES[name]


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the config describes rectified flow: x = (1 - t) x0 + t eps."""
    if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
        return True
    if any(key in config for key in _VP_KEYS):
        return False
    return str(config.get("_class_name", "")).startswith("FlowMatch") or any(key in config for key in _FLOW_KEYS)


def shift_from_config(config: Mapping[str, Any]) -> float:
    """The constant time shift s of a flow config, t' = s t / (1 + (s - 1) t); 1 for none.

    Errors: ConfigError where the shift depends on the image size or is not of this form.
    """
    if config.get("use_dynamic_shifting"):
        raise ConfigError(
            "use_dynamic_shifting=True makes the shift depend on the image size, which is not supported yet; give a "
            "constant one: use_dynamic_shifting=False, shift=3.0 (Flux at 1024x1024: exp(1.15) = 3.16)"
        )
    for key in ("shift_terminal", "invert_sigmas"):
        if config.get(key):
            raise ConfigError(f"{key}={config[key]!r} is not supported yet; {key}=None leaves it out")
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"shift must be a positive number, got {shift!r}")
    return float(shift)


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the fields that it leaves out, as the diffusers class that wrote it would fill them in."""
    defaults = _CLASS_DEFAULTS.get(str(config.get("_class_name")), _DDPM)
    filled = {"num_train_timesteps": 1000, **config}
    if not is_flow(config) and any(key in config for key in _VP_KEYS):
        filled = {**defaults, **filled}
    return filled


def _refuse_other_processes(config: Mapping[str, Any]) -> None:
    """ConfigError for configs of neither a discrete VP process nor a flow, or of a variant that changes its levels."""
    name = config.get("_class_name", "this scheduler")
    if not any(key in config for key in _VP_KEYS):
        fields = ", ".join(sorted(k for k in config if not k.startswith("_")))
        raise ConfigError(f"{name} describes no known noise schedule: expected beta_schedule (or trained_betas) or the "
                          f"shift of a flow, got the fields {fields}")  # fmt: skip
    if config.get("timestep_type") == "continuous":
        raise ConfigError(f"{name}: timestep_type='continuous' (EDM-style sigmas) is not supported, only 'discrete'")
    if config.get("snr_shift_scale") not in (None, 1, 1.0):
        raise ConfigError(f"snr_shift_scale={config['snr_shift_scale']!r} (CogVideoX) is not supported")


def _betas(config: Mapping[str, Any], total: int) -> list[float]:
    """The per-step noise variances, in float64."""
    trained = config.get("trained_betas")
    for key in ("beta_start", "beta_end"):
        if isinstance(config[key], bool) or not isinstance(config[key], int | float) or not 0 < config[key] < 1:
            raise ConfigError(f"{key} must be a number between 0 and 1, got {str(config[key])[:60]}")
    if trained is not None:
        try:
            betas = [float(beta) for beta in trained]
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"trained_betas must be a list of numbers, got {str(trained)[:60]}") from error
        if len(betas) != total:
            raise ConfigError(f"trained_betas has {len(betas)} values for num_train_timesteps={total}")
    else:
        betas = _named_betas(config["beta_schedule"], config["beta_start"], config["beta_end"], total)
    if not all(0.0 < beta < 1.0 for beta in betas):
        raise ConfigError(f"betas must lie between 0 and 1, got {min(betas)!r} to {max(betas)!r}")
    return betas


def _named_betas(name: str, first: float, last: float, total: int) -> list[float]:
    if name == "linear":
        return [first + (last - first) * i / (total - 1) for i in range(total)]
    if name == "scaled_linear":
        a, b = math.sqrt(first), math.sqrt(last)
        return [(a + (b - a) * i / (total - 1)) ** 2 for i in range(total)]
    if name == "squaredcos_cap_v2":  # Nichol, Dhariwal 2021, arXiv:2102.09672, equation 17
        bar = [math.cos((i / total + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(total + 1)]
        return [min(1.0 - q / p, 0.999) for p, q in zip(bar, bar[1:], strict=False)]
    raise ConfigError(f"beta_schedule {name!r} is not supported; expected one of {', '.join(BETA_SCHEDULES)}")
