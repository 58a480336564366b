"""LDPS, PSLD and P2L against plain loops written from their formulas, with autograd through everything at once."""

import math

import pytest
import torch

from fewstep.errors import ConfigError, IncompatibleError
from fewstep.inverse.ldps import LDPS
from fewstep.inverse.measurement import Measurement
from fewstep.inverse.operators import Downsample, GaussianBlur, InpaintBox, KernelBlur
from fewstep.inverse.p2l import P2L
from fewstep.inverse.psld import PSLD, _Measured
from fewstep.inverse.restore import restore
from fewstep.samplers import initial_noise
from fewstep.samplers.grids import GRIDS

from .posterior_runs import CLOSE, Duck, Squared, counted, far, measured, pictures, tiny

STEPS = 3
BLUR = torch.tensor([[0.0, 1.0, 2.0], [1.0, 4.0, 1.0], [0.0, 2.0, 0.0]])


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def levels(backbone, steps: int = STEPS) -> list[tuple[float, float, float]]:
    """(alpha, sigma, time) of the run."""
    grid = GRIDS["time"](backbone.schedule, steps)
    return [(float(level.alpha), float(level.sigma), float(level.time)) for level in grid]


def eps_of(backbone, z, time, text):
    return backbone.pipe.unet(z, torch.tensor(time, dtype=torch.float32), encoder_hidden_states=text)[0]


def decoded(backbone, z0):
    """Pixels in [-1, 1], as the model has them."""
    vae = backbone.pipe.vae
    return vae.decode(z0 / vae.config.scaling_factor).sample


def encoded(backbone, x):
    vae = backbone.pipe.vae
    return vae.encode(x).latent_dist.mean * vae.config.scaling_factor


def text_of(backbone, count: int):
    return backbone.pipe.encode_prompt([""] * count, "cpu", 1, False)[0]


def first(backbone, y, seeds):
    """The noised first guess."""
    alpha, sigma, _ = levels(backbone)[0]
    guess = y.guess().clamp(0.0, 1.0)
    noise = initial_noise(seeds, (4, 8, 8)).double()
    return alpha * encoded(backbone, 2.0 * guess - 1.0) + sigma * noise


def norms(r):
    return r.flatten(1).square().sum(1).sqrt().sum()


def plain(backbone, y, loss, seeds=(0, 1)):
    """z_{t-1} = alpha z0hat + sigma eps - grad loss(z0hat, x in [-1, 1]), all in one graph; pixels in [0, 1]."""
    z, text = first(backbone, y, seeds), text_of(backbone, len(seeds))
    run = levels(backbone)
    for (alpha, sigma, time), (alpha_next, sigma_next, _) in zip(run, run[1:], strict=False):
        z = z.detach().requires_grad_()
        eps = eps_of(backbone, z, time, text)
        z0 = (z - sigma * eps) / alpha
        (gradient,) = torch.autograd.grad(loss(z0, decoded(backbone, z0)), z)
        z = (alpha_next * z0 + sigma_next * eps - gradient).detach()
    return (decoded(backbone, z) / 2.0 + 0.5).clamp(0.0, 1.0).detach()


@pytest.mark.parametrize("weighting", ["norm", "squared", "gaussian"])
def test_ldps_is_its_formula(backbone, weighting):
    y = measured()
    run, calls = levels(backbone), iter(range(STEPS))

    def loss(z0, x):
        r = y.y - y.operator.A(x / 2.0 + 0.5)
        if weighting == "gaussian":
            return run[next(calls)][1] ** 2 * r.square().sum() / (2.0 * y.sigma_y**2)
        return norms(2.0 * r) if weighting == "norm" else (2.0 * r).square().sum()

    zeta = {"norm": 0.3, "squared": 0.03, "gaussian": 1e-3}[weighting]
    expected = plain(backbone, y, lambda z0, x: zeta * loss(z0, x))
    assert far(restore(backbone, y, LDPS(steps=STEPS, zeta=zeta, weighting=weighting)).x, expected) < CLOSE
    assert far(restore(backbone, y, LDPS(steps=STEPS, zeta=0.0)).x, expected) > 1e-4  # the data term is seen


@pytest.mark.parametrize("operator", [Downsample(2), InpaintBox(), KernelBlur(BLUR, padding="circular")], ids=repr)
def test_psld_is_its_formula(backbone, operator):
    y = measured(operator=operator)
    omega, gamma = 0.3, 0.2

    def loss(z0, x):
        pixels = x / 2.0 + 0.5
        r = y.y - operator.A(pixels)
        glued = operator.A_dagger(y.y) + pixels - operator.A_dagger(operator.A(pixels))
        return omega * norms(2.0 * r) + gamma * norms(z0 - encoded(backbone, 2.0 * glued - 1.0))

    found = restore(backbone, y, PSLD(steps=STEPS, omega=omega, gamma=gamma))
    assert far(found.x, plain(backbone, y, loss)) < CLOSE
    assert far(found.x, restore(backbone, y, LDPS(steps=STEPS, zeta=omega)).x) > 1e-4  # so is the gluing


