"""Recorders: fill a feature store from a run, without changing it.

They are no recipe's business: the store that they fill is the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.blocks import ModelParts
from attnctl.calls import AttentionCall, Needs, Read, RunStart
from attnctl.chosen_heads import of_heads
from attnctl.editing.features import FeatureStore
from attnctl.engine.module_edits import ModuleCall
from attnctl.engine.needs import ModuleHook
from attnctl.errors import SettingError
from attnctl.named_words import find_tokens, is_word
from attnctl.technique import Technique
from attnctl.where import Where

RECORDED = ("query", "key", "value", "out")
WORDS = "words"  # what a WordRecorder calls its maps


@dataclass(frozen=True)
class AttentionRecorder(Technique):
    """Record query, key, value or output of attention sites, for the main rows of one branch.

    Query, key and value are those that attention really used, after the edits of techniques;
    ``"out"`` is its output before the output projection. Each is ``(items * fold, H, tokens, D)``.

    Attributes:
        store: Where they go, by timestep and path of the site.
        what: Some of ``"query"``, ``"key"``, ``"value"`` and ``"out"``.
        branch: Guidance branch.
    """

    name: ClassVar[str] = "attention-recorder"
    can_repeat: ClassVar[bool] = True
    no_settings: ClassVar[frozenset[str]] = frozenset({"store"})

    store: FeatureStore
    what: Sequence[str] = ("query", "key")
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        what = (self.what,) if isinstance(self.what, str) else tuple(self.what)
        if not what or any(one not in RECORDED for one in what):
            raise SettingError(f"{self.name}: what={self.what!r} must be some of {RECORDED}")
        object.__setattr__(self, "what", what)

    def begin(self, run: RunStart) -> None:
        self.store.open(run.fingerprint())

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        if call.pass_.kind != "main":
            return out
        at = call.pick(branch=self.branch, kind="main")
        given = {"query": call.query, "key": call.key, "value": call.value, "out": out}
        for what in self.what if len(at) else ():
            tensor = given[what]
            rows = tensor if len(at) == len(tensor) else tensor[at]
            self.store.put(call.step.timestep, call.site.path, what, rows)
        return out


@dataclass(frozen=True)
class ModuleRecorder(Technique):
    """Record the outputs of modules, such as residual features, for the main rows of one branch.

    Attributes:
        store: Where they go, by timestep and path of the module, as ``"output"``.
        modules: Dotted paths, such as ``"up_blocks.1.resnets.0.conv2"``.
        branch: Guidance branch.
        where: No effect: modules are named by their paths.
    """

    name: ClassVar[str] = "module-recorder"
    can_repeat: ClassVar[bool] = True
    no_settings: ClassVar[frozenset[str]] = frozenset({"store"})

    store: FeatureStore
    modules: Sequence[str]
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        modules = (self.modules,) if isinstance(self.modules, str) else tuple(self.modules)
        if not modules:
            raise SettingError(f"{self.name}: modules is empty; name the modules to record")
        object.__setattr__(self, "modules", modules)

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        return tuple(ModuleHook(path, "after", "record") for path in self.modules)

    def begin(self, run: RunStart) -> None:
        self.store.open(run.fingerprint())

    def record(self, call: ModuleCall) -> None:
        """Keep the output of a hooked module."""
        output: Any = call.output[0] if isinstance(call.output, tuple | list) else call.output
        at = call.pick(output, kind="main", branch=self.branch)
        if len(at):
            rows = output if len(at) == len(output) else output[at]
            self.store.put(call.step.timestep, call.path, "output", rows)


@dataclass(frozen=True)
class WordRecorder(Technique):
    """Record how much image tokens look at some words, for the main rows of one branch.

    The maps of all tokens of the words are summed, those of the heads averaged: ``(items * fold,
    image tokens)``, by timestep and path of the site, as ``"words"``.

    Attributes:
        store: Where they go.
        words: Words of each prompt, at their first occurrence, or token positions (BOS is 0).
        branch: Guidance branch.
        where: Attention to the text.
    """

    name: ClassVar[str] = "word-recorder"
    can_repeat: ClassVar[bool] = True
    no_settings: ClassVar[frozenset[str]] = frozenset({"store"})

    store: FeatureStore
    words: Sequence[str | int]
    branch: str = "cond"
    where: Where = field(default=Where("cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        words = (self.words,) if isinstance(self.words, str | int) else tuple(self.words)
        if not words or not all(is_word(word) for word in words):
            raise SettingError(
                f"{self.name}: words={self.words!r} must be words or token positions, such as"
                " ['cat'] or [2]"
            )
        object.__setattr__(self, "words", words)

    def needs(self) -> Needs:
        return Needs(reads=(Read("columns", branch=self.branch),), layout=True, prompts=True)

    def begin(self, run: RunStart) -> list[list[int]]:
        self.store.open(run.fingerprint())
        prompts = [one[0] for one in run.prompts] if run.prompts else [None] * run.items
        found = [find_tokens(self.name, "words", self.words, prompt) for prompt in prompts]
        return [sorted({p for positions in one for p in positions}) for one in found]

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        heads = of_heads(value, call.heads)
        items = [r.item for r in call.rows if r.branch == what.branch and r.kind == "main"]
        parts = heads.mean(dim=1).split(len(value) // len(items))
        maps = [
            part[..., call.state[item]].sum(-1) for item, part in zip(items, parts, strict=True)
        ]
        self.store.put(call.step.timestep, call.site.path, WORDS, torch.cat(maps))
