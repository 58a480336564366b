"""Counter-based noise: published words, the fit of its polynomials, its distribution, and what it may depend on."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch._subclasses import FakeTensorMode

from fewstep.errors import ConfigError
from fewstep.kernels import reference_philox as spec
from fewstep.kernels.ops_philox import philox_normal
from fewstep.samplers import DiscreteVP, NoiseTape

CPU = torch.device("cpu")
PER_RADIUS = 3e-7  # the bound of reference_philox's docstring


def draw(seeds, tick=0, shape=(64,), dtype=torch.float32):
    return philox_normal(seeds, tick, shape, device=CPU, dtype=dtype)


# ---------------------------------------------------------------- words

KNOWN = [  # Random123's kat_vectors for philox4x32 10: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexes(line):
    return tuple(int(word, 16) for word in line.split())


def philox_in_integers(counter, key):
    """Section 3.3 of the paper, in Python's integers."""
    L0, R0, L1, R1 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * L0, 0xCD9E8D57 * L1
        L0, R0 = (high >> 32) ^ R0 ^ k0, high % 2**32
        L1, R1 = (low >> 32) ^ R1 ^ k1, low % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return L0, R0, L1, R1


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_published_vectors(counter, key, words):
    assert philox_in_integers(hexes(counter), hexes(key)) == hexes(words)
    tensors = spec.philox_4x32(tuple(torch.tensor([c]) for c in hexes(counter)), hexes(key))
    assert tuple(int(word) for word in tensors) == hexes(words)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**40 + 17, 2**63 - 1])
def test_words_are_the_ciphers(seed):
    for tick in (0, 7, 2**32 - 1):
        words = spec.philox_words(seed, tick, 5)
        expected = [philox_in_integers((j, 0, tick, 0), (seed % 2**32, seed >> 32)) for j in range(5)]
        assert words.tolist() == [list(line) for line in expected]


def test_elements_are_the_lanes_in_order_in_every_chunk(monkeypatch):
    monkeypatch.setattr(spec, "_CHUNK", 64)
    seeds, n = (3, 2**50), 4 * 200 + 3
    noise = draw(seeds, 9, (n,))
    for seed, image in zip(seeds, noise, strict=True):
        words = spec.philox_words(seed, 9, 201)
        a, b = spec.box_muller(words[:, 0], words[:, 1]), spec.box_muller(words[:, 2], words[:, 3])
        assert torch.equal(image, torch.stack((*a, *b), dim=1).flatten()[:n])


# ---------------------------------------------------------------- arithmetic


def fit(function, low, high, degree, weight):
    """Coefficients of the polynomial that least squares fits to `function` at 512 Chebyshev points, in float64."""
    points = low + (high - low) * (np.polynomial.chebyshev.chebpts1(512) + 1) / 2
    series = Chebyshev.fit(points, function(points), degree, domain=[low, high], w=weight(points))
    return series.convert(kind=Polynomial).coef


def test_polynomials_are_these_fits():
    # ln(1 + f) = f - f^2/2 + f^3 P(f);  sin x = x + x^3 P(x^2);  cos x = 1 - x^2/2 + x^4 P(x^2)
    low, high, quarter = 0.5**0.5 - 1, 2**0.5 - 1, (math.pi / 4) ** 2
    log = fit(lambda f: (np.log1p(f) - f + f * f / 2) / f**3, low, high, 7, lambda f: f**3 / np.log1p(f))
    sin = fit(lambda z: (np.sin(np.sqrt(z)) / np.sqrt(z) - 1) / z, 0, quarter, 2, lambda z: z)
    cos = fit(lambda z: (np.cos(np.sqrt(z)) - 1 + z / 2) / z**2, 0, quarter, 2, lambda z: z**2)
    for ours, fitted in ((spec.LOG, log), (spec.SIN, sin), (spec.COS, cos)):
        assert np.abs(np.float32(fitted) / np.float32(ours) - 1).max() < 2.0**-22  # another libm may round otherwise
    assert (np.float32(math.log(2)), np.float32(math.pi / 2**31)) == (np.float32(spec.LN2), np.float32(spec.RADIANS))

    f, z = np.linspace(low, high, 100_002), np.linspace(1e-9, quarter, 100_001)
    x = np.sqrt(z)
    errors = (
        (f - f * f / 2 + f**3 * Polynomial(spec.LOG)(f)) / np.log1p(f) - 1,
        (x + x**3 * Polynomial(spec.SIN)(z)) / np.sin(x) - 1,
        (1 - z / 2 + z**2 * Polynomial(spec.COS)(z)) / np.cos(x) - 1,
    )
    assert max(np.abs(error).max() for error in errors) < 2.0**-26


