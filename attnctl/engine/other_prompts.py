"""A prompt beside the pipeline's own: encoded once a run, shown to added rows and to sites.

An added row with such a prompt is given its embeddings as arguments. A cross-attention site makes
keys and values of it by its own processor, from the text as the denoiser hands it to its sites.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnctl.engine.chain import InterceptedCall, ProcessorCall, run_controlled
from attnctl.engine.links import StopForward
from attnctl.engine.needs import AddedRow, OtherPrompt
from attnctl.engine.roles import Row, Rows
from attnctl.engine.rows import take_rows
from attnctl.engine.run import Run, pipeline_frame
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.families import Family
from attnctl.technique import Technique

if TYPE_CHECKING:
    from attnctl.engine.denoiser import DenoiserDriver

SiteText = Mapping[str, Any]
"""What a cross-attention site is given of a text: arguments of its processor, one row each."""

Keys = tuple[Tensor, Tensor, Tensor | None]
"""Key and value ``(1, H, tokens, D)``, and the mask that goes with them."""

KeysMaker = Callable[[ProcessorCall], Keys]

_SITE_ARGUMENTS = ("encoder_hidden_states", "attention_mask")
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_FROM_THE_CALL = ("max_sequence_length", "clip_skip", "lora_scale", "clean_caption")


def with_prompts(
    driver: "DenoiserDriver",
    run: Run,
    added: Sequence[AddedRow],
    inputs: Mapping[str, Any],
    rows: Rows,
) -> tuple[AddedRow, ...]:
    """Give added rows that have a prompt of their own its embeddings as arguments."""
    result: list[AddedRow] = []
    for row in added:
        if row.prompt is not None:
            own = take_rows(inputs, driver.family.batched, len(rows), row.shadowed(rows))
            arguments = _fitted(encoded(driver, run, row.prompt), own)
            _check_lengths(arguments, own)
            row = replace(row, arguments=arguments)
        result.append(row)
    return tuple(result)


def keys_makers(
    driver: "DenoiserDriver",
    run: Run,
    active: Sequence[Technique],
    inputs: Mapping[str, Any],
    rows: Rows,
) -> dict[str, KeysMaker]:
    """What makes keys of each technique's other prompt at cross-attention sites, by its label."""
    found: dict[str, KeysMaker] = {}
    for technique in active:
        prompt = technique.needs().other_prompt
        sites = () if prompt is None else driver.planner.sites_of(technique)
        if prompt and any(s.kind == "cross" and s.denoiser == driver.name for s in sites):
            text = _site_text(driver, run, prompt, inputs, rows)
            if text is not None:
                label = driver.planner.label(technique)
                found[label] = partial(keys_of, driver.family, text)
    return found


def _site_text(
    driver: "DenoiserDriver",
    run: Run,
    prompt: OtherPrompt,
    inputs: Mapping[str, Any],
    rows: Rows,
) -> SiteText | None:
    """What cross-attention sites are given of a prompt; ``None`` if no conditional row is there.

    Found once a run by a forward of one row that stops at the first cross-attention site, so that
    whatever the denoiser does to a text before its blocks is done to this one too.
    """
    key = (driver.name, *prompt.key)
    place = next((i for i, row in enumerate(rows) if row == Row("cond", row.item)), None)
    if key not in run.site_texts and place is not None:
        own = take_rows(inputs, driver.family.batched, len(rows), [place])
        arguments = own | _fitted(encoded(driver, run, prompt), own)
        run.site_texts[key] = _first_site_text(driver, arguments, rows[place])
    return run.site_texts.get(key)


def keys_of(family: Family, text: SiteText, given: ProcessorCall) -> Keys:
    """Key, value and mask that a site's own processor makes of another text.

    The processor runs for one query token and stops at its attention, so LoRA, norms, fused
    projections and adapters are all in what it made.
    """
    arguments = {**given.arguments(), **text}
    # (rows, tokens, channels): keys do not depend on the queries.
    arguments["hidden_states"] = arguments["hidden_states"][:1, :1]
    seen = _Seen(family, given)
    with suppress(StopForward):
        run_controlled(seen, ProcessorCall(given.processor, given.attn, (), arguments))
    made = seen.call
    return made.kwargs["key"], made.kwargs["value"], made.mask


