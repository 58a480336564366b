"""A tiny DDPMPipeline with random weights: pixels (B, 3, 8, 8), a fresh one of equal weights at every call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

TINY: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def tiny_pixels() -> DDPMPipeline:
    state = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        pipe = DDPMPipeline(UNet2DModel(**TINY), DDPMScheduler())
    finally:
        torch.set_rng_state(state)
    pipe.set_progress_bar_config(disable=True)
    return pipe