def exact(radius_words, angle_words):
    """Box and Muller in float64 for the same words and float32 u: (radius, cosine lane, sine lane)."""
    u = (radius_words.float() * 2.0**-32 + 2.0**-33).double()
    radius, angle = torch.sqrt(-2 * torch.log(u)), angle_words.double() * (math.pi / 2**31)
    return radius, radius * torch.cos(angle), radius * torch.sin(angle)


def test_normals_are_box_mullers():
    words = spec.philox_words(11, 0, 1 << 18)
    for pair in (words[:, :2], words[:, 2:]):
        radius, *lanes = exact(*pair.T)
        for z, e in zip(spec.box_muller(*pair.T.contiguous()), lanes, strict=True):
            assert bool(((z - e).abs() <= PER_RADIUS * radius).all())
            assert float((z - e).abs().max()) < 1e-6


def test_words_at_the_edges():
    """The ends of the words' range, of the quadrants and of the intervals of ln's argument, with their neighbours."""
    powers = (
        [2**k for k in range(33)] + [3 * 2**k for k in range(31)] + [math.isqrt(2 ** (2 * k + 1)) for k in range(32)]
    )
    edges = torch.tensor(
        sorted({(p + d) % 2**32 for p in powers for d in (-1, 0, 1)} | {5 << 29, 7 << 29, 2**32 - 129})
    )
    first, second = (w.flatten() for w in torch.meshgrid(edges, edges, indexing="ij"))
    radius, *lanes = exact(first, second)
    for z, e in zip(spec.box_muller(first, second), lanes, strict=True):
        assert bool(torch.isfinite(z).all()) and float(z.abs().max()) < 6.77
        assert bool(((z - e).abs() <= PER_RADIUS * radius).all())


# ---------------------------------------------------------------- distribution


def test_distribution_is_standard_normal():
    """Four standard deviations for each moment; Kolmogorov and Smirnov: P(D sqrt(n) > 2.5) < 2 exp(-12.5) = 7.5e-6."""
    z = draw(tuple(range(8)), 5, (1 << 17,)).double()
    n = z.numel()
    moments = [(z**k).mean().item() for k in (1, 2, 3, 4)]
    variances = (1, 2, 15, 96)  # of x, x^2, x^3, x^4
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), variances, strict=True):
        assert abs(moment - expected) < 4 * (variance / n) ** 0.5
    ordered, _ = z.flatten().sort()
    distance = (torch.special.ndtr(ordered) - (torch.arange(n) + 0.5) / n).abs().max().item() + 0.5 / n
    assert distance * n**0.5 < 2.5


def test_lanes_images_and_ticks_are_uncorrelated():
    """Correlations of n pairs have the standard deviation 1 / sqrt(n); 992 of them stay below 5 of it (P = 6e-4)."""
    noise = torch.stack([draw((0, 1, 2**32, 2**62), tick, (1 << 14,)) for tick in range(2)]).double()
    lines = noise.unflatten(-1, (-1, 4)).movedim(-1, 0).flatten(0, 2)  # lane, tick, image
    assert len({tuple(line[:4].tolist()) for line in lines}) == 32
    for values in (lines, lines**2):
        rest = torch.corrcoef(values) - torch.eye(32)
        assert rest.abs().max().item() < 5 / lines.shape[1] ** 0.5


# ---------------------------------------------------------------- what the noise depends on


