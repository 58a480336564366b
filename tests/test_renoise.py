"""renoise: alpha x0 + sigma noise."""

import pytest
import torch

from fewstep.benchmarks.counting import DispatchCounter
from fewstep.errors import ConfigError
from fewstep.samplers import Level, LinearVP, renoise

NAN = float("nan")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values(dtype):
    level = LinearVP().level(0.4)
    x0, noise = torch.randn(2, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x = renoise(x0, noise, level)
    assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        x.double(), level.alpha * x0.double() + level.sigma * noise.double(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("per_image", [False, True])
def test_the_ends_read_one_of_them(per_image):
    def number(c: float) -> float | torch.Tensor:
        return torch.full((2,), c) if per_image else c

    x = torch.randn(2, 8)
    assert torch.equal(renoise(x, torch.full_like(x, NAN), Level(0.0, number(1.0), number(0.0))), x)
    assert torch.equal(renoise(torch.full_like(x, NAN), x, Level(1.0, number(0.0), number(1.0))), x)


def test_a_level_per_image_or_a_learned_one():
    x0, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    alpha, sigma = torch.tensor([1.0, 0.8, 0.0]), torch.tensor([0.0, 0.6, 1.0])
    x = renoise(x0, noise, Level(0.0, alpha, sigma))
    for b in range(3):
        level = Level(0.0, float(alpha[b]), float(sigma[b]))
        torch.testing.assert_close(x[b : b + 1], renoise(x0[b : b + 1], noise[b : b + 1], level))
    learned = torch.tensor(0.8, requires_grad=True)
    renoise(x0, noise, Level(0.0, learned, 0.6)).sum().backward()
    torch.testing.assert_close(learned.grad, x0.sum().float())


def test_two_passes_at_most():
    x = torch.randn(1, 4, 16, 16)
    with DispatchCounter(latent=x.numel()) as counter:
        renoise(x, x, Level(0.5, 0.8, 0.6))
    assert counter.counts.latent <= 2  # a scaled copy and a scaled addition, or one launch
    assert counter.counts.host_reads == 0


def test_shapes_must_agree():
    with pytest.raises(ConfigError, match="noise of the image's shape"):
        renoise(torch.zeros(1, 3), torch.zeros(2, 3), Level(0.5, 0.8, 0.6))
