"""How diffusers' pipelines lay out guidance: data, by the names of their classes, each row read and run by a test.

A pipeline that is not here is refused, never guessed. Nothing here imports diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import IncompatibleError

Kind = Literal["batched", "separate", "guider"]

TAKE_OVER: dict[str, str] = {
    "batched": "attach_batched",
    "separate": "attach_separate",
    "guider": "guider",
}
"""Kind -> the module of this package whose `taken_over(session)` is entered for every call of such a pipeline.

It may give further keywords for the call."""


@dataclass(frozen=True)
class Layout:
    """How the calls of a pipeline evaluate guidance.

    kind: "batched": one forward of [uncond, cond]. "separate": a forward each. "guider": a BaseGuidance object asks.
    order: of the branches, in the batch or in time.
    denoisers: the attributes of the pipeline that hold what is called.       controls: ControlNets, called before.
    scale: the keyword of the call that holds w.
    is_on: whether a call has guidance: "property" (do_classifier_free_guidance), or "argument": `scale` is above 1.
    more: a keyword that marks a further pass of its own, which no policy decides on.
    doubled: whether the scheduler steps the doubled batch.
    guiders: the attributes that hold guiders.
    negated: whether the pipeline turns the network's output around before the scheduler gets it.
    """

    kind: Kind
    order: tuple[str, ...] = ("uncond", "cond")
    denoisers: tuple[str, ...] = ("transformer",)
    controls: tuple[str, ...] = ()
    scale: str = "guidance_scale"
    is_on: Literal["property", "argument"] = "property"
    more: str | None = None
    doubled: bool = False
    guiders: tuple[str, ...] = ()
    negated: bool = False


# --- one forward for all branches -----------------------------------------------------------------------------------

_UNET = Layout("batched", denoisers=("unet",))
_CONTROLLED = Layout("batched", denoisers=("unet",), controls=("controlnet",))
_BY_ARGUMENT = Layout("batched", is_on="argument")

BATCHED: dict[str, Layout] = {
    "StableDiffusionPipeline": _UNET,
    "StableDiffusionImg2ImgPipeline": _UNET,
    "StableDiffusionInpaintPipeline": _UNET,
    "StableDiffusionControlNetPipeline": _CONTROLLED,
    "StableDiffusionControlNetImg2ImgPipeline": _CONTROLLED,
    "StableDiffusionControlNetInpaintPipeline": _CONTROLLED,
    "StableDiffusionXLPipeline": _UNET,
    "StableDiffusionXLImg2ImgPipeline": _UNET,
    "StableDiffusionXLInpaintPipeline": _UNET,
    "StableDiffusionXLControlNetPipeline": _CONTROLLED,
    "StableDiffusionXLControlNetImg2ImgPipeline": _CONTROLLED,
    "StableDiffusionXLControlNetInpaintPipeline": _CONTROLLED,
    "StableDiffusion3Pipeline": Layout("batched", more="skip_layers"),
    "StableDiffusion3Img2ImgPipeline": Layout("batched"),
    "PixArtAlphaPipeline": _BY_ARGUMENT,
    "PixArtSigmaPipeline": _BY_ARGUMENT,
    "SanaPipeline": Layout("batched"),
    "AuraFlowPipeline": _BY_ARGUMENT,
    "CogView3PlusPipeline": Layout("batched"),
    "HunyuanDiTPipeline": Layout("batched"),
    "DiTPipeline": Layout("batched", order=("cond", "uncond"), is_on="argument", doubled=True),
    "LTXPipeline": Layout("batched"),
    "CogVideoXPipeline": _BY_ARGUMENT,
    "MochiPipeline": Layout("batched"),
    "LattePipeline": _BY_ARGUMENT,
    "AllegroPipeline": _BY_ARGUMENT,
}

# --- a forward for each branch, and guiders --------------------------------------------------------------------------

_TWO = Layout("separate", order=("cond", "uncond"))
_TRUE_CFG = replace(_TWO, scale="true_cfg_scale")
_WAN = replace(_TWO, denoisers=("transformer", "transformer_2"))

SEPARATE: dict[str, Layout] = {
    "FluxPipeline": _TRUE_CFG,
    "FluxImg2ImgPipeline": _TRUE_CFG,
    "QwenImagePipeline": _TRUE_CFG,
    "QwenImageImg2ImgPipeline": _TRUE_CFG,
    "ChromaPipeline": _TWO,
    "CogView4Pipeline": _TWO,
    "Lumina2Pipeline": replace(_TWO, negated=True),
    "WanPipeline": _WAN,
    "WanImageToVideoPipeline": _WAN,
}

GUIDERS: dict[str, Layout] = {
    "HunyuanVideo15Pipeline": Layout("guider", guiders=("guider",)),
    "StableDiffusionXLModularPipeline": Layout("guider", denoisers=("unet",), guiders=("guider",)),
    "WanModularPipeline": Layout("guider", denoisers=("transformer", "transformer_2"), guiders=("guider", "guider_2")),
    "HunyuanImagePipeline": Layout("guider", guiders=("guider", "ocr_guider")),
}

LAYOUTS: dict[str, Layout] = {**BATCHED, **SEPARATE, **GUIDERS}

_SAMPLE = "use fewstep.sample(...) with the model's parts, or attach(pipe, solver=...) without guidance"
_THREE = "its guidance mixes three predictions, and only two (uncond, cond) are supported"
REFUSED: dict[str, str] = {
    "StableDiffusionInstructPix2PixPipeline": _THREE,
    "StableDiffusionXLInstructPix2PixPipeline": _THREE,
    "StableDiffusionPAGPipeline": _THREE,
    "StableDiffusionXLPAGPipeline": _THREE,
    "StableDiffusion3PAGPipeline": _THREE,
    "FluxControlPipeline": "its guidance is part of the network, there is no unconditional evaluation to save",
}


def layout_of(pipe: Any) -> Layout:
    """The layout of a pipeline. A subclass counts as its parent where it has the parent's `__call__`.

    Errors: IncompatibleError for a pipeline that is not known.
    """
    for kind in type(pipe).__mro__:
        if kind.__module__.split(".")[0] == "diffusers" and kind.__name__ in LAYOUTS:
            if type(pipe).__call__ is kind.__call__:  # type: ignore[attr-defined]
                return LAYOUTS[kind.__name__]
    name = type(pipe).__name__
    reason = REFUSED.get(name, "how it lays out guidance is not known here, and fewstep does not guess")
    raise IncompatibleError(f"guidance cannot be attached to {name}: {reason}. Supported: "
                            f"{', '.join(sorted(LAYOUTS))}. The way out: {_SAMPLE}")  # fmt: skip


# --- which arguments of a denoiser carry the batch ------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """The arguments of a denoiser's forward that have one row per row of the batch; all others must hold no tensor.

    sample: what is denoised.       channels: the dimension of its channels; where input and output differ in them,
    the first ones are the latents.       time: (rows,), or one number for all.
    rows: arguments that are a tensor, or a list of tensors, with the batch in front, or None.
    nested: of arguments that are mappings, the keys that are.       whole: arguments without a batch.
    """

    sample: str
    channels: int
    rows: tuple[str, ...]
    time: str = "timestep"
    nested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    whole: tuple[str, ...] = ()


_ADDED = {"added_cond_kwargs": ("text_embeds", "time_ids", "image_embeds", "resolution", "aspect_ratio")}
_TEXT = ("encoder_hidden_states", "encoder_attention_mask")
_IDS = ("txt_ids", "img_ids")
_CONTROL = ("encoder_hidden_states", "controlnet_cond", "class_labels", "timestep_cond", "attention_mask")

SIGNATURES: dict[str, Signature] = {
    "UNet2DConditionModel": Signature(
        "sample",
        1,
        ("encoder_hidden_states", "class_labels", "timestep_cond", "attention_mask", "encoder_attention_mask",
         "down_block_additional_residuals", "mid_block_additional_residual"),
        nested=_ADDED,
    ),
    "ControlNetModel": Signature("sample", 1, _CONTROL, nested=_ADDED),
    "MultiControlNetModel": Signature("sample", 1, _CONTROL, nested=_ADDED),
    "SD3Transformer2DModel": Signature("hidden_states", 1, ("encoder_hidden_states", "pooled_projections")),
    "PixArtTransformer2DModel": Signature("hidden_states", 1, _TEXT, nested=_ADDED),
    "SanaTransformer2DModel": Signature("hidden_states", 1, _TEXT),
    "AuraFlowTransformer2DModel": Signature("hidden_states", 1, ("encoder_hidden_states",)),
    "CogView3PlusTransformer2DModel": Signature(
        "hidden_states", 1, ("encoder_hidden_states", "original_size", "target_size", "crop_coords")
    ),
    "HunyuanDiT2DModel": Signature(
        "hidden_states",
        1,
        ("encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5",
         "image_meta_size", "style"),
        whole=("image_rotary_emb",),
    ),
    "DiTTransformer2DModel": Signature("hidden_states", 1, ("class_labels",)),
    "LatteTransformer3DModel": Signature("hidden_states", 1, _TEXT),
    "AllegroTransformer3DModel": Signature("hidden_states", 1, _TEXT, whole=("image_rotary_emb",)),
    "LTXVideoTransformer3DModel": Signature("hidden_states", 2, _TEXT),
    "CogVideoXTransformer3DModel": Signature(
        "hidden_states", 2, ("encoder_hidden_states",), whole=("image_rotary_emb",)
    ),
    "MochiTransformer3DModel": Signature("hidden_states", 1, _TEXT),
    "FluxTransformer2DModel": Signature(
        "hidden_states", 2, ("encoder_hidden_states", "pooled_projections", "guidance"), whole=_IDS
    ),
    "ChromaTransformer2DModel": Signature(
        "hidden_states", 2, ("encoder_hidden_states", "attention_mask"), whole=_IDS
    ),
    "QwenImageTransformer2DModel": Signature(
        "hidden_states", 2, ("encoder_hidden_states", "encoder_hidden_states_mask", "guidance")
    ),
    "CogView4Transformer2DModel": Signature(
        "hidden_states", 1, ("encoder_hidden_states", "original_size", "target_size", "crop_coords")
    ),
    "Lumina2Transformer2DModel": Signature("hidden_states", 1, _TEXT),
    "WanTransformer3DModel": Signature("hidden_states", 1, ("encoder_hidden_states", "encoder_hidden_states_image")),
}  # fmt: skip


def signature_of(module: Any) -> Signature:
    """The signature of a denoiser, compiled or not. Errors: IncompatibleError for a class that is not known."""
    inner = getattr(module, "_orig_mod", module)
    for kind in type(inner).__mro__:
        if kind.__name__ in SIGNATURES:
            return SIGNATURES[kind.__name__]
    raise IncompatibleError(f"which arguments of {type(inner).__name__} carry the batch is not known here; known: "
                            f"{', '.join(sorted(SIGNATURES))}. Use attach(pipe, solver=...) alone")  # fmt: skip