def test_noise_is_a_function_of_seed_tick_and_element():
    batch = draw((5, 2**40 + 6, 7), 3, (4, 8, 8))
    for k, seed in enumerate((5, 2**40 + 6, 7)):
        assert torch.equal(batch[k : k + 1], draw((seed,), 3, (4, 8, 8)))
    for n in (0, 1, 2, 3, 4, 5, 255):
        assert torch.equal(draw((7,), 3, (n,)), batch[2:].flatten(1)[:, :n])
    assert torch.equal(draw(torch.tensor([5]), torch.tensor([3], dtype=torch.int32), (256,)), batch[:1].flatten(1))
    assert torch.equal(draw(torch.tensor([7, 0, 5])[::2], torch.tensor(3), (4, 8, 8)), batch[[2, 0]])
    assert draw((), 0, (4,)).shape == (0, 4)


def test_every_bit_of_the_seed_and_the_tick_counts():
    draws = [draw((1 << bit,), 0, (4,)) for bit in range(63)] + [draw((0,), 1 << bit, (4,)) for bit in range(32)]
    draws.append(draw((0,), 0, (4,)))
    assert len({tuple(z.flatten().tolist()) for z in draws}) == 96


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_rounded_from_float32(dtype):
    assert torch.equal(draw((1, 2), 3, (3, 5), dtype), draw((1, 2), 3, (3, 5)).to(dtype))


def test_refusals():
    for seeds in ((-1,), (2**63,), torch.tensor([1.0]), torch.tensor([[1]])):
        with pytest.raises(ConfigError, match="seed"):
            draw(seeds)
    for tick in (-1, 2**32, torch.tensor([1, 2]), torch.tensor([1.0])):
        with pytest.raises(ConfigError, match="tick"):
            draw((1,), tick)


# ---------------------------------------------------------------- as an operation and as a tape


def test_operation():
    seeds, tick, op = torch.tensor([1, 2]), torch.tensor([3]), torch.ops.fewstep.philox_normal.default
    for shape, dtype in (((4, 3), torch.float32), ((5,), torch.bfloat16)):
        torch.library.opcheck(op, (seeds, tick, shape, dtype))
        assert torch.equal(op(seeds, tick, shape, dtype), draw((1, 2), 3, shape, dtype))
    with FakeTensorMode() as mode:
        fake = philox_normal(mode.from_tensor(seeds), mode.from_tensor(tick), (4, 3), device=CPU, dtype=torch.float16)
    assert (fake.shape, fake.dtype, fake.device) == ((2, 4, 3), torch.float16, CPU)


def test_compiled():
    def noisy(x, tick):
        return x + philox_normal((1, 2), tick, x.shape[1:], device=x.device)

    x = torch.ones(2, 4, 4)
    compiled = torch.compile(noisy, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, torch.tensor([3])), noisy(x, 3))


def test_tape_draws_it():
    x = torch.zeros(2, 4, 8, 8)
    tape = NoiseTape([7, 2**32 + 7])
    schedule = DiscreteVP.scaled_linear()
    noise = tape.normal(2, schedule.level(500), schedule.level(400), x)
    assert torch.equal(noise, draw((7, 2**32 + 7), 2, (4, 8, 8)))
    assert torch.equal(noise, tape.draw(torch.tensor([2]), x))
    assert not torch.equal(noise[0], noise[1])
    with pytest.raises(ConfigError, match="whole number"):
        NoiseTape((1, 2**63))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(4, 64, 64), (3, 5, 7), (1021,)])
def test_gpu_draws_the_same_and_replays(shape):
    seeds, tick = (5, 2**40 + 6), torch.tensor([3], device="cuda")
    x = torch.empty(2, *shape, device="cuda")
    tape = NoiseTape(seeds)
    assert torch.allclose(tape.draw(3, x).cpu(), draw(seeds, 3, shape), rtol=0, atol=1e-6)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tape.draw(tick, x)
    for value in (4, 9):
        tick.fill_(value)
        graph.replay()
        assert torch.equal(captured, tape.draw(value, x))
