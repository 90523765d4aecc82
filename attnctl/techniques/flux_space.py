"""FluxSpace: an attribute added by moving joint attention along what its prompt stands for."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.blocks import ModelParts
from attnctl.calls import AddedRow, Needs, OtherPrompt, RunStart
from attnctl.editing.items import check_items, item_numbers
from attnctl.editing.text_streams import NAMES, text_blocks
from attnctl.engine.module_edits import ModuleCall
from attnctl.engine.needs import ModuleHook
from attnctl.errors import SettingError, nearest
from attnctl.ops.semantic_edits import (
    POOLS,
    orthogonal_part,
    pooled_direction,
    shifted_at_length,
    text_attention_mask,
)
from attnctl.registry import register
from attnctl.schedule import Schedule
from attnctl.settings import check_number
from attnctl.technique import Technique
from attnctl.where import Where

EDIT, NULL = "edit", "null"
ALL = "all"

FirstWords = dict[int, tuple[int, ...]]
"""Text position of the first word, by item."""


@register("flux-space")
@dataclass(frozen=True)
class FluxSpace(Technique):
    """Add an attribute that a phrase names, and how much of it, while a picture is made.

    In the double blocks, the attention output of the image is moved along the part of the edit
    prompt's answer that is orthogonal to the empty prompt's, where the image attends to the edit
    (``fine``); the vector that modulates the text is turned towards the edit (``coarse``). Two
    added rows carry the edit prompt and the empty one through the double blocks, with the image
    tokens of the picture. The pair ``prompt=[p, p]`` with equal latents shows source and edit side
    by side; the source is never touched. To edit every picture of a run set ``target="all"``. The
    defaults are the settings reported for eyeglasses (30 steps); the code's own are 0, off.

    Attributes:
        prompt: The attribute alone, such as ``eyeglasses``; encoded by the pipeline, once a run.
            An empty one adds nothing.
        fine: How far the outputs move; 5 to 8 are reported, negative takes the attribute away,
            beyond 10 the picture tends to become another. 0 is off.
        coarse: Share of the edit in the pooled text vector, in [-1, 1]; 1 keeps nothing of the
            prompt there. 0 is off. Style edits are reported with 0.5, fine 0 and tau 0.
        tau: Level of the mask, in [0, 1]: 0 edits everywhere.
        target: Picture of the batch that is edited, from 0, or several: ``(1, 2)``, ``"1+2"``,
            ``all``.
        mask_tokens: Text positions that make the mask; by default that of the first word, as in
            the reference. ``attnctl.locate_tokens`` tells where words stand.
        mask_pool: How several of them are joined: ``mean`` or ``max``.
        where: Joint attention of double blocks where outputs move; whole layers only.
    """

    reference: ClassVar[str] = "Dalva et al., CVPR 2025, arXiv 2412.09611"
    families: ClassVar[str] = NAMES

    prompt: str = ""
    fine: float = 5.0
    coarse: float = 0.8
    tau: float = 0.5
    target: int | tuple[int, ...] | str = 1
    mask_tokens: int | tuple[int, ...] | None = None
    mask_pool: str = "mean"
    steps: Schedule = field(default=Schedule.parse("10%-"), kw_only=True)
    where: Where = field(default=Where("joint"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(f"{self.name}: prompt={self.prompt!r} must be a text")
        check_number(self.name, "fine", self.fine)
        check_number(self.name, "coarse", self.coarse, at_least=-1, at_most=1)
        check_number(self.name, "tau", self.tau, at_least=0, at_most=1)
        if self.target != ALL:
            item_numbers(self.name, "target", self.target)
        if self.mask_tokens is not None:
            _positions(self.name, self.mask_tokens)
        if self.mask_pool not in POOLS:
            hint = nearest(str(self.mask_pool), POOLS)
            raise SettingError(f"{self.name}: mask_pool={self.mask_pool!r}; {hint}")

    @property
    def targets(self) -> tuple[int, ...] | None:
        """Numbers of the edited pictures; ``None`` means all of them."""
        if self.target == ALL:
            return None
        return item_numbers(self.name, "target", self.target)

    def needs(self) -> Needs:
        rows = tuple(
            AddedRow(kind, prompt=OtherPrompt(text), items=self.targets)
            for kind, text in ((EDIT, self.prompt), (NULL, ""))
        )
        return Needs(rows=rows, couples=True, prompts=True)

    def strength_at(self, index: int, total: int | None) -> float:
        if self.fine == 0 and self.coarse == 0:
            return 0.0
        return self.steps.strength(index, total)

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        blocks = text_blocks(self.name, model)
        moved = {site.path for site in self.where.sites(model.sites)}
        double = [b.path for b in blocks if b.stage != "single"]
        if not moved & {f"{path}.attn" for path in double}:
            raise SettingError(
                f"{self.name}: where={self.where} selects no joint attention of a double block; "
                f"{model.describe_blocks()}"
            )
        if any(self.where.heads(site) is not None for site in model.sites if site.path in moved):
            raise SettingError(
                f"{self.name}: where={self.where} selects heads, but outputs move behind their "
                "projection, where there are none; leave out heads="
            )
        hooks = [ModuleHook("time_text_embed", "before", "turn_pooled")]
        for path in double:
            hooks.append(ModuleHook(f"{path}.norm1_context", "before", "modulate_text"))
            hooks.append(ModuleHook(f"{path}.attn", "before", "tie_images"))
            if f"{path}.attn" in moved:
                hooks.append(ModuleHook(f"{path}.attn", "after", "move_image"))
        for block in blocks:
            if block.stage == "single":
                hooks += [
                    ModuleHook(block.path, "skip", streams=block.streams, kind=kind)
                    for kind in (EDIT, NULL)
                ]
        return tuple(hooks)

    def begin(self, run: RunStart) -> FirstWords:
        targets = tuple(range(run.items)) if self.targets is None else self.targets
        check_items(self.name, run.items, target=targets)
        if not self.prompt.strip():
            run.warn(f"{self.name}: prompt is empty, so there is nothing to add; name an attribute")
        first: FirstWords = {}
        for item in targets:
            texts = run.prompts[item] if run.prompts else ()
            first[item] = (min((p for one in texts for p in one.word_positions), default=0),)
        return first

    def turn_pooled(self, call: ModuleCall) -> None:
        """Give the edit rows the pooled vector that modulates the text."""
        pooled = call.arguments["pooled_projection"]
        for item in call.state:
            base, edit, _ = self._places(call, pooled, item)
            if len(edit):
                share = self.coarse * call.strength
                turned = pooled_direction(pooled[base], pooled[edit], share)
                pooled = pooled.index_copy(0, edit, turned)
        call.arguments["pooled_projection"] = pooled

    def modulate_text(self, call: ModuleCall) -> None:
        """Let all texts of a picture be modulated by the vector of its edit row."""
        name = "emb" if "emb" in call.arguments else "conditioning_embedding"
        vectors = call.arguments[name]
        for item in call.state:
            base, edit, _ = self._places(call, vectors, item)
            if len(edit):
                at = call.pick(vectors, branch="cond", item=item)
                # Rows of one batch may round differently: without a turn the base stays as it is.
                chosen = vectors[edit if self.coarse else base]
                vectors = vectors.index_copy(0, at, chosen.expand(len(at), -1))
        call.arguments[name] = vectors

    def tie_images(self, call: ModuleCall) -> None:
        """Give the added rows the image tokens of the row that they shadow."""
        image = call.arguments["hidden_states"]
        for item in call.state:
            base, edit, null = self._places(call, image, item)
            for own in (edit, null):
                if len(own):
                    image = image.index_copy(0, own, image[base])
        call.arguments["hidden_states"] = image

    def move_image(self, call: ModuleCall) -> None:
        """Move the image's attention output along the edit, at its length."""
        image = call.output[0]
        for item in call.state:
            base, edit, null = self._places(call, image, item)
            if not len(edit) or self.fine == 0:
                continue
            along = orthogonal_part(image[edit], image[null])
            shift = self.fine * call.strength * self._mask(call, base, edit, item) * along
            at = call.pick(image, branch="cond", item=item)
            at = at[~torch.isin(at, torch.cat([edit, null]))]
            moved = shifted_at_length(image[at], shift.expand(len(at), -1, -1))
            image = image.index_copy(0, at, moved)
        call.output = (image, *call.output[1:])

    def _mask(self, call: ModuleCall, base: Tensor, edit: Tensor, item: int) -> Tensor | float:
        """Where the image attends to the edit prompt, ``(1, N, 1)``."""
        if self.tau == 0:
            return 1.0
        attn = call.module
        query = _heads(attn, attn.to_q(call.arguments["hidden_states"][base]), attn.norm_q)
        text = call.arguments["encoder_hidden_states"][edit]
        key = _heads(attn, attn.add_k_proj(text), attn.norm_added_k)
        tokens = call.state[item]
        if self.mask_tokens is not None:
            tokens = _positions(self.name, self.mask_tokens)
        if max(tokens) >= key.shape[2]:
            raise SettingError(
                f"{self.name}: mask_tokens={self.mask_tokens!r}; the text has {key.shape[2]} "
                "positions, counted from 0"
            )
        return text_attention_mask(query, key, tokens, self.tau, self.mask_pool)

    @staticmethod
    def _places(call: ModuleCall, tensor: Tensor, item: int) -> tuple[Tensor, Tensor, Tensor]:
        """Batch indices of a picture's own conditional row, its edit row and its null row."""
        return (
            call.pick(tensor, branch="cond", kind="main", item=item),
            call.pick(tensor, kind=EDIT, item=item),
            call.pick(tensor, kind=NULL, item=item),
        )


def _heads(attn: Any, projected: Tensor, norm: Any) -> Tensor:
    """Split a projection into heads and normalise them: ``(B, H, tokens, D)``."""
    split = projected.unflatten(-1, (attn.heads, -1))
    return (split if norm is None else norm(split)).transpose(1, 2)


def _positions(technique: str, value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list | tuple) else [value]
    if listed and all(isinstance(p, int) and not isinstance(p, bool) and p >= 0 for p in listed):
        return tuple(listed)
    raise SettingError(
        f"{technique}: mask_tokens={value!r} must be positions of the text from 0, such as (0, 1)"
    )
