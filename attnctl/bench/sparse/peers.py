"""Public code of token merging, agents and down-sampling, run beside ours where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import nn

from attnctl.errors import UnsupportedModelError

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """Public code of a technique.

    Attributes:
        name: What tables call it.
        module: What is imported, and the name that must be in it.
        origin: Where a person finds it.
        settings: What it is called with.
        ours: Technique and settings that mean the same.
        apply: Changes a U-Net: ``(module, pipe, settings) -> undo``.
        channels: Widths at which it acts; empty: any.
        compares_before_norm: Finds alike tokens before the first norm of a block, where ours
            compares what the attention module is given.
    """

    name: str
    module: tuple[str, str]
    origin: str
    settings: Settings
    ours: tuple[str, Settings]
    apply: Callable[[Any, Any, Settings], Callable[[], None]]
    channels: tuple[int, ...] = ()
    compares_before_norm: bool = field(default=True, kw_only=True)

    def why_missing(self) -> str | None:
        """Why it cannot run here, ``None`` if it can."""
        module, needed = self.module
        if importlib.util.find_spec(module) is None:
            return f"{self.name} is not installed: {self.origin}"
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            return f"{self.name} cannot be imported: {error}"
        if not hasattr(found, needed):
            return f"the module {module!r} here is not {self.name}: {self.origin}"
        return None

    def why_not(self, pipe: Any) -> str | None:
        """Why it cannot run on a pipeline, ``None`` if it can."""
        if (missing := self.why_missing()) is not None:
            return missing
        unet = getattr(pipe, "unet", None)
        if unet is None:
            return f"{self.name} knows U-Nets only"
        width = unet.config.block_out_channels[0]
        if self.channels and width not in self.channels:
            return f"{self.name} acts at {self.channels} channels only, not at {width}"
        return None

    @contextmanager
    def applied(self, pipe: Any) -> Generator[None]:
        """Change the pipeline for the length of a block.

        Raises:
            UnsupportedModelError: it cannot run here.
        """
        reason = self.why_not(pipe)
        if reason is not None:
            raise UnsupportedModelError(reason)
        undo = self.apply(importlib.import_module(self.module[0]), pipe, self.settings)
        try:
            yield
        finally:
            undo()


def _apply_tomesd(module: Any, pipe: Any, settings: Settings) -> Callable[[], None]:
    module.apply_patch(pipe, **settings)
    return lambda: module.remove_patch(pipe)


def _apply_agentsd(module: Any, pipe: Any, settings: Settings) -> Callable[[], None]:
    """Its code for CompVis models on blocks of diffusers, whose names and arguments differ."""
    blocks = blocks_of(pipe.unet)
    attentions = [a for block in blocks for a in (block.attn1, block.attn2)]
    kept = [(a, a.__class__, a.to_out) for a in attentions]
    for attention in attentions:
        attention.to_out = nn.Sequential(*attention.to_out)
    compvis = nn.Module()
    compvis.model = nn.Module()
    compvis.model.diffusion_model = pipe.unet
    module.apply_patch(compvis, **settings)
    for block in blocks:
        block.forward = MethodType(_compvis_forward, block)

    def undo() -> None:
        module.remove_patch(compvis)
        for attention, cls, projection in kept:
            attention.__class__, attention.to_out = cls, projection
        for block in blocks:
            del block.forward

    return undo


def _compvis_forward(
    block: Any, hidden_states: Any, *_: Any, encoder_hidden_states: Any = None, **__: Any
) -> Any:
    return block._forward(hidden_states, context=encoder_hidden_states)


def _apply_todo(module: Any, pipe: Any, settings: Settings) -> Callable[[], None]:
    unet = pipe.unet
    kept = dict(unet.attn_processors)
    info: dict[str, Any] = {"size": None, "timestep": None, "args": dict(settings)}

    def tell(_: Any, given: Any) -> None:
        info["size"], info["timestep"] = tuple(given[0].shape[2:]), float(given[1])

    hook = unet.register_forward_pre_hook(tell)
    for block in blocks_of(unet):
        block.attn1.processor = module.TokenMergeAttentionProcessor()
        block.attn1.processor._tome_info = info

    def undo() -> None:
        hook.remove()
        unet.set_attn_processor(kept)

    return undo


def blocks_of(unet: Any) -> list[Any]:
    """Transformer blocks of a U-Net."""
    return [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]


PEERS = (
    Peer(
        "tomesd",
        ("tomesd", "apply_patch"),
        "pip install tomesd",
        {"ratio": 0.5, "sx": 2, "sy": 2, "use_rand": False},
        ("token-merging", {"ratio": 0.5, "cell": 2, "destinations": "corner"}),
        _apply_tomesd,
    ),
    Peer(
        "agentsd",
        ("agentsd", "apply_patch"),
        "folder agentsd of github.com/LeapLabTHU/Agent-Attention on PYTHONPATH, with einops",
        {"ratio": 0.4, "sx": 4, "sy": 4, "agent_ratio": 0.95, "use_rand": False},
        (
            "agent-attention",
            {"ratio": 0.4, "agent_ratio": 0.95, "destinations": "corner", "steps": "always"},
        ),
        _apply_agentsd,
    ),
    Peer(
        "ToDo",
        ("merge", "TokenMergeAttentionProcessor"),
        "github.com/ethansmith2000/ImprovedTokenMerge on PYTHONPATH, with xformers",
        {
            "merge_tokens": "keys/values",
            "merge_method": "downsample",
            "secondary_merge_method": "downsample",
            "downsample_method": "nearest-exact",
            "downsample_factor": 2,
            "downsample_factor_level_2": 1,
            "ratio": 0.0,
            "ratio_level_2": 0.0,
            "timestep_threshold_switch": 0.0,
            "timestep_threshold_stop": -1.0,
        },
        ("token-downsampling", {"factor": 2}),
        _apply_todo,
        (320, 640),
        compares_before_norm=False,
    ),
)
