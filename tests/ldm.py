"""A diffusers pipeline as one file in the layout of the original Stable Diffusion checkpoints."""

from __future__ import annotations

import re

from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file_state(pipe) -> dict[str, Tensor]:
    """Every weight of a Stable Diffusion 1.x pipeline under its original name."""
    unet, vae, text = pipe.unet, pipe.vae, pipe.text_encoder
    out = {f"model.diffusion_model.{_unet(k, unet.config)}": v for k, v in unet.state_dict().items()}
    out |= {f"first_stage_model.{_vae(k, len(vae.config.block_out_channels))}": v for k, v in vae.state_dict().items()}
    prefix = "cond_stage_model.transformer."
    names = {k: k if k.startswith("text_model.") else f"text_model.{k}" for k in text.state_dict()}
    out |= {prefix + names[k]: v for k, v in text.state_dict().items()}
    return {k: v.clone().contiguous() for k, v in out.items()}


def _renamed(rest: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if rest.startswith(ours + "."):
            return theirs + rest[len(ours) :]
    return rest


def _unet(key: str, config) -> str:
    per_block = config.layers_per_block + 1
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
        side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        index = block * per_block + layer + (1 if side == "down" else 0)
        part = f"0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"1.{rest}"
        return f"{'input' if side == 'down' else 'output'}_blocks.{index}.{part}"
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", key):
        return f"input_blocks.{(int(match[1]) + 1) * per_block}.0.op.{match[2]}"
    if match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", key):
        block = int(match[1])
        place = 2 if "CrossAttn" in config.up_block_types[block] else 1
        return f"output_blocks.{block * per_block + per_block - 1}.{place}.conv.{match[2]}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        if match[1] == "attentions":
            return f"middle_block.1.{match[3]}"
        return f"middle_block.{2 * int(match[2])}.{_renamed(match[3], RESNET)}"
    return _renamed(key, UNET)


def _vae(key: str, blocks: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if match := re.match(r"encoder\.down_blocks\.(\d+)\.(.*)", key):
        rest = match[2].replace("resnets.", "block.").replace("downsamplers.0", "downsample")
        return f"encoder.down.{match[1]}.{rest}"
    if match := re.match(r"decoder\.up_blocks\.(\d+)\.(.*)", key):
        rest = match[2].replace("resnets.", "block.").replace("upsamplers.0", "upsample")
        return f"decoder.up.{blocks - 1 - int(match[1])}.{rest}"
    if match := re.match(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.*)", key):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
    if match := re.match(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.*)", key):
        return f"{match[1]}.mid.attn_1.{_renamed(match[2], VAE_ATTENTION)}"
    return key
