"""The Triton kernel of philox_normal in the interpreter: the words bit for bit, the normals up to rounding."""

import pytest
import torch
import triton
import triton.language as tl

from fewstep.kernels import reference_philox as spec
from fewstep.kernels import triton_philox
from fewstep.kernels.ops_philox import philox_normal
from fewstep.samplers import NoiseTape

SEEDS = torch.tensor([0, 123, 2**40 + 17, 2**63 - 1])
COUNTERS = triton_philox.launch_options(1)["BLOCK"] // 4

# The interpreter works like the reference, operation by operation and without fusing. Only the roots differ: numpy's is
# right to half a unit in the last place, that of torch's CPU to 0.54. So they are one unit apart, 2^-23 of R at most,
# and the rounding of the product can make that one unit more.
PER_RADIUS = 2 * 2.0**-23


@triton.jit
def store_words(seeds, tick, out, first_block, COUNTERS: tl.constexpr):
    block = tl.program_id(0)
    image = tl.program_id(1)
    words = triton_philox.philox_words(tl.load(seeds + image), tl.load(tick), first_block + block, COUNTERS)
    at = out + (image * tl.num_programs(0) + block) * COUNTERS * 4 + tl.arange(0, COUNTERS) * 4
    for lane in tl.static_range(4):
        tl.store(at + lane, words[lane].to(tl.int64))


@pytest.mark.parametrize("tick", [0, 9, 2**32 - 1])
def test_words_are_the_references(tick):
    words = torch.full((len(SEEDS), 3 * COUNTERS, 4), -1)
    store_words[(3, len(SEEDS))](SEEDS, torch.tensor([tick]), words, 0, COUNTERS=COUNTERS)
    for seed, image in zip(SEEDS.tolist(), words, strict=True):
        assert torch.equal(image, spec.philox_words(seed, tick, 3 * COUNTERS))


def test_counters_beyond_32_bits():
    block, seed = 2**32 // COUNTERS + 5, 2**40 + 17
    words = torch.full((COUNTERS, 4), -1)
    store_words[(1, 1)](torch.tensor([seed]), torch.tensor([3]), words, block, COUNTERS=COUNTERS)
    j = block * COUNTERS + torch.arange(COUNTERS)
    counter = (j & spec.MASK, j >> 32, torch.full_like(j, 3), torch.zeros_like(j))
    assert torch.equal(words, torch.stack(spec.philox_4x32(counter, (seed & spec.MASK, seed >> 32)), dim=1))


@pytest.mark.parametrize("n", [1, 3, 4, 511, 512, 513, 2045, 4 * 16 * 16, 16 * 1024])
@pytest.mark.parametrize("images", [1, 4])
def test_normals_are_the_references(n, images):
    seeds, tick = SEEDS[-images:], torch.tensor([5])
    room = torch.full((images * n + 64,), torch.nan)  # nothing may be left out, and nothing written behind the end
    triton_philox.normal(seeds, tick, room[: images * n].view(images, n))
    assert bool(room[images * n :].isnan().all())
    noise, pairs = room[: images * n].view(images, n), spec.normal(seeds, tick, n + n % 2).unflatten(1, (-1, 2))
    expected, radius = pairs.flatten(1)[:, :n], pairs.norm(dim=2).repeat_interleave(2, dim=1)[:, :n]
    assert bool(((noise - expected).abs() <= PER_RADIUS * radius).all())
    assert float((noise - expected).abs().max()) < 1e-6


def test_more_images_than_one_grid_takes(monkeypatch):
    monkeypatch.setattr(triton_philox, "_MAX_IMAGES", 3)
    seeds, tick = torch.arange(7), torch.tensor([1])
    noise = torch.full((7, 10), torch.nan)
    triton_philox.normal(seeds, tick, noise)
    assert torch.allclose(noise, spec.normal(seeds, tick, 10), rtol=0, atol=1e-6)


def test_public_function_and_tape_use_the_kernel(monkeypatch):
    calls = []
    launch = triton_philox.normal
    monkeypatch.setattr(triton_philox, "normal", lambda *arguments: (calls.append(1), launch(*arguments)))
    seeds = SEEDS.tolist()
    noise = philox_normal(seeds, 2, (4, 5, 5), device="cpu", dtype=torch.float16)
    assert (noise.shape, noise.dtype) == ((4, 4, 5, 5), torch.float16)
    x = torch.zeros(4, 4, 5, 5)
    tape = NoiseTape(tuple(seeds))
    ticks = [2, torch.tensor([2]), torch.tensor([2], dtype=torch.int32)]
    first, *others = [tape.draw(tick, x) for tick in ticks]
    assert all(torch.equal(first, other) for other in others)
    assert torch.equal(first.half(), noise)
    strided = torch.stack((SEEDS, SEEDS), dim=1)[:, 0]
    assert torch.equal(philox_normal(strided, 2, (4, 5, 5), device="cpu"), first)
    assert philox_normal(seeds, 2, (0,), device="cpu").shape == (4, 0)
    assert len(calls) == 6