class _Seen:
    """Keeps the attention call of a processor, and stops it."""

    call: InterceptedCall

    def __init__(self, family: Family, given: ProcessorCall) -> None:
        self._family, self._attn = family, given.attn

    def is_main(self, call: int) -> bool:
        """Whether the n-th attention call is the site's own."""
        return self._family.main_call(self._attn, call)

    def leaves_out(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the processor makes no attention call with these arguments."""
        return self._family.leaves_out(arguments)

    def attend(self, intercepted: InterceptedCall) -> Tensor:
        """Keep the call."""
        self.call = intercepted
        raise StopForward


def _first_site_text(driver: "DenoiserDriver", arguments: dict[str, Any], row: Row) -> SiteText:
    """What the first cross-attention site is given in a forward with these arguments."""
    found: list[ProcessorCall] = []

    def keep(call: ProcessorCall) -> None:
        found.append(call)
        raise StopForward

    with torch.no_grad(), driver.open_pass("extra", (row,), None) as forward:
        driver.active = {p: s for p, s in driver.active.items() if s.site.kind == "cross"}
        driver.probe = keep
        try:
            forward(arguments)
        finally:
            driver.probe = None
    given = found[0].arguments()
    return {name: _first_row(given[name]) for name in _SITE_ARGUMENTS if name in given}


def _first_row(value: Any) -> Any:
    """The first row of every tensor; frames in the batch all see the same text."""
    if isinstance(value, Tensor):
        return value[:1]
    if isinstance(value, tuple | list):
        return type(value)(_first_row(one) for one in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return value


def encoded(driver: "DenoiserDriver", run: Run, prompt: OtherPrompt) -> Mapping[str, Tensor]:
    """The denoiser's text arguments for a prompt, ``(1, ...)`` each; encoded once a run."""
    if prompt.arguments is not None:
        missing = [n for n in driver.family.prompt_arguments if n not in prompt.arguments]
        if missing:
            raise SettingError(
                f"the other prompt's embeddings lack {', '.join(missing)}; "
                f"{driver.family.name} takes {', '.join(driver.family.prompt_arguments)}"
            )
        return prompt.arguments
    if prompt.text not in run.encoded:
        run.encoded[prompt.text] = _encode(driver, prompt.text)
    return run.encoded[prompt.text]


def _encode(driver: "DenoiserDriver", text: str) -> dict[str, Tensor]:
    pipe: Any = driver.runs.pipe
    encode: Any = getattr(pipe, "encode_prompt", None)
    places = driver.family.prompt_arguments
    has_encoder = any(getattr(pipe, name, None) for name in _TEXT_ENCODERS)
    if encode is None or not places or not has_encoder:
        target = type(driver.model if pipe is None else pipe).__name__
        raise UnsupportedModelError(
            f"{text!r} cannot be encoded: {target} has no text encoder, or no encode_prompt whose "
            "answer is described; give the embeddings themselves, as the denoiser's arguments: "
            "negative_embeds={'encoder_hidden_states': ...}"
        )
    frame = pipeline_frame(pipe)
    local = {} if frame is None else frame.f_locals
    settings = {name: local[name] for name in _FROM_THE_CALL if name in local} | {
        "prompt": text,
        "prompt_2": None,
        "prompt_3": None,
        "device": pipe._execution_device,
        "num_images_per_prompt": 1,
        "num_videos_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    accepted = inspect.signature(encode).parameters
    with torch.no_grad():
        made = encode(**{k: v for k, v in settings.items() if k in accepted})
    driver.runs.prompts.forget()
    return {name: made[place] for name, place in places.items()}


def _fitted(arguments: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Repeat a prompt's arguments for the rows (times frames) of ``own``, in their dtype."""
    fitted: dict[str, Tensor] = {}
    for name, value in arguments.items():
        like = own.get(name)
        if not isinstance(like, Tensor):
            raise SettingError(
                f"the denoiser is not given {name!r} as a tensor in this run; its tensors: "
                + ", ".join(sorted(n for n, v in own.items() if isinstance(v, Tensor)))
            )
        if (value.dim(), value.shape[0], value.shape[2:]) != (like.dim(), 1, like.shape[2:]):
            raise SettingError(
                f"{name} of the other prompt has the shape {tuple(value.shape)}; wanted is one row "
                f"like those of the prompt, (1, ...) of {tuple(like.shape)}"
            )
        fitted[name] = value.to(like).expand(like.shape[0], *value.shape[1:])
    return fitted


def _check_lengths(arguments: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """Refuse what cannot stand in one batch with the prompt."""
    for name, value in arguments.items():
        if value.shape != own[name].shape:
            raise SettingError(
                f"{name} of the other prompt has {value.shape[1]} tokens and that of the prompt "
                f"{own[name].shape[1]}; they share a batch here, so encode both with the same "
                "max_sequence_length"
            )
