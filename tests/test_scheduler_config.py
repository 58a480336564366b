"""Configs of FewstepScheduler: where they come from, what they refuse, how they survive."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from dataclasses import dataclass
from typing import ClassVar

import diffusers
import numpy as np
import pytest
import torch

from fewstep.errors import ConfigError
from fewstep.samplers import (
    DDIM,
    EPS,
    FLOW,
    SOLVERS,
    X0,
    DiscreteVP,
    DPMpp2M,
    DPMpp2S,
    Outputs,
    RectifiedFlow,
    UniPC,
    V,
    advance,
    karras,
    start,
    trace,
    uniform_lambda,
)
from fewstep.samplers.dpm_v3 import DPMv3
from fewstep.samplers.dpm_v3_statistics import EmpiricalStatistics
from fewstep.samplers.from_config import parametrisation_from_config, schedule_from_config, shift_from_config
from fewstep.samplers.scheduler import FewstepScheduler
from fewstep.samplers.solver_config import solver_config, solver_of

from .tiny import LATENT_SHAPE, STABLE_DIFFUSION, tiny_ddim, tiny_sd

X = torch.linspace(-2, 2, 256).view(1, *LATENT_SHAPE)


def scheduler(**fields):
    return FewstepScheduler.from_config(tiny_ddim().config, **fields)


def public(config):
    return {k: v for k, v in config.items() if not k.startswith("_")}


# --- the schedule and the parametrisation of a config ---------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        STABLE_DIFFUSION,
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": np.linspace(1e-4, 0.03, 1000)},
        {"rescale_betas_zero_snr": True},
        {"num_train_timesteps": 500},
    ],
    ids=str,
)
def test_levels_are_those_of_diffusers(fields):
    peer = diffusers.DDIMScheduler(**fields)
    schedule = schedule_from_config(peer.config)
    expected = peer.alphas_cumprod.double()
    assert isinstance(schedule, DiscreteVP)
    # diffusers multiplies a thousand factors in float32
    torch.testing.assert_close(torch.tensor(schedule.alphas_cumprod).double(), expected, rtol=5e-6, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LCM", "TCD",
     "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"],
)  # fmt: skip
def test_from_config_of_every_common_scheduler(name, caplog):
    config = getattr(diffusers, name + "Scheduler")(**STABLE_DIFFUSION).config
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        made = FewstepScheduler.from_config(config, solver=UniPC(3))
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records  # no field was dropped with a warning
    assert made.schedule == DiscreteVP.scaled_linear() and made.parametrisation is EPS and made.solver == UniPC(3)


def test_defaults_of_the_original_class_count():
    """What LCM takes by default is not what DDIM does; in a config and in a file that leaves it out."""
    expected = DiscreteVP.scaled_linear()
    assert FewstepScheduler.from_config(diffusers.LCMScheduler().config).schedule == expected
    assert FewstepScheduler.from_config({"_class_name": "LCMScheduler", "beta_start": 0.00085}).schedule == expected
    assert schedule_from_config({"beta_start": 1e-4}) == schedule_from_config(diffusers.DDIMScheduler().config)


@pytest.mark.parametrize(
    ("value", "expected"), [("epsilon", EPS), ("sample", X0), ("v_prediction", V), ("flow_prediction", FLOW)]
)
def test_prediction_types(value, expected):
    assert parametrisation_from_config({"prediction_type": value}) is expected


def test_flow_configs():
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    unipc = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    ).config
    for config in (flow, unipc):
        assert schedule_from_config(config) == RectifiedFlow(time_scale=1000.0)
        assert parametrisation_from_config(config) is FLOW and shift_from_config(config) == 3.0
        made = FewstepScheduler.from_config(config, grid="time", solver=DPMpp2M())
        made.set_timesteps(4)
        t = torch.tensor([1.0, 0.667, 0.334, 0.001])
        assert torch.allclose(made.timesteps, 1000 * 3 * t / (1 + 2 * t), rtol=1e-4)
        again = FewstepScheduler.from_config(made.config)
        assert again.config["shift"] == 3.0 and again.schedule == made.schedule and again.parametrisation is FLOW


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ({**STABLE_DIFFUSION, "prediction_type": "trigflow"}, "prediction_type 'trigflow'"),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=1.5).config, "shift_terminal must be .*, got 1.5"),
        (
            diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1, invert_sigmas=True).config,
            "invert_sigmas=True with shift_terminal",
        ),
        (diffusers.FlowMatchLCMScheduler(scale_factors=[0.5, 1.0]).config, "scale_factors"),
        (diffusers.EDMEulerScheduler().config, "no known noise schedule: .* or a _class_name"),
        (diffusers.CogVideoXDDIMScheduler(snr_shift_scale=-1.0).config, "snr_shift_scale must be .*, got -1.0"),
        (diffusers.DDIMScheduler(thresholding=True).config, "thresholding=True"),
        ({**STABLE_DIFFUSION, "num_train_timesteps": 1}, "num_train_timesteps must be"),
        ({"trained_betas": [0.1] * 10}, "trained_betas has 10 values for num_train_timesteps=1000"),
        ({**STABLE_DIFFUSION, "solver": "dpm"}, "unknown solver 'dpm': did you mean .*2m"),
        ({**STABLE_DIFFUSION, "solver": {"name": "UniPC", "p": 3}}, "solver UniPC has no parameter 'p'; it has order"),
        ({**STABLE_DIFFUSION, "solver": UniPC}, "must be an instance"),
        ({**STABLE_DIFFUSION, "solver": {"order": 3}}, "needs a 'name'"),
        ({**STABLE_DIFFUSION, "grid": "ays"}, "unknown grid 'ays': did you mean .*lambda"),
        ({**STABLE_DIFFUSION, "grid": {"name": "karras", "roh": 5}}, "grid karras has no parameter 'roh'; it has rho"),
        ({**STABLE_DIFFUSION, "grid": karras}, "a grid must be one of"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        FewstepScheduler.from_config(config)


def test_overrides_reach_the_schedule_and_typos_do_not_pass():
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    made = FewstepScheduler.from_config(dynamic, use_dynamic_shifting=False, shift=2.0, grid="time")
    made.set_timesteps(4)
    assert made.timesteps[0] == 1000.0
    assert made.config["shift"] == 2.0 and not made.config["use_dynamic_shifting"]
    assert scheduler(prediction_type="v_prediction").parametrisation is V
    with pytest.raises(ConfigError, match="unknown field 'sovler': expected one of beta_end"):
        scheduler(sovler=DPMpp2M())


# --- configs survive ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [make() for make in SOLVERS.values()], ids=repr)
def test_save_and_load(solver, tmp_path):
    saved = scheduler(solver=solver, grid={"name": "karras", "rho": 5.0})
    saved.save_pretrained(tmp_path)
    loaded = FewstepScheduler.from_pretrained(tmp_path)
    assert loaded.solver == saved.solver == solver and loaded.schedule == saved.schedule
    assert public(loaded.config) == public(saved.config)
    for made in (saved, loaded):
        made.set_timesteps(9)
    assert torch.equal(loaded.timesteps, saved.timesteps) and loaded.table == saved.table
    other = FewstepScheduler.from_pretrained(tmp_path, solver=DDIM(), grid="lambda")
    assert other.solver == DDIM() and other.schedule == saved.schedule


def test_a_pipeline_saves_and_loads_it(tmp_path):
    pipe = tiny_sd(scheduler(solver=UniPC(3, "bh1")))
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path, local_files_only=True)
    assert isinstance(loaded.scheduler, FewstepScheduler) and loaded.scheduler.solver == UniPC(3, "bh1")


def test_the_way_back_to_diffusers():
    original = tiny_ddim()
    back = diffusers.DDIMScheduler.from_config(scheduler(solver=DPMpp2S()).config)
    assert {k: back.config[k] for k in public(original.config)} == public(original.config)


def test_solver_values():
    assert solver_of("unipc-3") == solver_of({"name": "UniPC", "order": 3}) == UniPC(3)
    assert solver_of("DPMpp2S") == DPMpp2S() and solver_of(DDIM(0.5)) == DDIM(0.5)
    assert solver_of(json.loads(json.dumps(solver_config(DPMpp2S(0.3))))) == DPMpp2S(0.3)


def test_a_solver_of_ones_own(tmp_path):
    @dataclass(frozen=True)
    class Mine(DDIM):
        keeps_edits: ClassVar[bool] = True

    own = scheduler(solver=Mine())
    assert own.solver == Mine() and own.config["solver"]["name"] == "Mine"
    own.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown solver 'Mine'"):
        FewstepScheduler.from_pretrained(tmp_path)
    assert FewstepScheduler.from_pretrained(tmp_path, solver=Mine()).solver == Mine()


def test_a_solver_that_no_file_can_hold(tmp_path):
    """DPM-Solver-v3 has statistics of the model; a file names it, and asks for it."""
    solver = DPMv3(EmpiricalStatistics.constant(0.4, -0.7, 0.0), 2)
    made = scheduler(solver=solver)
    made.set_timesteps(5)
    x = X
    for t in made.timesteps:
        x = made.step(0.3 * x, t, x, return_dict=False)[0]
    table = trace(solver, uniform_lambda(made.schedule, 5), made.schedule)
    state = start(table, X)
    for node in table.plan.nodes:
        state = advance(table, state, Outputs(state.x, node, (0.3 * state.x,), EPS))
    assert torch.equal(x, state.x)
    made.save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"a config cannot hold statistics of DPMv3; .*from_pretrained\(path, solver="
    ):
        FewstepScheduler.from_pretrained(tmp_path)
    assert FewstepScheduler.from_pretrained(tmp_path, solver=solver).solver is solver


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"])
def test_copies_run_on_their_own(clone):
    first = scheduler(solver=UniPC(3))
    first.set_timesteps(9)
    x = first.step(X, first.timesteps[0], X, return_dict=False)[0]
    second = clone(first)
    y = second.step(X, second.timesteps[1], x, return_dict=False)[0]
    assert first.step_index == 1 and second.step_index == 2
    assert torch.equal(first.step(X, first.timesteps[1], x, return_dict=False)[0], y)


def test_other_programs_names_say_solver_and_grid():
    scheduler = FewstepScheduler(solver="DPM++ 2M Karras")
    assert scheduler.solver == DPMpp2M() and scheduler.config.grid == "karras"
    assert FewstepScheduler(solver="DPM++ 2M Karras", grid="time").config.grid == "time"
    again = FewstepScheduler.from_config(scheduler.config)
    assert again.solver == DPMpp2M() and again.config.grid == "karras"
