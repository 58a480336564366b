"""Put trained networks together as a StableDiffusionPipeline folder, and add its licence and training record.

    python -m fewstep.models.export --autoencoder runs/autoencoder --network runs/tiny-sd --rows rows.json --out FOLDER

Takes ``pipeline/`` and the logs of the two training runs and the table of ``fewstep.models.evaluate --json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import DEFAULT_SCALE
from .tiny_sd import build_scheduler, build_tokenizer, vocabulary_and_merges

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

LICENCE = """\
The weights in this folder are part of fewstep and under the same licence, Apache-2.0.

They were trained from random numbers on pictures and captions drawn by fewstep's own program (models/scenes.py).
No picture, text or weight of anyone else was used.
"""


def assemble(vae: Any, text_encoder: Any, unet: Any) -> StableDiffusionPipeline:
    """A pipeline of these networks with tiny-sd's tokenizer and noise levels, without progress bars."""
    from diffusers import StableDiffusionPipeline

    parts: dict[str, Any] = {
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": build_tokenizer(),
        "unet": unet.eval(),
        "scheduler": build_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_pipeline(vae: Any, text_encoder: Any, unet: Any, folder: Path) -> None:
    """Write the pipeline's folder in float16 safetensors; the networks themselves stay as they are.

    The tokenizer is written both as ``tokenizer.json`` and as ``vocab.json`` and ``merges.txt``, which every version
    of transformers reads.
    """
    pipe = assemble(*(deepcopy(network).half() for network in (vae, text_encoder, unet)))
    pipe.save_pretrained(folder, safe_serialization=True)
    _tidy(folder)
    vocabulary, merges = vocabulary_and_merges()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    tokenizer = folder / "tokenizer"
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n", "utf-8")
    (tokenizer / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def _tidy(folder: Path) -> None:
    """Drop the folders that networks came from, and let transformers load the text encoder as float32.

    diffusers loads its float16 files as float32; transformers 5 takes the dtype of the configuration, and a pipeline
    loaded without ``torch_dtype`` would mix the two.
    """
    for name in ("vae", "text_encoder", "unet"):
        path = folder / name / "config.json"
        values = json.loads(path.read_text())
        values.pop("_name_or_path", None)
        if name == "text_encoder":
            values["dtype"] = "float32"
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def run_record(folder: Path) -> dict[str, Any]:
    """Command, options, curve and results of one training run, from its ``log.jsonl``."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line and "step" in line]
    every = max(1, len(losses) // 20)
    return {
        "starts": [line for line in lines if line.get("event") == "start"],
        "text_encoder": [line for line in lines if "text_step" in line][-1:],
        "losses": losses[every - 1 :: every],
        "accepted": [line for line in lines if "accepted" in line],
        "steps": losses[-1]["step"],
        "minutes": losses[-1]["minutes"],
    }


def record(autoencoder: Path, network: Path, rows: Path | None) -> dict[str, Any]:
    """The whole training record, without paths or names of machines."""
    import diffusers
    import torch
    import transformers

    versions = {m.__name__: m.__version__ for m in (torch, diffusers, transformers)}
    return {
        "default_guidance_scale": DEFAULT_SCALE,
        "versions": versions,
        "autoencoder": run_record(autoencoder),
        "network": run_record(network),
        "evaluation": json.loads(rows.read_text()) if rows else [],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of the autoencoder's training run")
    parser.add_argument("--network", type=Path, required=True, help="folder of the network's training run")
    parser.add_argument("--rows", type=Path, default=None, help="JSON table written by fewstep.models.evaluate")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    args = parser.parse_args()
    shutil.copytree(args.network / "pipeline", args.out, dirs_exist_ok=True)
    (args.out / "LICENSE").write_text(LICENCE)
    text = json.dumps(record(args.autoencoder, args.network, args.rows), indent=1)
    (args.out / "training.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
