"""The launches that do not reach the goal, and what they reach with Triton 3.6 and 3.9, whichever takes more."""

from __future__ import annotations

from typing import NamedTuple


class Reached(NamedTuple):
    """Per thread: registers, bytes of stack, loads and stores of spilt registers."""

    registers: int
    stack: int = 0
    spills: int = 0


# Of (launch, precision, elements per image, architecture).
REACHED = {
    ("UniPC-3 that keeps edits, CFG", "fp32", 16385, 80): Reached(68),
    ("UniPC-3 that keeps edits, CFG", "fp32 + bf16", 16385, 80): Reached(72),
    ("UniPC-3 that keeps edits, CFG", "bf16", 262145, 80): Reached(70),
    ("UniPC-3 that keeps edits, CFG", "fp64", 262144, 80): Reached(76),
    ("UniPC-3 that keeps edits, CFG", "fp64", 262145, 80): Reached(94),
    ("UniPC-3 that keeps edits, CFG", "fp32 + bf16", 16385, 90): Reached(72),
    ("UniPC-3 that keeps edits, CFG", "fp32 + fp16", 262145, 90): Reached(71),
    ("UniPC-3 that keeps edits, CFG", "bf16", 262144, 90): Reached(72),
    ("UniPC-3 that keeps edits, CFG", "bf16", 262145, 90): Reached(66),
    ("UniPC-3 that keeps edits, CFG", "fp64", 262144, 90): Reached(126),
    ("UniPC-3 that keeps edits, CFG", "fp64", 262145, 90): Reached(128),
    ("UniPC-2, CFG", "fp64", 262145, 80): Reached(66),
    ("UniPC-2, CFG", "fp64", 262145, 90): Reached(66),
    ("UniPC-3 that keeps edits, CFG per image", "fp32 + bf16", 262145, 80): Reached(72),
    ("UniPC-3 that keeps edits, CFG per image", "fp32 + fp16", 262145, 80): Reached(72),
    ("UniPC-3 that keeps edits, CFG per image", "bf16", 262145, 80): Reached(120),
    ("UniPC-3 that keeps edits, CFG per image", "fp64", 262144, 80): Reached(70),
    ("UniPC-3 that keeps edits, CFG per image", "fp64", 262145, 80): Reached(128),
    ("UniPC-3 that keeps edits, CFG per image", "fp32 + bf16", 262144, 90): Reached(72),
    ("UniPC-3 that keeps edits, CFG per image", "fp32 + bf16", 262145, 90): Reached(72),
    ("UniPC-3 that keeps edits, CFG per image", "fp32 + fp16", 262144, 90): Reached(72),
    ("UniPC-3 that keeps edits, CFG per image", "fp32 + fp16", 262145, 90): Reached(72),
    ("UniPC-3 that keeps edits, CFG per image", "bf16", 262144, 90): Reached(72),
    ("UniPC-3 that keeps edits, CFG per image", "bf16", 262145, 90): Reached(72),
    ("UniPC-3 that keeps edits, CFG per image", "fp64", 262144, 90): Reached(128),
    ("UniPC-3 that keeps edits, CFG per image", "fp64", 262145, 90): Reached(126),
    ("graph tick of UniPC-3, CFG", "fp64", 262144, 80): Reached(82),
    ("graph tick of UniPC-3, CFG", "fp64", 262145, 80): Reached(86),
    ("graph tick of UniPC-3, CFG", "fp32 + bf16", 262145, 90): Reached(66),
    ("graph tick of UniPC-3, CFG", "fp64", 262144, 90): Reached(96),
    ("graph tick of UniPC-3, CFG", "fp64", 262145, 90): Reached(96),
    ("gram of 4 registers, 2 images", "fp32", 262144, 80): Reached(70),
    ("gram of 4 registers, 2 images", "fp32", 262145, 80): Reached(72),
    ("gram of 4 registers, 2 images", "fp32 + bf16", 262145, 80): Reached(72),
    ("gram of 4 registers, 2 images", "fp32", 262144, 90): Reached(72),
    ("gram of 4 registers, 2 images", "fp32 + bf16", 262144, 90): Reached(72),
    ("gram of 4 registers, 2 images", "fp32", 262145, 90): Reached(72),
    ("gram of 4 registers, 2 images", "fp32 + bf16", 262145, 90): Reached(72),
    ("gram of 6 registers, 2 images", "fp32 + bf16", 262144, 80): Reached(128),
    ("gram of 6 registers, 2 images", "fp32 + bf16", 262145, 80): Reached(128),
    ("gram of 6 registers, 2 images", "fp32 + bf16", 262144, 90): Reached(128),
    ("gram of 6 registers, 2 images", "fp32 + bf16", 262145, 90): Reached(128),
    ("gram of 4 registers, 1 image", "fp32", 262145, 80): Reached(70),
    ("gram of 4 registers, 1 image", "fp32", 262145, 90): Reached(72),
    ("gram of 4 registers, 1 image", "fp32 + bf16", 262145, 90): Reached(72),
    ("gram of 6 registers, 1 image", "fp32 + bf16", 262145, 80): Reached(128),
    ("gram of 6 registers, 1 image", "fp32 + bf16", 262145, 90): Reached(128),
    ("gram of u and c - u, 2 images", "fp32", 262145, 90): Reached(32, stack=8, spills=2),
}
