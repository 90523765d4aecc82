"""What the text encoders were given: token ids of each item's prompt."""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

from torch import Tensor, nn

from attnctl.engine.hooks import ForwardHook
from attnctl.engine.run import pipeline_frame
from attnctl.errors import AttnctlError
from attnctl.segments import TextSegment, text_segments
from attnctl.tokens import PromptTokens


class PromptWatch:
    """Listens to the text encoders inside a pipeline's own call.

    Every pipeline of diffusers encodes the prompts first and the negative prompts second, so an
    encoder's first call is the one that counts.
    """

    def __init__(self, pipe: Any | None) -> None:
        self._pipe = pipe
        self._heard: dict[int, tuple[FrameType, dict[str, Tensor]]] = {}  # by thread
        self._segments = _segments(pipe)

    def install(self) -> Callable[[], None]:
        """Hook the text encoders; return what takes the hooks off again."""
        stack = ExitStack()
        stack.callback(self._heard.clear)
        for segment in self._segments:
            encoder = getattr(self._pipe, segment.encoder, None)
            if isinstance(encoder, nn.Module):
                hook = ForwardHook(partial(self._on_forward, segment.encoder))
                handle = encoder.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        return stack.close

    def _on_forward(
        self, encoder: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Keep the first ids that an encoder gets in a pipeline call."""
        ids = args[0] if args else kwargs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
            return
        frame, thread = pipeline_frame(self._pipe), threading.get_ident()
        if frame is None or frame.f_locals.get("prompt", "") is None:
            return  # beside prompt_embeds only the negative prompt is encoded
        known = self._heard.get(thread)
        if known is None or known[0] is not frame:
            known = self._heard[thread] = (frame, {})
        known[1].setdefault(encoder, ids.detach())

    def forget(self) -> None:
        """Forget what was heard: text that a technique had encoded is no prompt of the user's."""
        self._heard.pop(threading.get_ident(), None)

    def of_items(self, items: int) -> tuple[tuple[PromptTokens, ...], ...] | None:
        """For each item, its prompt as each encoder sees it; ``None`` if none was encoded.

        Asked once a run; what was heard is forgotten, and with it the pipeline call's frame.
        """
        frame, heard = self._heard.pop(threading.get_ident(), (None, {}))
        if frame is None or frame is not pipeline_frame(self._pipe):
            return None
        prompts: list[list[PromptTokens]] = [[] for _ in range(items)]
        for known in self._segments:
            ids, segment = heard.get(known.encoder), _in_call(known, frame.f_locals)
            if segment is None or ids is None or items % ids.shape[0]:
                continue
            repeats = items // ids.shape[0]
            for i, row in enumerate(ids.cpu()):
                tokens = PromptTokens.from_ids(
                    segment.tokenizer,
                    segment.on_axis(row.tolist()),
                    segment.encoder,
                    segment.offset,
                )
                for item in range(i * repeats, (i + 1) * repeats):
                    prompts[item].append(tokens)
        if not all(prompts):
            return None
        return tuple(tuple(prompt) for prompt in prompts)


def _in_call(segment: TextSegment, call: Mapping[str, Any]) -> TextSegment | None:
    """The segment with the template of this call; ``None`` if it is not known where that ends."""
    template = call.get("prompt_template")
    if segment.template is None or not isinstance(template, Mapping):
        return segment
    start: Any = template.get("crop_start")
    return None if start is None else replace(segment, template=start)


def _segments(pipe: Any | None) -> tuple[TextSegment, ...]:
    if pipe is None:
        return ()
    try:
        return text_segments(pipe)
    except AttnctlError:
        return ()
