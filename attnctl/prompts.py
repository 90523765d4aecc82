"""What the text encoders were given: token ids of each item's prompt."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from attnctl.errors import AttnctlError
from attnctl.hooks import ForwardHook
from attnctl.run import pipeline_frame
from attnctl.segments import TextSegment, text_segments
from attnctl.tokens import PromptTokens


class PromptWatch:
    """Listens to the text encoders inside a pipeline's own call.

    Every pipeline of diffusers encodes the prompts first and the negative prompts second, so an
    encoder's first call is the one that counts.
    """

    def __init__(self, pipe: Any | None) -> None:
        self._pipe = pipe
        self._ids: dict[str, Tensor] = {}
        self._call: int | None = None
        self._is_used = False
        self._segments = _segments(pipe)

    def install(self) -> Callable[[], None]:
        """Hook the text encoders; return what takes the hooks off again."""
        stack = ExitStack()
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
        frame = pipeline_frame(self._pipe)
        if frame is None:
            return
        if id(frame) != self._call or self._is_used:
            self.clear()
            self._call = id(frame)
        self._ids.setdefault(encoder, ids.detach())

    def clear(self) -> None:
        """Forget what was encoded."""
        self._ids, self._call, self._is_used = {}, None, False

    def of_items(self, items: int) -> tuple[tuple[PromptTokens, ...], ...] | None:
        """For each item, its prompt as each encoder sees it; ``None`` if none was encoded."""
        self._is_used = True
        prompts: list[list[PromptTokens]] = [[] for _ in range(items)]
        for segment in self._segments:
            ids = self._ids.get(segment.encoder)
            if ids is None or items % ids.shape[0]:
                continue
            repeats = items // ids.shape[0]
            for i, row in enumerate(ids.cpu()):
                tokens = PromptTokens.from_ids(
                    segment.tokenizer, row, segment.encoder, segment.offset
                )
                for item in range(i * repeats, (i + 1) * repeats):
                    prompts[item].append(tokens)
        if not all(prompts):
            return None
        return tuple(tuple(prompt) for prompt in prompts)


def _segments(pipe: Any | None) -> tuple[TextSegment, ...]:
    if pipe is None:
        return ()
    try:
        return text_segments(pipe)
    except AttnctlError:
        return ()
