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
from .betas import NAMED
from .levels import DiscreteVP, NoiseSchedule, RectifiedFlow
from .prediction import EPS, FLOW, X0, Parametrisation, V, edm
from .scheduler_classes import CLASS_DEFAULTS, DDPM_DEFAULTS, FLOW_CLASSES, REFUSED_CLASSES, SIGMA_TIMES
from .scheduler_schedules import LabelledFlow, PreconditionedVE, negated

MAX_TRAIN_TIMESTEPS = 100_000
PREDICTION_TYPES: dict[str, Parametrisation] = {
    "epsilon": EPS,
    "sample": X0,
    "v_prediction": V,
    "flow_prediction": FLOW,
}

_VP_KEYS = ("beta_schedule", "beta_start", "beta_end", "trained_betas")
_FLOW_KEYS = ("shift", "base_shift", "use_dynamic_shifting")


def schedule_from_config(config: Mapping[str, Any], *, preconditioned: bool = False) -> NoiseSchedule:
    """The noise levels that the model behind `config` was trained on.

    config: a diffusers scheduler config.
    preconditioned: whether the caller feeds the network what `PreconditionedVE.input_scale` asks for; EDM-style models
    are refused where it does not.
    Returns DiscreteVP with float64 levels, RectifiedFlow with times 0 to num_train_timesteps (LabelledFlow with
    invert_sigmas), or PreconditionedVE.
    Errors: ConfigError for a schedule that is unknown or not supported, by the field's name.
    """
    config = with_defaults(config)
    total = config["num_train_timesteps"]
    if isinstance(total, bool) or not isinstance(total, int) or not 2 <= total <= MAX_TRAIN_TIMESTEPS:
        raise ConfigError(f"num_train_timesteps must be a whole number from 2 to {MAX_TRAIN_TIMESTEPS}, got {total!r}")
    if config.get("thresholding"):
        raise ConfigError("thresholding=True is not supported yet; thresholding=False leaves it out")
    _refuse_class(config)
    sigma_time = sigma_time_of(config)
    if sigma_time is not None:
        if not preconditioned:
            raise ConfigError(
                f"{_name(config)}: this network must be fed x / sqrt(sigma^2 + sigma_data^2) (EDM's preconditioning), "
                "which only the scheduler does: use FewstepScheduler inside the pipeline"
            )
        low, high = _sigma_range(config, total)
        return PreconditionedVE(low, high, _sigma_data(config), sigma_time)  # type: ignore[arg-type]
    if is_flow(config):
        _check_flow(config)
        if config.get("invert_sigmas"):
            return LabelledFlow(time_scale=float(total), inverted=True)
        return RectifiedFlow(time_scale=float(total))
    return _discrete_vp(config, total)


def parametrisation_from_config(config: Mapping[str, Any]) -> Parametrisation:
    """What the network's output means, from `prediction_type`: EPS, X0, V or FLOW, or EDM's for preconditioned models.

    A flow-matching config has no such field; it is FLOW, of the other sign with invert_sigmas.
    Errors: ConfigError for an unknown value.
    """
    if sigma_time_of(config) is not None:
        return _preconditioned(with_defaults(config))
    name = config.get("prediction_type") or ("flow_prediction" if is_flow(config) else "epsilon")
    if name not in PREDICTION_TYPES:
        raise ConfigError(f"prediction_type {name!r} is not supported; expected one of {', '.join(PREDICTION_TYPES)}")
    if name == "flow_prediction" and config.get("invert_sigmas"):  # the network's time runs backwards
        return negated(FLOW)
    return PREDICTION_TYPES[name]


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the config describes rectified flow: x = (1 - t) x0 + t eps."""
    if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
        return True
    name = str(config.get("_class_name", ""))
    if any(key in config for key in _VP_KEYS) or name in CLASS_DEFAULTS:
        return False
    return name in FLOW_CLASSES or any(key in config for key in _FLOW_KEYS)


def sigma_time_of(config: Mapping[str, Any]) -> str | None:
    """Which function of sigma a preconditioned (EDM-style) network is fed, "log" or "atan"; None for other networks."""
    name = str(config.get("_class_name", ""))
    known = config.get("sigma_time") or SIGMA_TIMES.get(name)
    if known is not None:
        return str(known)
    # Stable Video Diffusion; with epsilon prediction diffusers ignores the field
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    return "log" if continuous and not is_flow(config) else None


def shift_from_config(config: Mapping[str, Any]) -> float:
    """The constant time shift s of a flow config, t' = s t / (1 + (s - 1) t); 1 for none.

    With use_dynamic_shifting it is not used: there mu decides, call by call. Errors: ConfigError if it is no number.
    """
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"shift must be a positive number, got {shift!r}")
    return float(shift)


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the fields that it leaves out, as the diffusers class that wrote it would fill them in."""
    filled = {"num_train_timesteps": 1000, **config}
    defaults = CLASS_DEFAULTS.get(str(config.get("_class_name")))
    if defaults is None and not is_flow(config) and any(config.get(key) is not None for key in _VP_KEYS):
        defaults = DDPM_DEFAULTS
    return {**(defaults or {}), **filled}


