"""Perturbation guidance written plainly: whole maps, a forward of its own, a combination by hand.

Shares no code with the library: attention is computed in float64 from a materialised map, which is
changed entry by entry, and the guided prediction is put together outside the pipeline.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SDPA = F.scaled_dot_product_attention


@dataclass
class Reference:
    """What is perturbed and how.

    Attributes:
        paths: Attention modules.
        text_first: Text tokens come before the image tokens; None if there are none.
        scale: Weight of the guidance.
        strength: Of each head; heads that are not named have 0.
        target: Name of the target map.
        form: Name of the form.
        guidance: The pipeline's own guidance scale; None if it has a single branch.
        is_batched: The branches share a batch, uncond first; else cond is called first.
    """

    paths: Sequence[str]
    text_first: bool | None
    scale: float = 2.0
    strength: float = 1.0
    heads: Sequence[int] | None = None
    target: str = "identity"
    form: str = "joint"
    guidance: float | None = None
    is_batched: bool = True
    perturbed: list[Tensor] = field(default_factory=list)
    _inside: str = ""
    _text: int = 0
    _kept: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def installed(self, denoiser: nn.Module) -> Generator[None]:
        """Let every forward of a denoiser return the guided prediction inside this block."""
        forward = denoiser.forward
        with ExitStack() as stack:
            denoiser.forward = lambda **inputs: self._guide(forward, inputs)
            stack.callback(lambda: denoiser.__dict__.pop("forward"))
            for path in self.paths:
                module = denoiser.get_submodule(path)
                handles = [
                    module.register_forward_pre_hook(lambda *_, path=path: self._enter(path)),
                    module.register_forward_hook(lambda *_: self._enter("")),
                ]
                for handle in handles:
                    stack.callback(handle.remove)
            yield

    def _enter(self, path: str) -> None:
        self._inside = path

    def _guide(self, forward: Any, inputs: dict[str, Any]) -> Any:
        mine = forward(**inputs)[0]
        if self._kept is not None:  # the second call of a step: uncond alone
            cond, weak = self._kept
            self._kept = None
            guided = self._combine(mine, cond, weak)
            return ((guided - self.guidance * cond) / (1 - self.guidance),)
        uncond, cond = mine.chunk(2) if self.is_batched else (None, mine)
        weak = self._weak(forward, inputs, len(cond))
        if self.guidance is not None and not self.is_batched:
            self._kept = (cond, weak)
            return (cond,)
        guided = self._combine(uncond, cond, weak)
        return (torch.cat([guided] * (len(mine) // len(guided))),)

    def _combine(self, uncond: Tensor | None, cond: Tensor, weak: Tensor) -> Tensor:
        away = self.scale * (cond - weak)
        if uncond is None or self.guidance is None:
            return cond + away
        return uncond + self.guidance * (cond - uncond) + away

    def _weak(self, forward: Any, inputs: dict[str, Any], rows: int) -> Tensor:
        """The prediction of the conditional rows alone, with perturbed attention."""
        mine = {
            name: value[-rows:] if _has_rows(name, value, inputs) else value
            for name, value in inputs.items()
        }
        self._text = 0 if self.text_first is None else mine["encoder_hidden_states"].shape[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", self._attention)
            weak = forward(**mine)[0]
        self.perturbed.append(weak)
        return weak

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if not self._inside:
            return SDPA(query, key, value, **options)
        tokens = query.shape[2]
        text = 0 if self._inside.endswith("attn2") else self._text
        positions = torch.arange(tokens)
        is_image = positions >= text if self.text_first else positions < tokens - text
        return self.attend(query, key, value, options.get("attn_mask"), is_image)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_image: Tensor
    ) -> Tensor:
        """Attention with ``(1 - u) A + u A'`` in the chosen heads."""
        q, k, v = query.double(), key.double(), value.double()
        factor = q.shape[-1] ** -0.5
        bias = _bias(mask, q, k)
        probs = _softmax(q @ k.mT * factor + bias)
        weak = self._target(q, k, bias, factor, is_image)
        if self.form != "joint":
            weak[:, :, ~is_image] = probs[:, :, ~is_image]
        strength = torch.zeros(1, q.shape[1], 1, 1, dtype=torch.float64)
        strength[:, list(range(q.shape[1]) if self.heads is None else self.heads)] = self.strength
        return (((1 - strength) * probs + strength * weak) @ v).to(query.dtype)

    def _target(
        self, q: Tensor, k: Tensor, bias: Tensor, factor: float, is_image: Tensor
    ) -> Tensor:
        tokens = q.shape[2]
        rows = (q.shape[0], q.shape[1], tokens, tokens)
        if self.form == "image-block":
            others = is_image[:, None] & is_image & ~torch.eye(tokens, dtype=torch.bool)
            logits = q @ k.mT * factor + bias
            return _softmax(logits.masked_fill(others, -torch.inf))
        if self.target == "uniform":
            allowed = (bias > -5000).double().expand(rows)
            return allowed / allowed.sum(-1, keepdim=True).clamp_min(1)
        if self.target == "query-mean":
            chosen = q if self.form == "joint" else q[:, :, is_image]
            return (
                _softmax(chosen.mean(2, keepdim=True) @ k.mT * factor + bias).expand(rows).clone()
            )
        some = (bias > -torch.inf).any(-1, keepdim=True)
        return (torch.eye(tokens, dtype=torch.float64) * some).expand(rows).clone()


def _bias(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    bias = torch.zeros(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.float64)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, -torch.inf)
    return bias + mask.double()


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1).nan_to_num(0.0)  # a row without any key


def _has_rows(name: str, value: Any, inputs: dict[str, Any]) -> bool:
    latents = inputs["hidden_states"]
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(latents)
