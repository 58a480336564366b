"""attach with offloaded and compiled denoisers, in any order."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
import torch
from diffusers import StableDiffusionPipeline

from fewstep.errors import IncompatibleError
from fewstep.guidance.adaptive import AdaptiveGuidance
from fewstep.guidance.attach import attach
from fewstep.guidance.attach_modules import Caller, replaced

from . import tiny_flow
from .attach_runs import FAMILIES, STEPS, counted, guided, run

FAMILY = {"sd": FAMILIES["sd"], "sd3": tiny_flow.sd3, "controlnet": FAMILIES["controlnet"]}
POLICY = AdaptiveGuidance(0.0, space="raw", min_steps=2)  # crosses at once: two guided steps
EXPECTED = STEPS + 2


def offload(tiny):
    tiny.pipe.enable_model_cpu_offload(device="cpu")


def offload_and_not(tiny):
    offload(tiny)
    run(tiny)
    tiny.pipe.remove_all_hooks()


def group_offload(tiny):
    cpu = torch.device("cpu")
    tiny.denoiser.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def counting(rows: list[int]):
    """A backend of torch.compile that runs graphs as they are, and notes how many rows each call has."""

    def backend(graph, inputs):
        tensors = [t for t in inputs if isinstance(t, torch.Tensor)]
        (batch,) = {t.shape[0] for t in tensors if t.shape[1:] == (4, 8, 8)}

        def call(*args):
            rows.append(batch)
            return graph.forward(*args)

        return call

    return {"backend": backend, "dynamic": False}


def compiled(tiny, rows):
    name = "unet" if hasattr(tiny.pipe, "unet") else "transformer"
    setattr(tiny.pipe, name, torch.compile(tiny.denoiser, **counting(rows)))


def compiled_and_offloaded(tiny, rows):
    compiled(tiny, rows)
    offload(tiny)


def compiled_in_place(tiny, rows):
    tiny.denoiser.compile(**counting(rows))


def check(family: str, change, order: str):
    """The same as without `change`, call after call, and the pipeline's own after detach."""
    tiny = guided(FAMILY[family])
    plain = run(tiny)
    with attach(tiny.pipe, guidance=POLICY):
        expected = run(tiny)
    with ExitStack() as stack:
        rows = stack.enter_context(counted(tiny.denoiser))
        if order == "attach first":
            attached = stack.enter_context(attach(tiny.pipe, guidance=POLICY))
            run(tiny)
            change(tiny)
        else:
            change(tiny)
            attached = stack.enter_context(attach(tiny.pipe, guidance=POLICY))
        for _ in range(2):
            rows.clear()
            assert torch.equal(run(tiny), expected)
            assert sum(rows) == attached.report.nfe == EXPECTED
        attached.detach()
        assert torch.equal(run(tiny), plain)


@pytest.mark.parametrize("order", ["attach first", "attach last"])
@pytest.mark.parametrize("change", [offload, offload_and_not, group_offload])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_offload(family, change, order):
    check(family, change, order)


def test_offload_of_a_controlnet():
    check("controlnet", offload, "attach last")


def test_offload_after_an_exception_in_mid_run():
    def stop(pipe, i, t, tensors):
        raise RuntimeError("stopped")

    tiny = guided(FAMILIES["sd"])
    plain = run(tiny)
    offload(tiny)
    with attach(tiny.pipe, guidance=POLICY):
        expected = run(tiny)
        with pytest.raises(RuntimeError, match="stopped"):
            run(tiny, callback_on_step_end=stop)
        assert torch.equal(run(tiny), expected)
    assert torch.equal(run(tiny), plain)


def check_compiled(family: str, change, order: str):
    """Two batch sizes, two graphs, however many calls; the policy's own code is in none of them."""
    torch._dynamo.reset()
    tiny = guided(FAMILY[family])
    with attach(tiny.pipe, guidance=POLICY) as attached:
        expected = run(tiny)
    rows: list[int] = []
    if order == "attach first":
        attached = attach(tiny.pipe, guidance=POLICY)
        change(tiny, rows)
    else:
        change(tiny, rows)
        attached = attach(tiny.pipe, guidance=POLICY)
    with attached:
        for _ in range(2):
            rows.clear()
            assert torch.equal(run(tiny), expected)
            assert rows == [2, 2] + [1] * (STEPS - 2) and attached.report.nfe == sum(rows)


def test_compiled():
    check_compiled("sd3", compiled, "attach last")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["attach first", "attach last"])
@pytest.mark.parametrize("change", [compiled, compiled_in_place, compiled_and_offloaded])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_compiled_in_every_order(family, change, order):
    check_compiled(family, change, order)


def test_what_a_module_did_comes_back():
    module = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    before = module(x)

    def more(forward, args, kwargs):
        return forward(*args, **kwargs) + 1.0

    with replaced(module, more, Caller()):
        assert torch.equal(module(x), before + 1.0)
        with pytest.raises(IncompatibleError, match="in use by a call"), replaced(module, more, Caller()):
            pass
        assert torch.equal(module(x), before + 1.0)
    assert torch.equal(module(x), before) and "forward" not in vars(module)

    with replaced(module, more, Caller()):
        module.forward = own = lambda x: x  # somebody else took it over, and keeps it
    assert module.forward is own


def other_pipeline(tiny):
    other = StableDiffusionPipeline(**tiny.pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config)
    return tiny._replace(pipe=other)


def inside(tiny, other, at=1):
    """A run of `tiny`, with one of `other` after step `at`: (the first's latents, the second's)."""
    found = []

    def call(pipe, i, t, tensors):
        if i == at:
            found.append(other())
        return tensors

    return run(tiny, callback_on_step_end=call), found[0]


def test_another_pipeline_in_a_callback_uses_the_network_as_it_is():
    tiny = guided(FAMILIES["sd"], 2)
    other = other_pipeline(tiny)
    plain = run(other)
    with attach(tiny.pipe, guidance=POLICY) as attached:
        expected = run(tiny)
        for at in (0, STEPS - 1):
            first, second = inside(tiny, lambda: run(other), at)
            assert torch.equal(second, plain) and torch.equal(first, expected)
            assert attached.report.nfe == 2 * EXPECTED


def test_calls_that_overlap_on_one_network_are_one_error_and_leave_it_as_it_was():
    tiny = guided(FAMILIES["sd"])
    other, plain, errors = other_pipeline(tiny), run(tiny), []
    with attach(tiny.pipe, guidance=POLICY) as attached, attach(other.pipe, guidance=POLICY):
        expected = run(tiny)

        def refused():
            with pytest.raises(IncompatibleError, match="in use by a call of another attached") as caught:
                run(other)
            errors.append(caught.value)

        def thread():
            thread = threading.Thread(target=refused)
            thread.start()
            thread.join()

        for way in (refused, thread):
            assert torch.equal(inside(tiny, way)[0], expected) and attached.report.nfe == EXPECTED
        assert len(errors) == 2 and "forward" not in vars(tiny.denoiser)
        assert torch.equal(run(other), expected)
    assert torch.equal(run(tiny), plain) and torch.equal(run(other), plain)


def test_a_pipeline_in_another_thread_uses_the_network_as_it_is():
    tiny = guided(FAMILIES["sd"])
    other, results = other_pipeline(tiny), []
    plain = run(other)

    def thread():
        thread = threading.Thread(target=lambda: results.append(run(other)))
        thread.start()
        thread.join()

    with attach(tiny.pipe, guidance=POLICY):
        expected = run(tiny)
        assert torch.equal(inside(tiny, thread)[0], expected)
    assert torch.equal(results[0], plain)
