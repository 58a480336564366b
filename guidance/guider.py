"""A guidance policy as the guider of a pipeline: Modular Diffusers, HunyuanVideo 1.5, HunyuanImage 2.1.

A guider says before every tick which forwards the denoiser makes, one per branch with all images, and combines their
outputs afterwards. Ours stands in for the pipeline's own for the time of a call. A policy without a scale keeps the
formula of the one that it stands in for, with its scale, rescaling or projections: that one gets c and the policy's u^.

Images cannot be left out of a forward here. A policy that decides per image decides as elsewhere, and the pictures are
the same, but "uncond" is evaluated for all images until the last one needs it no longer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor, nn

from ..errors import ConfigError, IncompatibleError
from ..samplers.guided import Asked, on_device
from ..samplers.policy import Line, Policy
from .attach_separate import latents
from .attach_session import Session, is_number
from .scale import owns_scale

BRANCHES = {"cond": "pred_cond", "uncond": "pred_uncond"}
PLAIN = "ClassifierFreeGuidance"
FORMULAS = (PLAIN, "ClassifierFreeZeroStarGuidance", "AdaptiveProjectedGuidance", "AdaptiveProjectedMixGuidance")
"""Guiders whose formula is a function of c and u alone."""


@contextmanager
def taken_over(session: Session) -> Iterator[None]:
    """The guiders of the session's pipeline follow its policy."""
    pipe, watch = session.pipe, Watch(session)
    own = {name: getattr(pipe, name) for name in session.layout.guiders if getattr(pipe, name, None) is not None}
    ours = {name: PolicyGuider(watch, guider) for name, guider in own.items()}
    vars(pipe).update(ours)  # past __setattr__, which would write our class into the pipeline's config
    try:
        yield
    finally:
        watch.close()
        vars(pipe).update({name: guider for name, guider in own.items() if vars(pipe).get(name) is ours[name]})


