"""gram in plain torch against float64, and the operator that autograd and torch.compile see."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.errors import ConfigError
from fewstep.kernels import library_gram, ops_gram, reference_gram
from fewstep.kernels.ops_gram import gram

HALF_AND_FLOAT = (torch.bfloat16, torch.float16, torch.float32)
PAIR = ((1.0, 0.0), (0.0, 1.0), (-1.0, 1.0))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def exact(registers, basis, ones) -> np.ndarray:
    """The definition, in numpy and float64."""
    R = np.stack([r.double().numpy().reshape(r.shape[0], -1) for r in registers], 1)
    V = np.einsum("kn,bni->bki", np.array(basis, dtype=np.float64), R)
    if ones:
        V = np.concatenate([V, np.ones_like(V[:, :1])], 1)
    return np.einsum("bki,bmi->bkm", V, V)


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    """These are tests of the reference, whatever the machine has."""
    monkeypatch.setattr(ops_gram.choice, "use_triton", lambda where: False)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 4, 9, 11), (2, 70_001)])
@pytest.mark.parametrize("dtypes", [(d, d) for d in HALF_AND_FLOAT] + [(torch.float64, torch.bfloat16)])
def test_against_float64(shape, dtypes):
    registers = [normal(*shape, seed=k, dtype=dtype) for k, dtype in enumerate(dtypes)]
    G = gram(registers, PAIR, ones=True)
    expected = exact(registers, PAIR, True)
    assert G.dtype == torch.float64
    assert torch.equal(G, G.mT)
    # c - u rounds to float32 once per element; everything after that is float64
    size = np.sqrt(np.einsum("bkk->bk", expected))
    tolerance = 1e-13 if torch.float64 in dtypes else 1.2e-7
    assert np.all(np.abs(G.numpy() - expected) <= tolerance * size[:, :, None] * size[:, None, :])


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT)
def test_small_difference(dtype):
    c, u = close_pair(dtype)
    expected = exact((u, c), ((-1.0, 1.0),), False)[:, 0, 0]
    got = gram((u, c), PAIR)[:, 2, 2].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_small_difference_is_a_test():
    """Float32 inner products of c and u, combined afterwards, miss by far more than the bound above."""
    c, u = (r.flatten(1) for r in close_pair(torch.float32))
    naive = (c * c).sum(1) - 2 * (c * u).sum(1) + (u * u).sum(1)
    expected = torch.from_numpy(exact((u, c), ((-1.0, 1.0),), False)[:, 0, 0])
    assert ((naive - expected).abs() > 1e-3 * expected).all()


def close_pair(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """|c - u| about 1e-3 |c|; in half precision mostly by the elements where rounding makes them differ."""
    c = normal(2, 4, 32, 32)
    return c.to(dtype), (c + 1e-3 * normal(2, 4, 32, 32, seed=1)).to(dtype)


def test_ones_give_std():
    x = (normal(3, 4, 16, 16) + 50.0).float()  # a large mean: the sums must cancel exactly enough
    G = gram((x,), ones=True)
    squares, total, n = G[:, 0, 0], G[:, 0, 1], G[:, 1, 1]
    std = ((squares - total**2 / n) / (n - 1)).sqrt()
    torch.testing.assert_close(std, x.double().flatten(1).std(1), rtol=1e-11, atol=0)
    assert n.tolist() == [1024.0] * 3


def test_default_basis_and_inputs_that_are_not_contiguous():
    a, b = normal(2, 3, 5, 4), normal(2, 4, 5, 3, seed=1).transpose(1, 3)
    np.testing.assert_allclose(gram((a, b)).numpy(), exact((a, b), np.eye(2), False), rtol=1e-13)
    every_other = normal(2, 8, seed=2)[:, ::2]
    np.testing.assert_allclose(gram((every_other,)).numpy(), exact((every_other,), [[1]], False), rtol=1e-13)


@pytest.mark.parametrize("shape", [(4, 33, 65), (6,), (3, 17, 19), (4096,)])
def test_an_image_does_not_depend_on_its_batch(shape):
    registers = [normal(5, *shape, seed=k, dtype=torch.float32) for k in range(2)]
    alone = torch.cat([gram([r[b : b + 1] for r in registers], PAIR, True) for b in range(5)])
    assert torch.equal(gram(registers, PAIR, True), alone)


def test_nan_stays_where_it_is():
    a, b, c = (normal(2, 50, seed=k) for k in range(3))
    clean = gram((a, b), ones=True)
    c.fill_(float("nan"))
    assert torch.equal(gram((a, b, c), ((1, 0, 0), (0, 1, 0)), True), clean)  # nobody reads c
    b[1, 3] = float("nan")
    G = gram((a, b), ones=True)
    assert torch.equal(G[0], clean[0])
    assert torch.equal(G[1].isnan(), torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]).bool())


def test_autocast_changes_nothing():
    registers = [normal(2, 300, seed=k, dtype=torch.float32) for k in range(2)]
    expected = gram(registers, PAIR, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gram(registers, PAIR, True), expected)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_to_add(shape):
    assert torch.equal(gram((torch.zeros(shape),), ones=True), torch.zeros(shape[0], 2, 2).double())


def test_large_images_are_read_in_chunks():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            self.elements = self.elements if func.is_view else max(self.elements, result.numel())
            return result

    x = normal(2, 8 * reference_gram.CHUNK, dtype=torch.float16)
    with Largest() as largest:
        gram((x, x), PAIR)
    assert largest.elements == 3 * reference_gram.CHUNK


def test_refusals():
    x = torch.zeros(2, 3)
    for registers, basis, message in [
        ((), None, "a register and a row"),
        ((x, x[:1]), None, "one shape"),
        ((torch.tensor(1.0),), None, "one shape"),
        ((x.long(),), None, "floating"),
        ((x, x), ((1,),), "1 numbers for 2 registers"),
        ((x,), ((float("nan"),),), "finite"),
        ((x,), ((0,),), "zero"),
    ]:
        with pytest.raises(ConfigError, match=message):
            gram(registers, basis)


# --- gradients and the operator -------------------------------------------------------------------------------------


def through_operator(registers, basis, ones):
    return torch.ops.fewstep.gram(list(registers), [float(c) for row in basis for c in row], ones)


@pytest.mark.parametrize("call", [gram, through_operator])
@pytest.mark.parametrize("ones", [False, True])
def test_gradients(call, ones):
    registers = [normal(2, 3, 2, seed=k).requires_grad_() for k in range(3)]
    basis = ((1, 0, 0.5), (0, 1, 0), (-1, 1, 0))
    assert torch.autograd.gradcheck(lambda *r: call(r, basis, ones), registers)


def test_operator_gradient_is_the_reference_gradient():
    weights = normal(2, 4, 4, seed=9)
    gradients = []
    for call in (gram, through_operator):
        registers = [
            normal(2, 3, 8, seed=k).to(d).requires_grad_() for k, d in enumerate((torch.bfloat16, torch.float32))
        ]
        (call(registers, PAIR, True) * weights).sum().backward()
        gradients.append([r.grad for r in registers])
    for ours, expected in zip(*gradients, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected)


def test_a_register_that_nobody_reads_gets_no_gradient():
    a, b = normal(2, 3).requires_grad_(), normal(2, 3).requires_grad_()
    gram((a, b), ((1, 0),)).sum().backward()
    assert a.grad is not None
    assert b.grad is None


@pytest.mark.parametrize("ones", [False, True])
def test_opcheck(ones):
    registers = [normal(2, 3, 4, seed=k, dtype=torch.float32).requires_grad_() for k in range(2)]
    torch.library.opcheck(torch.ops.fewstep.gram.default, (registers, [1.0, 0.0, -1.0, 1.0], ones))
    torch.library.opcheck(torch.ops.fewstep.gram.default, ([r.detach() for r in registers], [1.0, 0.5], ones))


def test_rows_of_the_operator():
    assert library_gram.rows_of([1.0, 0.0, -1.0, 1.0], 2) == ((1.0, 0.0), (-1.0, 1.0))
