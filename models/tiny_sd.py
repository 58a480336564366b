"""The parts of ``tiny-sd``: builders of its networks, its tokenizer and its pipeline folder.

Geometry: 64x64 RGB pictures, 8x8x8 latents (8 times smaller, as in Stable Diffusion 1.x), 24 text tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .captions import WORDS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 8
LATENT_SIZE = 8
TEXT_LENGTH = 24
TEXT_WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"


def build_autoencoder(scaling_factor: float = 1.0) -> AutoencoderKL:
    """The autoencoder, random weights: (B, 3, 64, 64) in [-1, 1] <-> (B, 8, 8, 8)."""
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = {  # annotated as tuples of one in diffusers
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 96),
    }
    return AutoencoderKL(
        **blocks,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=scaling_factor,
    )


def build_text_encoder() -> CLIPTextModel:
    """The text encoder, random weights: token ids (B, 24) -> states (B, 24, 128)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary, _ = vocabulary_and_merges()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
            projection_dim=TEXT_WIDTH,
        )
    )


def build_unet(channels: tuple[int, int] = (80, 96)) -> UNet2DConditionModel:
    """The noise predictor, random weights: (B, 8, 8, 8), times, states (B, 24, 128) -> (B, 8, 8, 8).

    Both resolutions, 8x8 and 4x4, attend to the text.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise levels of Stable Diffusion 1.x: scaled linear, 1,000 steps, noise prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair vocabulary in which every word of the world is one token; other words fall apart into bytes.

    Merges of later words rank lower, so they cannot break a word that is already whole.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in sorted(WORDS, key=lambda w: (len(w), w)):
        parts = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    tokens = list(dict.fromkeys([*tokens, START, END]))
    return {token: i for i, token in enumerate(tokens)}, merges


def _merged(parts: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """``parts`` of one word after byte-pair merging, lowest rank first."""
    for left, right in merges:
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == (left, right):
                parts = [*parts[:i], left + right, *parts[i + 2 :]]
            i += 1
    return parts


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer: lower case, one token a word of the world, padded with the end token to 24."""
    from transformers import CLIPTokenizer

    vocabulary, merges = vocabulary_and_merges()
    words: dict[str, Any] = {"vocab": vocabulary, "merges": merges}
    return CLIPTokenizer(
        **words,
        model_max_length=TEXT_LENGTH,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
    )
