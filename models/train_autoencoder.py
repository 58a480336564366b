"""Train the autoencoder of ``tiny-sd`` on rendered scenes.

    python -m fewstep.models.train_autoencoder --minutes 25 --out runs/autoencoder [--resume] [--device auto]

Writes ``checkpoint.pt`` (to resume), ``log.jsonl``, and at the end ``vae/`` in diffusers format, float32.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .scenes import render, sample_scene
from .tiny_sd import LATENT_CHANNELS, build_autoencoder
from .training import (
    Averaged,
    Budget,
    Log,
    learning_rate,
    load_checkpoint,
    pick_device,
    save_checkpoint,
    set_learning_rate,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

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


def loss_of(vae: AutoencoderKL, x: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, float]]:
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
def reconstruct(vae: AutoencoderKL, pictures: Tensor, device: torch.device) -> np.ndarray:
    """Decode the encoder's means: (N, 3, 64, 64) uint8 -> (N, 64, 64, 3) uint8."""
    parts = []
    for chunk in pictures.split(50):
        out = vae.decode(vae.encode(to_network(chunk, device)).latent_dist.mode()).sample
        parts.append(((out + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(parts).numpy()


def acceptance(vae: AutoencoderKL, device: torch.device, count: int, seed: int = 1) -> float:
    """Part of reconstructed scenes, held-out combinations included, that the judge accepts with all attributes."""
    from .judge import judge

    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, "any") for _ in range(count)]
    pictures = torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2)
    images = reconstruct(vae, pictures, device)
    captions = [s.full_caption() for s in scenes]
    return float(np.mean([judge(i, c).accepted for i, c in zip(images, captions, strict=True)]))


@torch.no_grad()
def finish(vae: AutoencoderKL, pool: Tensor, device: torch.device, out: Path) -> float:
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


def train(minutes: float, out: Path, device: torch.device, resume: bool, batch: int, peak: float) -> None:
    """Train until the budget is used up; see the module's text."""
    torch.manual_seed(0)
    vae = build_autoencoder().to(device)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=1e-4)
    average, step, used = Averaged(vae, 0.998), 0, 0.0
    if resume:
        saved = load_checkpoint(out / "checkpoint.pt", device)
        vae.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average.values, step, used = saved["average"], saved["step"], saved["used"]
    pool, log = scene_pool(20_000, seed=step), Log(out, fresh=not resume)
    log.write(
        event="start",
        module="fewstep.models.train_autoencoder",
        latent_channels=LATENT_CHANNELS,
        batch=batch,
        minutes=minutes,
        step=step,
    )
    judged, budget = build_autoencoder().to(device).eval(), Budget(minutes, used)
    last = time.monotonic()
    while budget.progress < 1:
        set_learning_rate(optimiser, learning_rate(peak, step, budget.progress))
        x = to_network(pool[torch.randint(len(pool), (batch,))], device)
        loss, parts = loss_of(vae, x, KL_WEIGHT * min(1.0, 3 * budget.progress))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update(vae, step)
        step += 1
        if step % 100 == 0:
            log.write(step=step, minutes=budget.used / 60, ms=10 * (time.monotonic() - last), **parts)
            last = time.monotonic()
        if step % 500 == 0:
            accepted = acceptance(average.copy_to(judged), device, 100)
            log.write(step=step, accepted=accepted)
            state = {"model": vae.state_dict(), "optimiser": optimiser.state_dict(), "average": average.values}
            save_checkpoint(out / "checkpoint.pt", **state, step=step, used=budget.used)
            last = time.monotonic()
    average.copy_to(judged)
    scale = finish(judged, pool, device, out)
    log.write(event="end", step=step, scaling_factor=scale, accepted=acceptance(judged, device, 1000))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="time budget (default: 25)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and the finished vae/")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--batch", type=int, default=16, help="scenes a step (default: 16)")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="peak learning rate (default: 0.0015)")
    args = parser.parse_args()
    train(args.minutes, args.out, pick_device(args.device), args.resume, args.batch, args.peak)


if __name__ == "__main__":
    main()