def test_psld_without_gluing_is_ldps(backbone):
    y = measured()
    a = restore(backbone, y, PSLD(steps=STEPS, omega=0.3, gamma=0.0))
    b = restore(backbone, y, LDPS(steps=STEPS, zeta=0.3))
    assert far(a.x, b.x) < CLOSE and a.report.ledger == b.report.ledger


def test_the_gradient_through_a_pseudo_inverse_by_conjugate_gradients():
    """A^+ A by CG, whose own iterations autograd must not be trusted with: against finite differences."""
    operator = KernelBlur(BLUR + 8.0 * (BLUR == 4.0), iterations=40)
    g = torch.Generator().manual_seed(0)
    x, u, c = (torch.randn(1, 1, 8, 8, generator=g, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((_Measured.apply(x, operator) * c).sum(), x)
    h = 1e-4  # the map is linear: differences are exact up to rounding and what CG leaves
    with torch.no_grad():
        difference = (_Measured.apply(x + h * u, operator) - _Measured.apply(x - h * u, operator)) / (2.0 * h)
    assert float((gradient * u).sum()) == pytest.approx(float((difference * c).sum()), rel=1e-6)


def adam(C, gradient, m, v, count, lr):
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    return C - lr * (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)).sqrt() + 1e-8), m, v


@pytest.mark.parametrize("eps_kind", ["state", "network"])
def test_p2l_is_its_formulas(backbone, eps_kind):
    """Two tunings a step, a projection at the ticks left % 2 == 1, and Adam's moments that go on."""
    y, zeta, lr, gamma, K = measured(), 0.3, 1e-2, 0.7, 2
    z, C = first(backbone, y, (0, 1)), text_of(backbone, 2)
    m = v = torch.zeros_like(C)
    run, count = levels(backbone), 0
    for i, ((alpha, sigma, time), (alpha_next, sigma_next, _)) in enumerate(zip(run, run[1:], strict=False)):
        for _ in range(K):
            C = C.detach().requires_grad_()
            z0 = (z - sigma * eps_of(backbone, z, time, C)) / alpha
            x = decoded(backbone, z0) / 2.0 + 0.5
            (gradient,) = torch.autograd.grad(norms(2.0 * (y.y - y.operator.A(x))), C)
            count += 1
            C, m, v = adam(C.detach(), gradient, m, v, count, lr)
        z = z.detach().requires_grad_()
        eps = eps_of(backbone, z, time, C)
        z0 = (z - sigma * eps) / alpha
        x = decoded(backbone, z0) / 2.0 + 0.5
        (gradient,) = torch.autograd.grad(norms(2.0 * (y.y - y.operator.A(x))), z)
        with torch.no_grad():
            if (STEPS - 1 - i) % 2 == 1:
                nearer = y.operator.prox_l2(x.clamp(0.0, 1.0), y.y, gamma).clamp(0.0, 1.0)
                z0 = encoded(backbone, 2.0 * nearer - 1.0)
                eps = (z - alpha * z0) / sigma if eps_kind == "state" else eps
            z = alpha_next * z0 + sigma_next * eps - zeta * gradient
    expected = (decoded(backbone, z) / 2.0 + 0.5).clamp(0.0, 1.0).detach()
    method = P2L(steps=STEPS, K=K, lr=lr, zeta=zeta, project_every=2, gamma=gamma, eps=eps_kind)
    assert far(restore(backbone, y, method).x, expected) < 1e-7  # Adam divides by |gradient|: small ones lose digits


def test_p2l_without_its_two_parts_is_ldps(backbone):
    y = measured()
    a = restore(backbone, y, P2L(steps=STEPS, zeta=0.3, K=0, project_every=0))
    b = restore(backbone, y, LDPS(steps=STEPS, zeta=0.3))
    assert far(a.x, b.x) < CLOSE and a.report.ledger == b.report.ledger


def test_p2l_tunes_a_copy(backbone, monkeypatch):
    """The network that the prompt made is as before; the tuned one is float32 or better and moves by about lr."""
    y, made = measured(), []
    encode = type(backbone).encode

    def keeping(self, *args, **named):
        made.append((network := encode(self, *args, **named), network.conditions["cond"]["encoder_hidden_states"]))
        return network

    monkeypatch.setattr(type(backbone), "encode", keeping)
    restore(backbone, y, P2L(steps=STEPS, zeta=0.1, lr=1e-2))
    ((network, text),) = made
    assert network.conditions["cond"]["encoder_hidden_states"] is text
    assert torch.equal(text, text_of(backbone, 2)) and not text.requires_grad


