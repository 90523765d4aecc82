"""What a pipeline's own call says of its guidance: the one place where it is looked up."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attnctl.engine.predictions import Guidance
from attnctl.engine.run import pipeline_frame


def read_guidance(pipe: Any | None, from_cond: bool = False) -> Guidance:
    """Guidance of the pipeline call that this thread is in; nothing is known outside of one.

    ``from_cond`` says that the pipeline counts its scale from the conditional prediction.

    Some pipelines keep their scale on themselves, others in a variable of the call. A variable of
    the present step comes first (Wan has a scale for each transformer), then ``true_cfg_scale``
    (beside it, ``guidance_scale`` is an input of a distilled model).
    """
    frame = None if pipe is None else pipeline_frame(pipe)
    if frame is None:
        return Guidance()
    call = frame.f_locals
    guider = call.get("guider") or getattr(pipe, "guider", None)  # of this call: one for lettering
    if guider is not None:
        return _guidance_of(guider)
    scale = _first_number(
        call.get("current_guidance_scale"),
        call.get("true_cfg_scale"),
        getattr(pipe, "guidance_scale", None),
        getattr(pipe, "_guidance_scale", None),
        call.get("guidance_scale"),
    )
    is_on = _is_on(pipe, call, scale)
    if call.get("use_dynamic_cfg"):  # the scale of this step is set after the denoiser's call
        scale = None
    if scale is not None and from_cond:
        scale += 1.0
    image_scale = _first_number(
        getattr(pipe, "image_guidance_scale", None), call.get("image_guidance_scale")
    )
    rescale = _first_number(
        getattr(pipe, "guidance_rescale", None),
        getattr(pipe, "_guidance_rescale", None),
        call.get("guidance_rescale"),
    )
    return Guidance(scale, image_scale, rescale or 0.0, is_on)


def _guidance_of(guider: Any) -> Guidance:
    """What a guider object of diffusers does in this step; one that is not plain has no scale."""
    is_on = guider.num_conditions > 1
    rescale = getattr(guider, "guidance_rescale", 0.0)
    if type(guider).__name__ != "ClassifierFreeGuidance":
        return Guidance(None, None, rescale, is_on)
    # The original formula counts its weight from the conditional prediction.
    scale = guider.guidance_scale + (1.0 if guider.use_original_formulation else 0.0)
    return Guidance(scale, None, rescale, is_on)


def _is_on(pipe: Any, call: Mapping[str, Any], scale: float | None) -> bool | None:
    for said in (
        call.get("do_true_cfg"),
        getattr(pipe, "do_classifier_free_guidance", None),
        call.get("do_classifier_free_guidance"),
    ):
        if said is not None:
            return bool(said)
    return None if scale is None else scale > 1


def _first_number(*values: Any) -> float | None:
    """The first value that is there, if it is one number."""
    for value in values:
        if value is None:
            continue
        if isinstance(value, Tensor):
            return float(value) if value.numel() == 1 else None
        return float(value) if isinstance(value, int | float) else None
    return None
