"""Which diffusers pipelines cannot run with another scheduler, and what to do about it.

Most pipelines call only what `FewstepScheduler` has. Some test the class of their scheduler, reach into it, or call it
with arguments of their own; with a stand-in they would fail in the middle of a run or, worse, take another path.
Nothing here imports diffusers: pipelines are known by the names of their classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import IncompatibleError

_KEEP = "keep the scheduler that it came with"
_INSIDE = "it computes with attributes of its own scheduler that no other has"
_LEDITS = "it inverts the image with the formulas of DDIMScheduler or DPMSolverMultistepScheduler, which it tests for"
_PER_TOKEN = "it calls step with per_token_timesteps: every token of the latents is at a noise level of its own"
_COSMOS = "it scales the network's input and output by sigmas that it writes into its own scheduler"
_STAGES = "its networks are told the ratios of DDPMWuerstchenScheduler, which it tests for"
_LCM = "it passes original_inference_steps, which only LCMScheduler takes, and its network was distilled for that one"
_UNCLIP = "it passes step the next timestep (prev_timestep), which only UnCLIPScheduler takes"

REFUSED_PIPELINES: dict[str, tuple[str, str]] = {
    "LEditsPPPipelineStableDiffusion": (_LEDITS, _KEEP),
    "LEditsPPPipelineStableDiffusionXL": (_LEDITS, _KEEP),
    "LTXI2VLongMultiPromptPipeline": (
        "it leaves out the last timestep and skips others, as suits the list of LTXEulerAncestralRFScheduler",
        "use LTXPipeline or LTXImageToVideoPipeline, window by window",
    ),
    "LTX2DFRTemporalRefinePipeline": (
        "the noise that LTXEulerAncestralRFScheduler adds is part of its method, and it tests for that class",
        _KEEP,
    ),
    "LTXConditionPipeline": (_PER_TOKEN, "use LTXPipeline or LTXImageToVideoPipeline"),
    "SanaWMPipeline": (_PER_TOKEN, _KEEP),
    "CosmosTextToWorldPipeline": (_COSMOS, _KEEP),
    "CosmosVideoToWorldPipeline": (_COSMOS, _KEEP),
    "Cosmos2TextToImagePipeline": (_COSMOS, _KEEP),
    "Cosmos2VideoToWorldPipeline": (_COSMOS, _KEEP),
    "ChronoEditPipeline": ("it cuts the history that UniPCMultistepScheduler keeps when it drops frames", _KEEP),
    "BriaPipeline": (
        "it computes the time shift for FlowMatchEulerDiscreteScheduler alone, which it tests for, and else passes "
        "noise levels of another kind of model",
        _KEEP,
    ),
    "StableCascadePriorPipeline": (_STAGES, _KEEP),
    "StableCascadeDecoderPipeline": (_STAGES, _KEEP),
    "WuerstchenPriorPipeline": (_STAGES, _KEEP),
    "WuerstchenDecoderPipeline": (_STAGES, _KEEP),
    "LatentConsistencyModelPipeline": (_LCM, _KEEP),
    "LatentConsistencyModelImg2ImgPipeline": (_LCM, _KEEP),
    "UnCLIPPipeline": (_UNCLIP, _KEEP),
    "UnCLIPImageVariationPipeline": (_UNCLIP, _KEEP),
    "KandinskyPriorPipeline": (_UNCLIP, _KEEP),
    "KandinskyV22PriorPipeline": (_UNCLIP, _KEEP),
    "KandinskyV22PriorEmb2EmbPipeline": (_UNCLIP, _KEEP),
    "DDIMPipeline": (
        "it converts any scheduler to DDIMScheduler when it is made, and passes step the arguments of that one",
        "use DDPMPipeline with the same UNet",
    ),
    "StableDiffusionSAGPipeline": (_INSIDE, _KEEP),
    "StableDiffusionDiffEditPipeline": (_INSIDE, _KEEP),
    "StableDiffusionParadigmsPipeline": (_INSIDE, _KEEP),
    "StableDiffusionPanoramaPipeline": (
        "it swaps the inner state of one scheduler between overlapping views",
        _KEEP,
    ),
    "CycleDiffusionPipeline": (_INSIDE, _KEEP),
    "RePaintPipeline": (_INSIDE, _KEEP),
    "TextToVideoZeroPipeline": (_INSIDE, _KEEP),
    "TextToVideoZeroSDXLPipeline": (_INSIDE, _KEEP),
    "AudioDiffusionPipeline": (_INSIDE, _KEEP),
}
"""Pipeline class -> (why it cannot run with another scheduler, the way out)."""


def check_pipeline(pipe: Any) -> None:
    """IncompatibleError for a pipeline that insists on a scheduler class of its own. Subclasses count."""
    for kind in type(pipe).__mro__:
        if kind.__name__ in REFUSED_PIPELINES:
            reason, way_out = REFUSED_PIPELINES[kind.__name__]
            raise IncompatibleError(f"{type(pipe).__name__} cannot run with a fewstep scheduler: {reason}; {way_out}")


def scheduler_config_of(pipe: Any) -> Mapping[str, Any]:
    """The config of the scheduler that a pipeline has. Errors: IncompatibleError for what has none, or is refused."""
    check_pipeline(pipe)
    scheduler = getattr(pipe, "scheduler", None)
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise IncompatibleError(
            f"{type(pipe).__name__} has no scheduler with a config: expected a diffusers pipeline such as "
            "StableDiffusionPipeline; for a config by itself use FewstepScheduler.from_config(config)"
        )
    return {"_class_name": type(scheduler).__name__, **config}  # a config that was not loaded from a file has no name