@pytest.mark.parametrize("sdxl", [False, True])
def test_p2l_tunes_an_embedding_in_half_precision(sdxl):
    """lr 1e-4 is below bfloat16's spacing at 1: the embedding must be remembered in float32."""
    backbone = tiny(torch.bfloat16, sdxl=sdxl)
    method, seen = P2L(steps=STEPS, zeta=0.1, K=2), []
    tune = P2L._tune

    def watched(self, problem, z, level, tuned):
        seen.append((tuned, tune(self, problem, z, level, tuned)))
        return seen[-1][1]

    P2L._tune = watched
    try:
        restore(backbone, measured(dtype=torch.float32), method)
    finally:
        P2L._tune = tune
    assert [after.count for _, after in seen] == list(range(1, 2 * STEPS + 1))
    for before, after in seen:
        assert after.C.dtype == after.m.dtype == after.v.dtype == torch.float32
        assert 0.0 < far(after.C, before.C) <= 1.01e-4 * math.sqrt(after.count)  # Adam's step is about lr


def test_what_they_cost(backbone):
    """Per image: PSLD 1 + 1 evaluations a step and the encoder; P2L (K + 1) and the encoder at projections."""
    cases = {
        PSLD(steps=2, omega=0.1): (2, 2, 3, 2, 3, 2),
        PSLD(steps=2, omega=0.1, gamma=0.0): (2, 2, 3, 2, 1, 0),
        P2L(steps=3, zeta=0.1, project_every=2): (6, 6, 7, 6, 2, 0),
        P2L(steps=2, zeta=0.1, K=3, project_every=0): (8, 8, 9, 8, 1, 0),
        P2L(steps=2, zeta=0.1, K=0, project_every=1): (2, 2, 3, 2, 3, 0),
    }
    for method, expected in cases.items():
        with counted(backbone.pipe) as rows:
            report = restore(backbone, measured(), method).report
        assert tuple(report.ledger.per_image(2).values()) == expected, method
        assert {k: v for k, v in vars(report.ledger).items() if v} == dict(rows), method


def test_what_they_cannot_work_with(backbone):
    y = measured(operator=Squared())
    for method, words in ((PSLD(steps=2), "LDPS"), (P2L(steps=2), "project_every=0")):
        with pytest.raises(IncompatibleError, match=words):
            restore(backbone, y, method)
    assert restore(backbone, y, P2L(steps=2, zeta=0.1, project_every=0)).x.isfinite().all()
    with pytest.raises(IncompatibleError, match="A_dagger"):
        restore(backbone, measured(operator=Duck()), PSLD(steps=2))
    with pytest.raises(
        ConfigError, match=r"pseudo-inverse of Gaussian blur .* pixels of up to .*larger rcond, such as"
    ):
        restore(backbone, measured(operator=GaussianBlur(1.0)), PSLD(steps=2))  # noise of 0.05 times up to 1e6
    assert restore(backbone, measured(operator=GaussianBlur(1.0, rcond=0.1)), PSLD(steps=2, omega=0.1)).report.ticks
    still = Measurement(y.y, Downsample(1), 0.0)
    for method in (LDPS(steps=2, weighting="gaussian"), PSLD(steps=2, weighting="gaussian")):
        with pytest.raises(ConfigError, match="sigma_y"):
            restore(backbone, still, method)


def test_p2l_needs_text_embeddings(backbone, monkeypatch):
    class Bare:
        def __init__(self, network):
            self.network, self.schedule, self.parametrisation = network, network.schedule, network.parametrisation

        def __call__(self, x, level, branches, rows=None):
            return self.network(x, level, branches, rows)

    encode = type(backbone).encode
    monkeypatch.setattr(type(backbone), "encode", lambda self, *a, **k: Bare(encode(self, *a, **k)))
    with pytest.raises(IncompatibleError, match=r"text embeddings.*LDPS"):
        restore(backbone, measured(), P2L(steps=2))
    assert restore(backbone, measured(), LDPS(steps=2, zeta=0.1)).x.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PSLD(omega=-1.0),
        lambda: PSLD(gamma=math.nan),
        lambda: PSLD(weighting="l1"),  # type: ignore[arg-type]
        lambda: P2L(K=-1),
        lambda: P2L(K=1.5),  # type: ignore[arg-type]
        lambda: P2L(lr=0.0),
        lambda: P2L(zeta=math.inf),
        lambda: P2L(project_every=-1),
        lambda: P2L(gamma=0.0),
        lambda: P2L(eps="none"),  # type: ignore[arg-type]
        lambda: LDPS(zeta=-1.0),
        lambda: LDPS(weighting="l1"),  # type: ignore[arg-type]
    ],
)
def test_numbers_that_cannot_be(make):
    with pytest.raises(ConfigError, match=r"got|expected"):
        make()


def test_pictures_are_no_constant():
    assert far(pictures(2)[0], pictures(2)[1]) > 0.1
