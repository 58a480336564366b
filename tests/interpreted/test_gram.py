"""gram's kernel in Triton's interpreter: values, and everything that makes the result the same everywhere."""

import inspect

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import interpreter_builder

from fewstep.kernels import triton_counters, triton_gram
from fewstep.kernels.ops_gram import gram

PAIR = ((1.0, 0.0), (0.0, 1.0), (-1.0, 1.0))
MIXED = ((1.0, 0.0), (0.3, -7.5), (0.0, 1.0))
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def exact(registers, basis, ones) -> np.ndarray:
    R = np.stack([r.double().numpy().reshape(r.shape[0], -1) for r in registers], 1)
    V = np.einsum("kn,bni->bki", np.array(basis, dtype=np.float64), R)
    V = np.concatenate([V, np.ones_like(V[:, :1])], 1) if ones else V
    return np.einsum("bki,bmi->bkm", V, V)


def check(registers, basis, ones) -> torch.Tensor:
    """v in float32 is off by 2^-24 or so per element; products and sums are float64."""
    G = gram(registers, basis, ones)
    expected = exact(registers, basis, ones)
    size = np.sqrt(np.einsum("bkk->bk", exact([r.abs() for r in registers], np.abs(basis), ones)))
    epsilon = 1e-14 if any(r.dtype == F64 for r in registers) else 2e-7
    assert torch.equal(G, G.mT)
    assert np.all(np.abs(G.numpy() - expected) <= epsilon * size[:, :, None] * size[:, None, :])
    return G


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fresh buffers hold NaN, so what a kernel does not write shows; afterwards all counters are zero again."""
    empty = torch.empty

    def nan(*args, **kwargs):
        x = empty(*args, **kwargs)
        return x.fill_(float("nan")) if x.dtype.is_floating_point else x

    monkeypatch.setattr(torch, "empty", nan)
    yield
    assert all(not buffer.any() for buffer in triton_counters._by_stream.values())


def shrink(monkeypatch, splits: int, tiles: int, lanes: int = 8, width: int = 2) -> None:
    """Small tiles, so that loops over tiles and over partial sums turn more than once."""
    options = triton_gram.LaunchOptions(splits, tiles, lanes, width, num_warps=1)
    monkeypatch.setattr(triton_gram, "launch_options", lambda n, itemsize: options)


@pytest.mark.parametrize("shape", [(2, 4, 9, 11), (1, 2048), (3, 1)])
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (F16, BF16), (BF16, F32), (F64, F16)])
def test_against_float64(shape, dtypes):
    registers = [normal(*shape, seed=k, dtype=dtype) for k, dtype in enumerate(dtypes)]
    check(registers, MIXED if shape[0] == 2 else PAIR, ones=shape[0] != 1)


def test_limits():
    registers = [normal(2, 70, seed=k, dtype=(BF16, F32)[k % 2]) for k in range(6)]
    check(registers, np.eye(6).tolist(), True)


@pytest.mark.parametrize("ones", (False, True))
def test_more_than_one_launch(ones):
    registers = [normal(2, 70, seed=k, dtype=(BF16, F32, F16)[k % 3]) for k in range(10)]
    check(registers, np.eye(10).tolist(), ones)
    mixed = np.eye(10) - np.eye(10, k=1)
    check(registers, mixed[:7].tolist(), ones)
    check(registers, [[1.0] * 10, [0.5] * 10], ones)


def test_nan_stays_in_its_rows_where_launches_are_split():
    registers = [normal(2, 70, seed=k) for k in range(8)]
    registers[7][1] = float("nan")
    G = gram(registers, np.eye(8).tolist(), True)
    assert G[0].isfinite().all()
    assert G[1, 7].isnan().all() and G[1, :7, :7].isfinite().all() and G[1, 8, :7].isfinite().all()


@pytest.mark.parametrize("n", [1, 256, 601])
def test_loops(monkeypatch, n):
    shrink(monkeypatch, splits=-(-n // 48), tiles=3)
    check([normal(2, n, seed=k) for k in range(2)], PAIR, True)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_small_difference(dtype):
    c = normal(1, 1000, dtype=F64)
    u, c = c.to(dtype), (c + 1e-3 * normal(1, 1000, seed=1, dtype=F64)).to(dtype)
    expected = exact((u, c), ((-1, 1),), False)[0, 0, 0]
    assert abs(gram((u, c), PAIR)[0, 2, 2].item() - expected) < 1e-5 * expected


def test_float64_coefficients_are_exact():
    x = torch.ones(1, 4, dtype=F64)
    third = 1.0 / 3.0
    assert gram((x,), ((third,),), True)[0, 0, 1].item() == 4 * third


def test_nan_stays_where_it_is():
    a, b = normal(2, 50), normal(2, 50, seed=1)
    clean = gram((a, b), ones=True)
    unread = torch.full_like(a, float("nan"))
    assert torch.equal(gram((a, unread, b), ((1, 0, 0), (0, 0, 1)), True), clean)
    b[1, 3] = float("nan")
    G = gram((a, b), ones=True)
    assert torch.equal(G[0], clean[0])
    assert torch.equal(G[1].isnan(), torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]).bool())


def test_inputs_that_are_not_contiguous():
    check((normal(2, 3, 5, 4).transpose(1, 3), normal(2, 4, 5, 3, seed=1)), PAIR, False)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_to_add(shape):
    assert torch.equal(gram((torch.zeros(shape),), ones=True), torch.zeros(shape[0], 2, 2).double())


# --- the same everywhere --------------------------------------------------------------------------------------------


def test_an_image_does_not_depend_on_its_batch_or_the_run():
    registers = [normal(3, 1500, seed=k) for k in range(2)]
    G = gram(registers, PAIR, True)
    assert torch.equal(gram(registers, PAIR, True), G)
    assert torch.equal(torch.cat([gram([r[b : b + 1] for r in registers], PAIR, True) for b in range(3)]), G)


def test_any_order_of_programs(monkeypatch):
    shrink(monkeypatch, splits=7, tiles=2)
    registers = [normal(2, 215, seed=k) for k in range(2)]
    G = gram(registers, PAIR, True)
    place, order = interpreter_builder.set_grid_idx, []
    for factor in (6, 3):  # 0 and then backwards, and shuffled

        def elsewhere(x, y, z, factor=factor):
            order.append((1 - x, y * factor % 7))
            place(*order[-1], z)

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", elsewhere)
        assert torch.equal(gram(registers, PAIR, True), G)
    assert len(set(order)) == 14
    assert len(order) == 28


def test_one_program_of_an_image_finishes_it(monkeypatch):
    shrink(monkeypatch, splits=4, tiles=2)
    store, calls = triton_gram._store_matrix, []

    def counted(*args):
        calls.append(args)
        return store(*args)

    monkeypatch.setattr(triton_gram, "_store_matrix", counted)
    check([normal(3, 120)], ((1,),), False)
    assert len(calls) == 3


def test_geometry_knows_sizes_only(monkeypatch):
    def refuse(*args):
        raise AssertionError("the geometry asked for the device")

    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    assert list(inspect.signature(triton_gram.launch_options).parameters) == ["n", "itemsize"]
    for n in (1, 127, 4 * 64 * 64, 10**6 + 1, 3 * 81 * 480 * 832, 2**33):
        for itemsize in (2, 4, 8):
            splits, tiles, lanes, width, num_warps = triton_gram.launch_options(n, itemsize)
            assert lanes == 32 * num_warps
            assert width * itemsize == 16
            assert 1 <= splits <= triton_gram.MAX_SPLITS
            assert (splits - 1) * tiles * lanes * width < n <= splits * tiles * lanes * width  # nobody is idle
    check([normal(1, 600)], ((1,),), False)


# --- calls ----------------------------------------------------------------------------------------------------------


class Launches:
    """Stands in for the kernel and counts."""

    def __init__(self, kernel):
        self.kernel, self.count = kernel, 0

    def __getitem__(self, grid):
        self.count += 1
        return self.kernel[grid]


def test_one_launch_per_call(monkeypatch):
    launches = Launches(triton_gram.gram_kernel)
    monkeypatch.setattr(triton_gram, "gram_kernel", launches)
    gram([normal(4, 700, seed=k) for k in range(2)], PAIR, True)
    assert launches.count == 1
    gram([normal(4, 7, seed=k).requires_grad_() for k in range(2)], PAIR, True)
    assert launches.count == 2


def test_a_dispatch_mode_sees_one_operation():
    names = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    x = normal(2, 30)
    expected = gram((x, x), PAIR)
    with Names():
        G = gram((x, x), PAIR)
    assert names == ["fewstep::gram"]
    assert torch.equal(G, expected)


def test_gradients_through_the_kernels():
    registers = [normal(2, 3, 2, seed=k, dtype=F64).requires_grad_() for k in range(2)]
    weights = normal(2, 4, 4, seed=9, dtype=F64)
    (gram(registers, PAIR, True) * weights).sum().backward()
    again = [r.detach().clone().requires_grad_() for r in registers]
    vectors = [*again, again[1] - again[0], torch.ones_like(again[0])]
    V = torch.stack([v.flatten(1) for v in vectors], 1)
    ((V @ V.mT) * weights).sum().backward()
    for ours, expected in zip(registers, again, strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_counters(monkeypatch):
    monkeypatch.setattr(triton_counters, "_by_stream", {})
    monkeypatch.setattr(triton_counters, "_reserves", {})
    cpu = torch.device("cpu")
    small = triton_counters.counters(3, cpu)
    assert triton_counters.counters(5, cpu) is small
    large = triton_counters.counters(small.shape[0] + 1, cpu)
    assert large.shape[0] > small.shape[0]
    assert triton_counters.counters(3, cpu) is large
    # what captured launches get: fresh zeros without a reserve, else places that nobody gets twice
    assert triton_counters._taken(4, cpu).shape == (4,)
    reserve = torch.zeros(10, dtype=torch.int32)
    triton_counters._reserves[cpu] = [reserve]
    taken = [triton_counters._taken(4, cpu) for _ in range(3)]
    for k, buffer in enumerate(taken):
        buffer.fill_(k + 1)
    assert reserve.tolist() == [1] * 4 + [2] * 4 + [0] * 2
