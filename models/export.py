"""Put networks together as a StableDiffusionPipeline and write its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .tiny_sd import build_scheduler, build_tokenizer, vocabulary_and_merges

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def assemble(vae: Any, text_encoder: Any, unet: Any) -> StableDiffusionPipeline:
    """A pipeline of these networks with tiny-sd's tokenizer and noise levels, without progress bars."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=build_tokenizer(),
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_pipeline(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Write the folder in float16 safetensors; the pipeline keeps its own dtype.

    The tokenizer is written both as ``tokenizer.json`` and as ``vocab.json`` and ``merges.txt``, which every version
    of transformers reads.
    """
    dtype = pipe.unet.dtype
    pipe.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    pipe.to(dtype)
    vocabulary, merges = vocabulary_and_merges()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n", "utf-8")
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
