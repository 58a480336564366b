"""The operations without a GPU: who runs them, and how torch's library sees them."""

import importlib.util
import math

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError, MissingDependencyError
from fewstep.kernels import choice, library, ops

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)

# ---------------------------------------------------------------- FEWSTEP_KERNELS


@pytest.fixture
def requested(monkeypatch):
    """Sets FEWSTEP_KERNELS as a fresh process would see it."""

    def request(value=None, interpret="0", triton=True, new=True):
        monkeypatch.delenv(choice.VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(choice.VARIABLE, value)
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        spec = importlib.util.find_spec("torch") if triton else None
        monkeypatch.setattr(choice, "find_spec", lambda name: spec)
        monkeypatch.setattr(choice, "_supported", lambda device: True)
        monkeypatch.setattr(choice, "_new_enough", lambda: new)
        choice.requested.cache_clear()
        choice._decide.cache_clear()

    yield request
    monkeypatch.undo()
    choice.requested.cache_clear()
    choice._decide.cache_clear()


def test_auto_is_triton_on_cuda_and_torch_elsewhere(requested):
    for value in (None, "auto"):
        requested(value)
        assert choice.use_triton(CUDA) and not choice.use_triton(CPU) and not choice.use_triton(torch.device("mps"))
        requested(value, triton=False)
        assert not choice.use_triton(CUDA)
        requested(value, new=False)  # torch 2.6 and 2.7 bring a Triton that cannot compile the kernels
        assert not choice.use_triton(CUDA)
        requested(value, interpret="1")
        assert not choice.use_triton(CPU)


def test_torch_is_never_triton(requested):
    requested("torch")
    assert not choice.use_triton(CUDA)


def test_triton_is_triton_or_an_error(requested):
    requested("triton")
    assert choice.use_triton(CUDA)
    with pytest.raises(IncompatibleError, match="the tensors are on 'cpu'"):
        ops.combine(((1.0,),), (torch.ones(1, 2),))
    requested("triton", interpret="1")
    assert choice.use_triton(CPU)
    with pytest.raises(IncompatibleError, match="'mps'"):
        choice.use_triton(torch.device("mps"))
    for what in ({"triton": False}, {"new": False}):
        requested("triton", **what)
        with pytest.raises(MissingDependencyError, match="pip install"):
            choice.use_triton(CUDA)


def test_other_words_are_refused(requested):
    requested("Triton")
    with pytest.raises(ConfigError, match="must be one of auto, torch, triton, got 'Triton'"):
        choice.use_triton(CPU)


# ---------------------------------------------------------------- combine


def test_the_feed_is_the_new_x_cast_and_repeated():
    x, u = torch.randn(2, 3, 4), torch.randn(2, 3, 4).half()
    C = ((0.5, 2.0), (1.0, -1.0))
    x_next, other, fed = ops.combine(C, (x, u), None, ops.Feed(0, torch.float16, 3))
    assert torch.equal(x_next, ops.combine(C, (x, u))[0]) and torch.equal(other, ops.combine(C, (x, u))[1])
    assert torch.equal(fed, torch.cat([x_next] * 3).half())
    x_next, _, fed = ops.combine(C, (x, u), None, ops.Feed(0, torch.float32, 2))
    assert x_next.data_ptr() != fed.data_ptr() and torch.equal(fed, torch.cat([x_next] * 2))


def test_what_does_not_fit_is_refused():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="1 output dtypes for 2 lines"):
        ops.combine(((1.0,), (2.0,)), (x,), (torch.float32,))
    for feed in (ops.Feed(2, torch.float32), ops.Feed(-1, torch.float32), ops.Feed(0, torch.float32, 0)):
        with pytest.raises(ValueError, match="does not fit 2 lines"):
            ops.combine(((1.0,), (2.0,)), (x,), None, feed)


def registers(n=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, dtype=dtype, generator=generator, requires_grad=True) for _ in range(n)]


LINES, DTYPES, COPIES = [1, 0, 1], [torch.float64] * 3, [2, 1, 1]


def test_gradients_of_the_operation_equal_those_through_plain_torch():
    """The operation's own formula, the transposed matrix, against autograd through the reference; twice."""
    C, r = ((1.5, -0.5, 0.0), (0.0, 2.0, 0.3)), registers()
    flat = [c for line in C for c in line]
    torch.manual_seed(0)
    cotangents = [torch.randn(4, 5, dtype=torch.float64), *(torch.randn(2, 5, dtype=torch.float64) for _ in range(2))]
    ours = torch.ops.fewstep.combine(flat, r, LINES, DTYPES, COPIES)
    plain = library._run(C, r, LINES, DTYPES, COPIES)
    for a, b in zip(torch.autograd.grad(ours, r, cotangents), torch.autograd.grad(plain, r, cotangents), strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-14)
    each = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    ours = torch.ops.fewstep.combine_each(each, r, LINES, DTYPES, COPIES)
    plain = library._run(each, r, LINES, DTYPES, COPIES)
    found, expected = (torch.autograd.grad(y, (each, *r), cotangents, create_graph=True) for y in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    again = [torch.autograd.grad(sum(g.square().sum() for g in y), (each, *r)) for y in (found, expected)]
    for a, b in zip(*again, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_gradients_stop_at_registers_that_are_not_read():
    x, nan = registers(1)[0], torch.full((2, 5), math.nan, dtype=torch.float64, requires_grad=True)
    each = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    for run in (lambda: torch.ops.fewstep.combine_each(each, [x, nan], [0, 1], [torch.float64] * 2, [1, 1]),
                lambda: ops.combine(each, (x, nan))):  # fmt: skip
        grads = torch.autograd.grad(sum(y.sum() for y in run()), (each, x, nan))
        assert all(g.isfinite().all() for g in grads)
        assert grads[2].abs().max() == 0.0 and grads[0][..., 1].abs().max() == 0.0


def test_a_zero_in_a_column_that_is_read_has_its_gradient():
    """Else a learned matrix could never leave the zeros that it starts from."""
    each = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    r = registers(2)
    (grad,) = torch.autograd.grad(ops.combine(each, r)[0].sum(), each)
    assert torch.allclose(grad[0, 0], torch.stack([t.sum() for t in r]))


def test_torch_compile_sees_one_opaque_operation():
    C = [1.5, -0.5, 2.0]

    def update(x, u, c):
        return torch.ops.fewstep.combine(C, [x, u, c], [0, 0], [torch.float32, torch.float16], [1, 2])

    inputs = [t.detach().float() for t in registers()]
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*inputs), update(*inputs), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
