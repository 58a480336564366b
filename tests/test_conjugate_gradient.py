"""conjugate_gradient against direct solves, and what it asks of torch."""

from collections import Counter

import pytest
import torch

from fewstep.benchmarks.counting import DispatchCounter
from fewstep.errors import ConfigError
from fewstep.inverse import conjugate_gradient as module
from fewstep.inverse.conjugate_gradient import conjugate_gradient


def systems(batch: int, n: int, condition: float = 30.0, seed: int = 0, dtype=torch.float64):
    """M [batch, n, n] symmetric positive definite with log-uniform eigenvalues, b [batch, n], and A."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(batch, n, n, generator=generator, dtype=torch.float64))
    eigenvalues = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)
    M = (Q * eigenvalues) @ Q.mT
    b = torch.randn(batch, n, generator=generator, dtype=torch.float64).to(dtype)
    return M, b, lambda p: torch.einsum("bij,bj->bi", M.to(p.dtype), p)


def error(x, M, b):
    expected = torch.linalg.solve(M, b.double().unsqueeze(-1)).squeeze(-1)
    return ((x - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("n", [1, 2, 6, 10])
def test_exact_in_n_iterations(n):
    M, b, A = systems(3, n)
    result = conjugate_gradient(A, b, iterations=n)
    assert result.x.dtype == torch.float64
    assert error(result.x, M, b) < 1e-10


def test_start():
    M, b, A = systems(3, 8)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert error(conjugate_gradient(A, b, x=x, iterations=8).x, M, b) < 1e-10
    solution = torch.linalg.solve(M, b.unsqueeze(-1)).squeeze(-1)
    result = conjugate_gradient(A, b, x=solution, iterations=3, tolerance=1e-10)
    assert torch.equal(result.x, solution)
    assert result.converged.all()


def test_result_before_the_end():
    _, b, A = systems(2, 8)
    result = conjugate_gradient(A, b, iterations=3, tolerance=1e-6)
    torch.testing.assert_close(result.residual, (b - A(result.x)).square().sum(1), rtol=1e-12, atol=0)
    assert result.residual.shape == (2,)
    assert not result.converged.any()
    assert torch.equal(conjugate_gradient(A, b, iterations=0).x, torch.zeros_like(b))


def test_converged_images_are_frozen():
    M, b, A = systems(2, 12)
    M[0] = torch.eye(12) * 3.0  # solved by one iteration
    seen = [conjugate_gradient(A, b, iterations=k, tolerance=1e-6) for k in range(1, 13)]
    assert all(torch.equal(later.x[0], seen[0].x[0]) for later in seen)
    assert [r.converged.tolist() for r in (seen[0], seen[-1])] == [[True, False], [True, True]]
    assert not torch.equal(seen[1].x[1], seen[0].x[1])


def test_a_frozen_image_reads_nothing():
    _, b, A = systems(2, 6)
    b[0] = 0.0

    def nan_for_the_first(p):
        y = A(p)
        y[0] = float("nan")
        return y

    result = conjugate_gradient(nan_for_the_first, b, iterations=6)
    expected = conjugate_gradient(A, b, iterations=6)
    assert torch.equal(result.x, expected.x)
    assert torch.equal(result.x[0], torch.zeros(6).double())
    assert result.converged[0]


def test_nan_stays_in_its_image():
    _, b, A = systems(3, 6)
    expected = conjugate_gradient(A, b, iterations=6).x
    b[1, 2] = float("nan")
    x = conjugate_gradient(A, b, iterations=6).x
    assert torch.equal(x[[0, 2]], expected[[0, 2]])


def test_batch_is_singles():
    M, b, _ = systems(4, 9)
    together = conjugate_gradient(lambda p: torch.einsum("bij,bj->bi", M, p), b, iterations=5).x
    for k in range(4):
        alone = conjugate_gradient(lambda p, k=k: p @ M[k], b[k : k + 1], iterations=5).x
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-12, atol=1e-12)


def test_ill_conditioned():
    M, b, A = systems(2, 40, condition=1e6)
    result = conjugate_gradient(A, b, iterations=400, tolerance=1e-10)
    assert result.converged.all()
    residual = ((b - A(result.x)).norm(dim=1) / b.norm(dim=1)).max().item()
    assert residual < 1e-9  # the true residual; the recurrence's is below 1e-10
    assert error(result.x, M, b) < 1e6 * residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_state(dtype):
    M, b, A = systems(2, 10, dtype=dtype)
    result = conjugate_gradient(A, b, iterations=40)
    assert result.x.dtype == torch.float32
    assert result.x.isfinite().all()  # far beyond convergence, with a tolerance that is never met
    assert error(result.x, M, b) < 1e-5


def test_a_direction_that_is_not_positive_is_not_taken():
    b = torch.ones(2, 3, dtype=torch.float64)
    result = conjugate_gradient(lambda p: -p, b, iterations=4)
    assert torch.equal(result.x, torch.zeros_like(b))
    assert not result.converged.any()


def test_images_of_any_shape():
    b = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conjugate_gradient(lambda p: 4 * p, b, iterations=2).x, b / 4)


def test_gradient():
    """d sum(x) / db = A^-1 1."""
    M, b, A = systems(2, 5)
    b.requires_grad_()
    conjugate_gradient(A, b, iterations=5).x.sum().backward()
    expected = torch.linalg.solve(M, torch.ones(2, 5, 1, dtype=torch.float64)).squeeze(-1)
    torch.testing.assert_close(b.grad, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("start", [False, True])
def test_calls(monkeypatch, start):
    calls = Counter()

    def counted(name, function):
        def wrapper(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(module, "gram", counted("gram", module.gram))
    monkeypatch.setattr(module.ops, "combine", counted("combine", module.ops.combine))
    _, b, A = systems(2, 200)
    with DispatchCounter(latent=b.numel()) as counter:
        conjugate_gradient(counted("A", A), b, x=b if start else None, iterations=7)
    assert counter.counts.host_reads == 0
    assert calls == {"gram": 2 * 7 + 1 + start, "combine": 2 * 7 + start, "A": 7 + start}


def test_refusals():
    b = torch.zeros(1, 3)
    for changes, message in [
        ({"x": torch.zeros(1, 4)}, "the shape of b"),
        ({"iterations": -1}, "whole number"),
        ({"iterations": 2.0}, "whole number"),
        ({"tolerance": -1.0}, "finite"),
        ({"tolerance": float("nan")}, "finite"),
    ]:
        with pytest.raises(ConfigError, match=message):
            conjugate_gradient(lambda p: p, b, **({"iterations": 1} | changes))
