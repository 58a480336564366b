"""Train the autoencoder of ``tiny-sd`` on rendered scenes.

    python -m fewstep.models.train_autoencoder --minutes 25 --out runs/autoencoder [--resume] [--device auto]

Writes ``checkpoint.safetensors`` (to resume), ``log.jsonl``, and at the end ``vae/`` in diffusers format, float32.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .checkpoint import load_checkpoint, save_checkpoint
from .scenes import render, sample_scene
from .tiny_sd import LATENT_CHANNELS, build_autoencoder
from .training import (
    Averaged,
    Budget,
    Log,
    learning_rate,
    pick_device,
    set_learning_rate,
)

KL_WEIGHT = 3e-4
"""Weight of the mean Kullback-Leibler divergence per latent number, reached at a third of the budget."""


def scene_pool(count: int, seed: int) -> Tensor:
    """``count`` rendered training scenes, (count, 3, 64, 64) uint8."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([render(sample_scene(rng, "train")) for _ in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def to_network(pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 pixels -> float32 in [-1, 1]."""
    return pictures.to(device).float() / 127.5 - 1


def loss_of(vae: Any, x: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, float]]:
    """L1 + MSE, four-fold near objects, + KL. Returns the loss and its parts as numbers.

    The flat background is most of a picture and is learnt at once; without the weight it would hide the shapes.
    """
    with torch.autocast(x.device.type, torch.bfloat16):
        moments = vae.quant_conv(vae.encoder(x))
    mean, logvar = moments.float().chunk(2, dim=1)
    logvar = logvar.clamp(-12, 4)
    z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    with torch.autocast(x.device.type, torch.bfloat16):
        out = vae.decoder(vae.post_quant_conv(z))
    difference = out.float() - x
    object_ = (x - x[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1
    weight = 1 + 3 * F.max_pool2d(object_.float(), 5, 1, 2)
    weight = weight / weight.mean()
    l1, mse = (difference.abs() * weight).mean(), (difference.square() * weight).mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = l1 + mse + kl_weight * kl
    plain = difference.detach().square().mean().item()
    return loss, {"loss": loss.item(), "psnr": float(10 * np.log10(4 / plain)), "kl": kl.item()}


@torch.no_grad()
def reconstruct(vae: Any, pictures: Tensor, device: torch.device) -> np.ndarray:
    """Decode the encoder's means: (N, 3, 64, 64) uint8 -> (N, 64, 64, 3) uint8."""
    parts = []
    for chunk in pictures.split(50):
        out = vae.decode(vae.encode(to_network(chunk, device)).latent_dist.mode()).sample
        parts.append(((out + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(parts).numpy()


def acceptance(vae: Any, device: torch.device, count: int, seed: int = 1) -> float:
    """Part of reconstructed scenes, held-out combinations included, that the judge accepts with all attributes."""
    from .judge import judge

    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, "any") for _ in range(count)]
    pictures = torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2)
    images = reconstruct(vae, pictures, device)
    captions = [s.full_caption() for s in scenes]
    return float(np.mean([judge(i, c).accepted for i, c in zip(images, captions, strict=True)]))


@torch.no_grad()
def finish(vae: Any, pool: Tensor, device: torch.device, out: Path) -> float:
    """Centre each latent channel, measure the latents' scale, write ``vae/``; returns the scaling factor.

    The means move into the biases of the two 1x1 convolutions around the latent, so no picture changes. Channels keep
    their relative scale: the decoder is about equally sensitive to an error of the same size in each of them.
    """
    latents = torch.cat([vae.encode(to_network(c, device)).latent_dist.mode() for c in pool[:2000].split(100)])
    mean = latents.mean((0, 2, 3))
    vae.quant_conv.bias[:LATENT_CHANNELS] -= mean
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    scale = float(1 / (latents - mean.view(1, -1, 1, 1)).std())
    vae.register_to_config(scaling_factor=scale)
    vae.save_pretrained(out / "vae", safe_serialization=True)
    return scale


class Trainer:
    """Network, optimiser, averages and counters of one run; everything that a checkpoint holds."""

    def __init__(self, out: Path, device: torch.device, peak: float) -> None:
        torch.manual_seed(0)
        self.vae: Any = build_autoencoder()
        self.vae.to(device)
        self.averaged: Any = build_autoencoder()
        self.averaged.to(device).eval()
        self.path, self.device, self.peak = out / "checkpoint.safetensors", device, peak
        self.optimiser = torch.optim.AdamW(self.vae.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=1e-4)
        self.average, self.step, self.used = Averaged(self.vae, 0.998), 0, 0.0

    def resume(self) -> None:
        """Continue from ``checkpoint.safetensors``."""
        saved = load_checkpoint(self.path, self.device)
        self.vae.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.average.values, self.step, self.used = saved["average"], saved["step"], saved["used"]

    def save(self, used: float) -> None:
        """Write ``checkpoint.safetensors``."""
        state = {"model": self.vae.state_dict(), "optimiser": self.optimiser.state_dict()}
        save_checkpoint(self.path, **state, average=self.average.values, step=self.step, used=used)

    def update(self, pictures: Tensor, progress: float) -> dict[str, float]:
        """One optimiser step on (B, 3, 64, 64) uint8 pictures."""
        set_learning_rate(self.optimiser, learning_rate(self.peak, self.step, progress))
        loss, parts = loss_of(self.vae, to_network(pictures, self.device), KL_WEIGHT * min(1.0, 3 * progress))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimiser.step()
        self.average.update(self.vae, self.step)
        self.step += 1
        return parts

    def acceptance(self, count: int) -> float:
        """What the judge says of the averaged weights."""
        return acceptance(self.average.copy_to(self.averaged), self.device, count)


def train(args: argparse.Namespace) -> None:
    """Train until the budget is used up; see the module's text."""
    trainer = Trainer(args.out, pick_device(args.device), args.peak)
    if args.resume:
        trainer.resume()
    budget, log = Budget(args.minutes, trainer.used), Log(args.out, fresh=not args.resume)
    options = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
    log.write(event="start", module="fewstep.models.train_autoencoder", **options, step=trainer.step)
    torch.manual_seed(1 + trainer.step)  # a resumed run must not see the same noise again
    pool, last = scene_pool(args.scenes, seed=trainer.step), time.monotonic()
    while budget.progress < 1:
        parts = trainer.update(pool[torch.randint(len(pool), (args.batch,))], budget.progress)
        if trainer.step % 100 == 0:
            ms, last = 10 * (time.monotonic() - last), time.monotonic()
            log.write(step=trainer.step, minutes=budget.used / 60, ms=ms, **parts)
        if trainer.step % 500 == 0:
            trainer.save(budget.used)
            log.write(step=trainer.step, accepted=trainer.acceptance(100))
            last = time.monotonic()
    trainer.save(budget.used)
    accepted = trainer.acceptance(1000)
    scale = finish(trainer.averaged, pool, trainer.device, args.out)
    log.write(event="end", step=trainer.step, scaling_factor=scale, accepted=accepted)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="time budget (default: 25)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and the finished vae/")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--scenes", type=int, default=20_000, help="training scenes (default: 20000)")
    parser.add_argument("--batch", type=int, default=16, help="scenes a step (default: 16)")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="peak learning rate (default: 0.0015)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
