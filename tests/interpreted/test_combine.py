"""`combine` in Triton's interpreter against float64 from the same rounded inputs."""

import functools
import itertools
import math

import pytest
import torch

from fewstep.errors import IncompatibleError
from fewstep.kernels import library, ops, reference, triton_combine

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (1, 16, 255, 257, 1031)  # tiles hold 128 or 256 elements here
FP = torch.finfo


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel forgets to write is NaN."""
    empty = torch.empty

    def filled(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(math.nan) if out.is_floating_point() else out

    monkeypatch.setattr(triton_combine.torch, "empty", filled)


@pytest.fixture
def launches(monkeypatch):
    """How many kernels were started."""
    counted = []
    launch = triton_combine.launch
    monkeypatch.setattr(triton_combine, "launch", lambda *a: counted.append(a) or launch(*a))
    return counted


def registers_of(dtypes, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for dtype in dtypes]


def matrix(M, N, seed=1):
    C = torch.randn(M, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return tuple(tuple(line) for line in C.tolist())


def exact(C, registers):
    """Lines in float64; the coefficients rounded as the accumulation dtype rounds them."""
    acc = reference.accumulation_dtype(registers)
    return [sum(float(torch.tensor(c, dtype=acc)) * r.double() for c, r in zip(line, registers, strict=True) if c)
            for line in C]  # fmt: skip


def check(found, eager, wanted):
    """Error at most that of eager torch plus one unit in the last place of the output."""
    assert found.dtype == eager.dtype and not found.isnan().any()
    error, allowed = ((y.double() - wanted).abs().max() for y in (found, eager))
    assert error <= allowed + FP(found.dtype).eps * wanted.abs().max()


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, FLOATS)), ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_every_dtype_and_size(dtypes, n):
    state, net = dtypes
    registers = registers_of((state, net, net, state), (2, n))
    C = matrix(2, 4)
    out = (state, net)
    found, eager = (
        ops.combine(C, registers, out),
        reference.stored(reference.combine(C, registers), (0, 1), out, (1, 1)),
    )
    for y, e, wanted in zip(found, eager, exact(C, registers), strict=True):
        check(y, e, wanted)


@pytest.mark.parametrize(
    ("n", "shape"),
    [(n, shape) for n in (512, 1031) for shape in [(1, 1), (1, 8), (2, 5), (3, 6), (3, 7), (4, 8)]]
    + [(300, (5, 9)), (5, (9, 20))],
    ids=str,
)
def test_every_number_of_lines_and_registers(shape, n, launches):
    M, N = shape
    registers = registers_of([(torch.float32, torch.bfloat16)[k % 3 == 1] for k in range(N)], (3, n))
    C = matrix(M, N)
    found = ops.combine(C, registers)
    sizes = exact([[abs(c) for c in line] for line in C], [r.abs() for r in registers])
    for y, e, wanted, size in zip(found, reference.combine(C, registers), exact(C, registers), sizes, strict=True):
        if N <= 8:
            check(y, e, wanted)
        else:  # N roundings of partial sums, and of the terms where nothing fuses them
            assert ((y - wanted).abs() <= (N + 1) * 2.0**-24 * size).all()
    # Lines in groups of 4; every further launch of a group brings 8 - (lines of the group) more registers.
    assert len(launches) == {(5, 9): 2 + 2, (9, 20): 4 + 4 + 3}.get(shape, 1)


@pytest.mark.parametrize("n", (6, 256, 300))
@pytest.mark.parametrize("net", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("copies", (1, 2, 3))
def test_the_feed_is_written_by_the_same_launch(n, net, copies, launches):
    x, u, c, m = registers_of((torch.float32, net, net, torch.float32), (2, n))
    C = matrix(2, 4)
    x_next, x0, fed = ops.combine(C, (x, u, c, m), None, ops.Feed(0, net, copies))
    assert len(launches) == 1
    assert torch.equal(fed, torch.cat([x_next.to(net)] * copies))
    assert (fed.untyped_storage().data_ptr() == x_next.untyped_storage().data_ptr()) == (net == torch.float32)
    for y, e, wanted in zip((x_next, x0), reference.combine(C, (x, u, c, m)), exact(C, (x, u, c, m)), strict=True):
        check(y, e, wanted)


@pytest.mark.parametrize("n", (3, 256, 300))
@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float32, torch.float16, torch.float16)], ids=str)
def test_a_matrix_per_image_and_one_for_all(n, dtypes):
    registers = registers_of(dtypes, (3, n))
    C = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    C[1, :, 2] = 0.0
    registers[2][1] = math.nan  # image 1 does not read it
    for M in (C, C[0], C[:1]):
        if M is not C:
            registers[2][1] = 1.0
        found = ops.combine(M, registers)
        single = [
            ops.combine(M if M.shape[0] != 3 else M[k : k + 1], [r[k : k + 1] for r in registers]) for k in range(3)
        ]
        for m, (y, e) in enumerate(zip(found, reference.combine(M, registers), strict=True)):
            assert torch.equal(y, torch.cat([alone[m] for alone in single]))
            each = M.float().double().expand(3, -1, -1) if M.dim() == 3 else M.float().double().expand(3, 2, 3)
            wanted = sum(each[:, m, k, None] * r.double().nan_to_num() for k, r in enumerate(registers))
            check(y, e, wanted)


def test_an_image_reads_a_register_that_only_its_second_line_needs():
    x, p, r, Ap = registers_of((torch.float32,) * 4, (2, 300))
    C = torch.tensor([[[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, -0.5]], [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]])
    x_next, r_next = ops.combine(C, (x, p, r, Ap))
    assert torch.equal(x_next[1], x[1]) and torch.equal(r_next[1], r[1])
    assert torch.allclose(x_next[0], x[0] + 0.5 * p[0]) and torch.allclose(r_next[0], r[0] - 0.5 * Ap[0])


def test_forward_mode_is_refused_rather_than_dropped():
    from torch.autograd import forward_ad

    x, t = torch.randn(2, 3), torch.randn(2, 3)
    with forward_ad.dual_level(), pytest.raises(IncompatibleError, match="forward-mode"):
        ops.combine(((2.0,),), (forward_ad.make_dual(x, t),))


def test_zeros_are_not_read():
    x, nan = torch.randn(2, 300), torch.full((2, 300), math.nan)
    assert torch.equal(ops.combine(((2.0, 0.0),), (x, nan))[0], 2.0 * x)
    y, z = ops.combine(((2.0, 0.0), (1.0, 1.0)), (x, nan))  # of numbers every single zero counts
    assert torch.equal(y, 2.0 * x) and z.isnan().all()


def test_views_that_are_not_contiguous_or_not_aligned():
    storage = torch.randn(2 * 3 * 5 * 8 + 1)
    shifted = storage[1:].view(2, 3, 5, 8)
    last = shifted.to(memory_format=torch.channels_last)
    turned = shifted.transpose(2, 3).contiguous().transpose(2, 3)
    turned = turned + turned.flip(0)  # still not contiguous, other numbers
    last = last.square()
    expanded = torch.randn(1, 1, 5, 8).expand(2, 3, 5, 8)
    assert not any(r.is_contiguous() for r in (last, turned, expanded)) and shifted.data_ptr() % 16
    for registers in itertools.permutations((shifted, last, turned, expanded), 3):
        C = matrix(2, 3)
        for y, e, wanted in zip(
            ops.combine(C, registers), reference.combine(C, registers), exact(C, registers), strict=True
        ):
            check(y, e, wanted)


def test_halves_of_a_batched_output_are_read_in_place(launches):
    out = torch.randn(4, 3, 8).bfloat16()
    u, c = out.chunk(2)
    copies = []
    original = torch.Tensor.contiguous
    torch.Tensor.contiguous = lambda t, *a, **k: copies.append(t) or original(t, *a, **k)
    try:
        ops.combine(((1.0, -6.5, 7.5),), (torch.randn(2, 3, 8), u, c))
    finally:
        torch.Tensor.contiguous = original
    assert not copies and len(launches) == 1


def test_empty_batches_and_numbers():
    assert ops.combine(((1.0, 2.0),), (torch.ones(0, 4), torch.ones(0, 4)))[0].shape == (0, 4)
    assert ops.combine(((1.0, 2.0),), (torch.ones(()), torch.ones(())))[0].item() == 3.0


def test_gradients_are_combines_with_the_transposed_matrix(launches):
    registers = [r.requires_grad_() for r in registers_of((torch.float64,) * 3, (1, 2))]
    C = ((1.5, -0.5, 0.0), (0.0, 2.0, 0.0))
    gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=True)
    assert gradcheck(lambda *r: ops.combine(C, r, None, ops.Feed(0, torch.float64, 2)), registers)
    each = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda c, *r: ops.combine(c, r), (each, *registers))
    assert torch.autograd.gradgradcheck(lambda c, *r: ops.combine(c, r), (each, *registers), fast_mode=True)
    launches.clear()
    outputs = ops.combine(C, registers)
    assert len(launches) == 1
    torch.autograd.grad(sum(y.sum() for y in outputs), registers[:2])
    assert len(launches) == 2  # all gradients in one


def test_registers_that_differ_are_refused():
    for wrong in (torch.ones(2, 5), torch.ones(1, 4), torch.ones(2, 4, device="meta")):
        with pytest.raises(ValueError, match="must be alike"):
            ops.combine(((1.0, 1.0),), (torch.ones(2, 4), wrong))
    with pytest.raises(ValueError, match="3 images, the registers have 2"):
        ops.combine(torch.ones(3, 1, 1), (torch.ones(2, 4),))


def test_the_operation_as_torchs_library_sees_it():
    registers = [r.requires_grad_() for r in registers_of((torch.float32, torch.float64), (2, 40))]
    lines, dtypes, copies = [1, 0], [torch.float64, torch.float32], [2, 1]
    checks = (
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_dynamic",
    )  # not test_schema: it cannot
    opcheck = functools.partial(torch.library.opcheck, test_utils=checks)  # take a list of dtypes
    opcheck(torch.ops.fewstep.combine, ([1.0, 2.0, 0.5, 0.0], registers, lines, dtypes, copies))
    each = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    opcheck(torch.ops.fewstep.combine_each, (each, registers, lines, dtypes, copies))
    assert library.wants_dispatcher(registers) and not library.wants_dispatcher([r.detach() for r in registers])
