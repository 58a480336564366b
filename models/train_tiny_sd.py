"""Train ``tiny-sd``: first its text encoder alone, then the noise predictor on the autoencoder's latents.

    python -m fewstep.models.train_tiny_sd --vae runs/autoencoder/vae --minutes 60 --out runs/tiny-sd [--resume]
        [--text-minutes 4] [--device auto]

Writes ``checkpoint.safetensors`` (to resume), ``log.jsonl``, and at every evaluation ``pipeline/``, a
StableDiffusionPipeline folder in float16 with the averaged weights.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from . import DEFAULT_SCALE
from .checkpoint import load_checkpoint, save_checkpoint
from .evaluate import KINDS, accuracy, sample
from .export import assemble, save_pipeline
from .scenes import captions_of, render, reserved, sample_scene
from .text_pretraining import pretrain, targets_of
from .tiny_sd import build_scheduler, build_text_encoder, build_tokenizer, build_unet
from .train_autoencoder import to_network
from .training import (
    Averaged,
    Budget,
    Log,
    learning_rate,
    pick_device,
    set_learning_rate,
)

CAPTIONS = 8
"""Captions kept for each scene: all true ones that are not reserved, repeated to this number."""


class Data:
    """Latents (N, 8, 8, 8) of training scenes, scaled to unit variance, with the tokens of their captions."""

    def __init__(self, count: int, vae: Any, device: torch.device, seed: int = 7) -> None:
        rng = np.random.default_rng(seed)
        scenes = [sample_scene(rng, "train") for _ in range(count)]
        with torch.no_grad():
            self.latents = torch.cat([_encode(vae, scenes[i : i + 100], device) for i in range(0, count, 100)])
        texts = [[c for c in captions_of(s) if not reserved(c)] for s in scenes]
        texts = [[t[i % len(t)] for i in range(CAPTIONS)] for t in texts]
        distinct = {"": 0} | {c: i + 1 for i, c in enumerate(sorted({c for t in texts for c in t}))}
        tokens = build_tokenizer()(list(distinct), padding="max_length", return_tensors="pt").input_ids
        self.tokens = tokens.to(device)
        self.targets = torch.tensor([targets_of(c) for c in distinct], device=device)
        self.captions = torch.tensor([[distinct[c] for c in t] for t in texts], device=device)

    def batch(self, size: int, dropout: float = 0.1) -> tuple[Tensor, Tensor]:
        """Random latents (size, 8, 8, 8) and tokens (size, 24); a tenth of the captions is empty."""
        rows = torch.randint(len(self.latents), (size,), device=self.latents.device)
        which = self.captions[rows, torch.randint(CAPTIONS, (size,), device=rows.device)]
        which = which * (torch.rand(size, device=rows.device) >= dropout)
        return self.latents[rows], self.tokens[which]


def _encode(vae: Any, scenes: list[Any], device: torch.device) -> Tensor:
    pictures = torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2)
    return vae.encode(to_network(pictures, device)).latent_dist.mode() * vae.config.scaling_factor


def pretrain_text(encoder: nn.Module, data: Data, minutes: float, log: Log) -> None:
    """Teach the text encoder what every training caption says; one caption in fifty is empty."""
    empty = len(data.tokens) // 50
    tokens = torch.cat([data.tokens, data.tokens[:1].expand(empty, -1)])
    targets = torch.cat([data.targets, data.targets[:1].expand(empty, -1)])
    pretrain(encoder, tokens, targets, minutes, log.write)


def loss_of(unet: nn.Module, encoder: nn.Module, data: Data, alphas: Tensor, batch: int) -> Tensor:
    """Mean squared error of the predicted noise, min-SNR weighted (Hang et al. 2023, gamma = 5)."""
    latents, tokens = data.batch(batch)
    times = torch.randint(len(alphas), (batch,), device=latents.device)
    noise, a = torch.randn_like(latents), alphas[times].view(-1, 1, 1, 1)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    with torch.autocast(latents.device.type, torch.bfloat16):
        with torch.no_grad():
            states = encoder(tokens).last_hidden_state
        out = unet(noisy, times, states, return_dict=False)[0]
    snr = (a / (1 - a)).flatten()
    error = (out.float() - noise).square().mean((1, 2, 3))
    return (error * snr.clamp(max=5.0) / snr).mean()


class Trainer:
    """Networks, optimiser, averages and counters of one run; everything that a checkpoint holds.

    The text encoder is frozen once pretrained: what it says about each place is already exact.
    """

    def __init__(self, vae: Any, out: Path, device: torch.device, peak: float) -> None:
        self.unet: Any = build_unet()
        self.encoder: Any = build_text_encoder()
        self.unet.to(device)
        self.encoder.to(device).eval()
        self.unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward is slow on CPUs at this width
        self.vae, self.out, self.device, self.peak = vae, out, device, peak
        self.step, self.used = 0, 0.0
        self.alphas = build_scheduler().alphas_cumprod.to(device)
        self.optimiser = torch.optim.AdamW(self.unet.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
        self.average = Averaged(self.unet)

    def resume(self) -> None:
        """Continue from ``checkpoint.safetensors``."""
        saved = load_checkpoint(self.out / "checkpoint.safetensors", self.device)
        self.unet.load_state_dict(saved["unet"])
        self.encoder.load_state_dict(saved["text_encoder"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.average.values, self.step, self.used = saved["average"], saved["step"], saved["used"]

    def save(self, used: float) -> None:
        """Write ``checkpoint.safetensors``."""
        save_checkpoint(
            self.out / "checkpoint.safetensors",
            unet=self.unet.state_dict(),
            text_encoder=self.encoder.state_dict(),
            optimiser=self.optimiser.state_dict(),
            average=self.average.values,
            step=self.step,
            used=used,
        )

    def update(self, data: Data, batch: int, progress: float) -> Tensor:
        """One optimiser step; returns the loss (a 0-d tensor)."""
        set_learning_rate(self.optimiser, learning_rate(self.peak, self.step, progress, warmup=200))
        loss = loss_of(self.unet, self.encoder, data, self.alphas, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        self.average.update(self.unet, self.step)
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, count: int) -> dict[str, float]:
        """Save the averaged pipeline and judge ``count`` pictures of each kind."""
        unet: Any = build_unet()
        self.average.copy_to(unet.to(self.device))
        save_pipeline(self.vae, self.encoder, unet, self.out / "pipeline")
        pipe = assemble(self.vae, self.encoder, unet)
        return {kind: accuracy(partial(sample, pipe), kind, count, DEFAULT_SCALE).accuracy for kind in KINDS}


def train(args: argparse.Namespace) -> None:
    """Train until the budget is used up; see the module's text."""
    from diffusers import AutoencoderKL

    device = pick_device(args.device)
    torch.manual_seed(args.seed)
    log = Log(args.out, fresh=not args.resume)
    options = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    log.write(event="start", module="fewstep.models.train_tiny_sd", **options)
    vae: Any = AutoencoderKL.from_pretrained(args.vae, use_safetensors=True, local_files_only=True)
    vae.to(device).eval()
    data = Data(args.scenes, vae, device)
    log.write(event="data", scenes=args.scenes, captions=len(data.tokens))
    trainer = Trainer(vae, args.out, device, args.peak)
    if args.resume:
        trainer.resume()
    else:
        pretrain_text(trainer.encoder, data, args.text_minutes, log)
    torch.manual_seed(args.seed + 1 + trainer.step)  # a resumed run must not see the same noise again
    budget, losses, last = Budget(args.minutes, trainer.used), [], time.monotonic()
    next_evaluation = budget.used + 60 * args.evaluate_every
    while budget.progress < 1:
        losses.append(trainer.update(data, args.batch, budget.progress))
        if trainer.step % 100 == 0:
            loss, ms = torch.stack(losses).mean().item(), 10 * (time.monotonic() - last)
            log.write(step=trainer.step, minutes=budget.used / 60, ms=ms, loss=loss)
            losses, last = [], time.monotonic()
        if budget.used >= next_evaluation or budget.progress >= 1:
            begun = time.monotonic()
            trainer.save(budget.used)
            log.write(step=trainer.step, minutes=budget.used / 60, accepted=trainer.evaluate(args.images))
            budget.exclude(time.monotonic() - begun)
            next_evaluation, last = budget.used + 60 * args.evaluate_every, time.monotonic()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained autoencoder")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and pipeline/")
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget of the network (default: 60)")
    parser.add_argument("--text-minutes", type=float, default=4.0, help="time budget of the text encoder (default: 4)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--scenes", type=int, default=60_000, help="training scenes (default: 60000)")
    parser.add_argument("--batch", type=int, default=64, help="latents a step (default: 64)")
    parser.add_argument("--peak", type=float, default=1e-3, help="peak learning rate (default: 0.001)")
    parser.add_argument("--evaluate-every", type=float, default=8.0, help="minutes between evaluations (default: 8)")
    parser.add_argument("--images", type=int, default=50, help="pictures of each kind an evaluation (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and noise (default: 0)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