class Watch:
    """What the guiders of one call share.       x: what the denoiser was fed last."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.x: Any = None
        self._handles: dict[nn.Module, Any] = {}

    def see(self, denoiser: nn.Module) -> None:
        if denoiser not in self._handles:
            self._handles[denoiser] = denoiser.register_forward_pre_hook(self._saw, with_kwargs=True)

    def _saw(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.session.caller.calls():  # and not another pipeline that shares the denoiser
            self.x = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))

    def close(self) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles, self.x = {}, None


class PolicyGuider(BaseGuidance):
    """The guider that follows a session's policy, in place of `replaced`.

    A policy with a scale of its own gives the guided prediction itself, and then `replaced` must be plain
    classifier-free guidance without rescaling; else the formula and the scale are `replaced`'s.
    An image for which the policy takes c alone gets c, whatever the formula makes of u^ = c.
    Errors: ConfigError where the two contradict, IncompatibleError for guiders whose formula needs other predictions.
    """

    _input_predictions: ClassVar[list[str]] = list(BRANCHES.values())

    def __init__(self, watch: Watch, replaced: BaseGuidance) -> None:
        check_replaced(watch.session.policy, replaced)
        with silent(BaseGuidance.__module__):  # that guiders are experimental it has said of the pipeline's own
            super().__init__(enabled=replaced._enabled)
        self.register_to_config(policy=type(watch.session.policy).__name__)
        self.watch, self.session, self.replaced = watch, watch.session, replaced
        self._owns = owns_scale(watch.session.policy)
        self._asked: Asked | None = None  # between the tick's beginning and its end, if it is guided
        self._named: tuple[str, ...] = ()

    # --- diffusers' interface ---------------------------------------------------------------------------------------

    def enable(self) -> None:
        super().enable()
        self.replaced.enable()

    def disable(self) -> None:
        super().disable()
        self.replaced.disable()

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        super().set_state(step, num_inference_steps, timestep)
        self.replaced.set_state(step, num_inference_steps, timestep)
        self._named = ()

    @property
    def guidance_scale(self) -> float:
        """What some blocks embed, where the network takes the scale as an input."""
        return self.replaced.guidance_scale  # type: ignore[attr-defined]

    @property
    def guides(self) -> bool:
        """Whether there is guidance at all: not where the guider is disabled, or its scale is 1."""
        return self._enabled and (self._owns or self.replaced.num_conditions > 1)

    @property
    def num_conditions(self) -> int:
        """Forwards of this tick; between ticks, of a guided one, since pipelines ask before they prepare a negative."""
        return len(self._named) or (2 if self.guides else 1)

    @property
    def is_conditional(self) -> bool:
        return self._named[self._count_prepared - 1] == BRANCHES["cond"]

    def prepare_inputs(self, data: Any) -> Any:
        self._begin_tick([v[0] if isinstance(v, tuple) else v for v in data.values()])
        self.replaced.prepare_inputs(data)  # for what it sets up at the first step
        return [self._prepare_batch(data, self._input_predictions.index(name), name) for name in self._named]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> Any:
        fields = [v[0] if isinstance(v, tuple) else v for v in input_fields.values()]
        self._begin_tick([getattr(data, field, None) for field in fields])
        self.replaced.prepare_inputs_from_block_state(data, input_fields)
        return [self._prepare_batch_from_block_state(input_fields, data, self._input_predictions.index(name), name)
                for name in self._named]  # fmt: skip

    def prepare_models(self, denoiser: nn.Module) -> None:
        super().prepare_models(denoiser)
        self.replaced.prepare_models(denoiser)
        self.watch.see(denoiser)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self.replaced.cleanup_models(denoiser)

    def forward(self, pred_cond: Tensor | None = None, pred_uncond: Tensor | None = None) -> GuiderOutput:
        pred = self._combined(pred_cond, pred_uncond)
        self._asked, self._named = None, ()
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    # --- a tick -----------------------------------------------------------------------------------------------------

    def _begin_tick(self, conditioning: list[Any]) -> None:
        if self._step != self.session.tick:
            raise IncompatibleError(f"{type(self.session.pipe).__name__} is at step {self._step} of its loop, expected "
                                    f"{self.session.tick}: guidance policies cannot follow this loop")  # fmt: skip
        self._asked, self._named = None, (BRANCHES["cond"],)
        if self.guides:
            batch = next(v.shape[0] for v in conditioning if isinstance(v, Tensor))
            self._asked = self.session.asked(batch, self._timestep)
            self.session.goes_on_with(self)  # Wan 2.2 has a guider for each of its denoisers
            wanted = [b for b in BRANCHES if b in self._asked.branches or (b == "cond" and not self._owns)]
            self._named = tuple(BRANCHES[b] for b in wanted)

    def _combined(self, cond: Tensor | None, uncond: Tensor | None) -> Tensor:
        session, asked = self.session, self._asked
        found = {b: t for b, t in zip(BRANCHES, (cond, uncond), strict=True) if t is not None}
        like = next(iter(found.values()))
        if asked is None:
            session.unguided(like.shape[0], self._timestep)
            return like
        if like.shape[0] != session.batch:
            raise IncompatibleError(f"the denoiser was given {session.batch} rows of conditioning and returned "
                                    f"{like.shape[0]} images: guidance policies cannot follow this loop")  # fmt: skip
        evaluated, x = Asked(tuple(found), (None,) * len(found)), latents(self.watch.x, like)
        with session.without_lost():
            line = session.observed(x, [found[b] for b in asked.branches], evaluated)
            if cond is not None and is_number(line, "cond"):
                return cond
            if self._owns:
                return session.prediction(line).to(like.dtype)
            if is_number(line, "uncond"):
                return self.replaced.forward(cond, uncond).pred
            u = session.prediction(line).to(like.dtype)
        assert cond is not None
        return torch.where(conditional(line, cond), cond, self.replaced.forward(cond, u).pred)


@contextmanager
def silent(name: str) -> Iterator[None]:
    """Without what the logger of this name says."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def conditional(line: Line, like: Tensor) -> Tensor:
    """(B, 1, ...) bool: the images whose line is "cond" alone, which the guider's formula may not touch.

    With u^ = c a formula with momentum would go on with earlier differences.
    """
    rest = [on_device(w, like.device) for name, w in line.items() if name != "cond"]
    none = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)
    for w in rest:
        none = none & (w == 0.0)
    return none.view(-1, *(1,) * (like.ndim - 1))


def check_replaced(policy: Policy, replaced: BaseGuidance) -> None:
    name, config, what = type(replaced).__name__, replaced.config, type(policy).__name__
    if name not in FORMULAS:
        raise IncompatibleError(f"{name} needs more than the predictions cond and uncond, and guidance policies give "
                                f"these: give the pipeline one of {', '.join(FORMULAS)}")  # fmt: skip
    start, stop = config.get("start", 0.0), config.get("stop", 1.0)
    if (start, stop) != (0.0, 1.0):
        raise ConfigError(f"the pipeline's {name} has an interval of its own, start={start} and stop={stop}: leave it "
                          "out and give the policy one, as in Interval(start=, stop=)")  # fmt: skip
    rescale = config.get("guidance_rescale", 0.0)
    if owns_scale(policy) and (name != PLAIN or rescale):
        has = f"a formula of its own, {name}" if name != PLAIN else f"guidance_rescale={rescale}"
        raise ConfigError(f"{what} has its own guidance scale, and the pipeline's guider has {has}: give the policy "
                          "scale=None, and the scale to that guider")  # fmt: skip