def _check_flow(config: Mapping[str, Any]) -> None:
    shift_from_config(config)
    terminal = config.get("shift_terminal")
    if terminal and not (isinstance(terminal, float) and 0.0 < terminal < 1.0):
        raise ConfigError(f"shift_terminal must be a number between 0 and 1, got {terminal!r}")
    if config.get("time_shift_type", "exponential") not in ("exponential", "linear"):
        raise ConfigError(f"time_shift_type must be 'exponential' or 'linear', got {config['time_shift_type']!r}")
    if config.get("scale_factors"):
        raise ConfigError("scale_factors (growing resolutions) is not supported; scale_factors=None leaves it out")
    if config.get("invert_sigmas") and terminal:
        raise ConfigError("invert_sigmas=True with shift_terminal is not supported; shift_terminal=None leaves it out")


def _refuse_class(config: Mapping[str, Any]) -> None:
    name = _name(config)
    if name in REFUSED_CLASSES:  # a config in memory has no _class_name; most of these then have no known fields either
        raise ConfigError(f"{name} cannot be replaced: {REFUSED_CLASSES[name]}. Keep the scheduler that came with it")


def _name(config: Mapping[str, Any]) -> str:
    return str(config.get("_class_name", "this scheduler"))


# --- preconditioned (EDM-style) ---------------------------------------------------------------------------------------


def _preconditioned(config: Mapping[str, Any]) -> Parametrisation:
    """x0 = c_skip x + c_out F; with v_prediction c_out has the other sign, at sigma_data = 1 that is V."""
    kind, data = config.get("prediction_type") or "epsilon", _sigma_data(config)
    if kind == "v_prediction":
        return V if data == 1.0 else negated(edm(data))
    if kind == "epsilon":
        return edm(data)
    raise ConfigError(f"prediction_type {kind!r} is not supported for {_name(config)}; expected epsilon, v_prediction")


def _sigma_data(config: Mapping[str, Any]) -> float:
    return float(config.get("sigma_data") or 1.0)  # EulerDiscreteScheduler scales by sqrt(sigma^2 + 1)


def _sigma_range(config: Mapping[str, Any], total: int) -> tuple[float, float]:
    """sigma_min and sigma_max; where they are not given, those of the betas."""
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if low is None or high is None:
        schedule = _discrete_vp({**DDPM_DEFAULTS, **config}, total)
        trained = [math.exp(-float(level.lam)) for level in (schedule.cleanest, schedule.noisiest)]
        low, high = (trained[0] if low is None else low), (trained[1] if high is None else high)
    return low, high


# --- variance preserving ----------------------------------------------------------------------------------------------


def _discrete_vp(config: Mapping[str, Any], total: int) -> DiscreteVP:
    if all(config.get(key) is None for key in _VP_KEYS):
        fields = ", ".join(sorted(k for k in config if not k.startswith("_")))
        raise ConfigError(f"{_name(config)} describes no known noise schedule: expected beta_schedule (trained_betas), "
                          f"the shift of a flow, or a _class_name; got the fields {fields}")  # fmt: skip
    betas = _betas(config, total)
    zero_snr, scale = bool(config.get("rescale_betas_zero_snr")), config.get("snr_shift_scale")
    if scale in (None, 1, 1.0):
        return DiscreteVP.from_betas(betas, zero_terminal_snr=zero_snr)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.0 < scale < math.inf:
        raise ConfigError(f"snr_shift_scale must be a positive number, got {scale!r}")
    # CogVideoX (Yang et al. 2024, arXiv:2408.06072): alpha^2 / sigma^2 is divided by the scale, then rescaled to zero
    # terminal SNR; the betas of the divided levels lead to the same levels again.
    squares, product = [1.0], 1.0
    for beta in betas:
        product *= 1.0 - beta
        squares.append(product / (scale + (1.0 - scale) * product))
    divided = [1.0 - b / a for a, b in zip(squares, squares[1:], strict=False)]
    return DiscreteVP.from_betas(divided, zero_terminal_snr=zero_snr)


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
        name = config["beta_schedule"]
        if name not in NAMED:
            raise ConfigError(f"beta_schedule {name!r} is not supported; expected one of {', '.join(NAMED)}")
        betas = NAMED[name](config["beta_start"], config["beta_end"], total)
    if not all(0.0 < beta < 1.0 for beta in betas):
        raise ConfigError(f"betas must lie between 0 and 1, got {min(betas)!r} to {max(betas)!r}")
    return betas
