"""Standard normal noise that is a function of (seed, tick, element): see reference_philox for the function."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ConfigError
from . import library_philox
from .library import wants_dispatcher
from .upload import lasting, to_device


def philox_normal(
    seeds: Sequence[int] | Tensor,
    tick: int | Tensor,
    shape: Sequence[int],
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(B, *shape) standard normal noise on `device`; image k depends on seeds[k], tick and the element alone.

    seeds: B whole numbers 0..2^63 - 1, or an int64 tensor [B].       shape: of one image.       dtype: floating.
    tick: a whole number 0..2^32 - 1, or a tensor with one, int32 or int64 on `device`. The kernel reads it from
    there, so a captured CUDA graph draws other noise whenever the tensor holds another tick.
    Every device gives the same float32 numbers up to the last bits, 1e-6 or less. Other dtypes are rounded from them.
    Errors: ConfigError for a seed or tick out of range, or tensors of another dtype, shape or device.

    Numbers for `seeds` are copied to the device once; a captured graph needs that to have happened, or a tensor.
    """
    device, traced = torch.device(device), wants_dispatcher(())
    if isinstance(seeds, Tensor):
        _check(seeds, "seeds", (torch.int64,), device)
        if seeds.dim() != 1:
            raise ConfigError(f"seeds must have the shape [B], got {list(seeds.shape)}")
    else:
        seeds = _uploaded(tuple(seeds), device) if traced else lasting(_kept(tuple(seeds), device))
    if isinstance(tick, Tensor):
        _check(tick, "tick", (torch.int64, torch.int32), device)
        if tick.numel() != 1:
            raise ConfigError(f"tick must be one integer, got {tick.numel()}")
    elif isinstance(tick, int) and 0 <= tick < 1 << 32:
        tick = torch.full((1,), tick, dtype=torch.int64, device=device)  # a fill: no copy from the host
    else:
        raise ConfigError(f"tick must be a whole number from 0 to 2^32 - 1, got {tick!r}")
    if traced:
        return torch.ops.fewstep.philox_normal.default(seeds, tick, shape, dtype)
    return library_philox.philox_normal(seeds, tick, shape, dtype)


def _check(x: Tensor, name: str, dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    same = x.device == device or (device.index is None and x.device.type == device.type)
    if x.dtype not in dtypes or not same:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ConfigError(f"{name} must be {wanted} on {device}, got {x.dtype} on {x.device}")


def _uploaded(seeds: tuple[int, ...], device: torch.device) -> Tensor:
    for seed in seeds:
        if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise ConfigError(f"a seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    with torch.inference_mode(False):
        return to_device(seeds, device, torch.int64)


_kept = lru_cache(maxsize=256)(_uploaded)  # not while tracing: a fake tensor would stay in it
