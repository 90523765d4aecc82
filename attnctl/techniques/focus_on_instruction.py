"""FocusOnInstruction: edits by instruction that stay where the instruction points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, PredictionCall, RunStart
from attnctl.chosen_heads import of_heads, on_heads
from attnctl.editing.instructions import (
    instruction_lists,
    locate_instructions,
    read_instructions,
)
from attnctl.editing.paired_rows import with_target_output
from attnctl.editing.region_masks import as_mask, plain_mask, resized_mask
from attnctl.editing.unet_maps import grid_of, map_grid
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.named_words import spread
from attnctl.ops.focus_on_instruction import (
    focused_prediction,
    instruction_bias,
    instruction_mask,
    instruction_weights,
)
from attnctl.ops.token_bias import memberships
from attnctl.registry import register
from attnctl.settings import check_number, step_of, steps_or_fraction
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where

Grid = tuple[int, int]
Masks = list[Tensor]  # one for each instruction of a picture, bool (h, w)


@dataclass(slots=True)
class _State:
    """One run: where words are, the maps so far, then masks for each picture."""

    words: list[list[tuple[int, ...]]]
    grid: Grid | None
    wanted: int
    note: Callable[[str], None]
    maps: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    steps: set[int] = field(default_factory=set[int])
    masks: list[Masks] | None = None
    cells: dict[tuple[int, Grid], Tensor] = field(default_factory=dict[tuple[int, Grid], Tensor])

    def masks_at(self, item: int, grid: Grid, device: torch.device) -> Tensor:
        """Masks of a picture at a resolution, bool ``(L, h, w)``."""
        assert self.masks is not None  # asked before
        if (item, grid) not in self.cells:
            sized = [resized_mask(mask, grid) for mask in self.masks[item]]
            self.cells[item, grid] = torch.stack(sized).to(device)
        return self.cells[item, grid]


@register("focus-on-instruction")
@dataclass(frozen=True)
class FocusOnInstruction(Technique):
    """Edit only where the instruction points, also with several instructions in one prompt.

    For InstructPix2Pix. In the first steps the attention to the words of each instruction makes a
    mask. From then on its words are hidden outside its mask, cross-attention outside of all masks
    is that of the picture without a text, and text guidance acts inside the masks alone, so that
    the rest follows the picture. The authors' code is not public: numbers are choices made here. A
    strength in ``steps`` mixes each part with plain editing.

    Attributes:
        instructions: For each instruction of the prompt the words, or token positions (BOS is 0),
            that name what it changes: a word, a phrase or a list of them; for several prompts a
            list of instructions for each. Empty: one instruction, all words of the prompt. What
            is to be added to a picture must be named by the place where it will be.
        weights: Text guidance of each instruction, in units of the pipeline's guidance scale; where
            masks overlap the largest counts. Empty: 1 for each.
        threshold: Least enhanced attention that belongs to a mask, in [0, 1].
        gamma: Added to the logits of an instruction's words inside its mask, from 0 on; it falls
            to 0 over the run.
        swap: Take the output of cross-attention outside of all masks from the picture's branch.
        collect: Steps in which the maps are collected, or a fraction of the run; at least one.
            Until then the edit is not restricted.
        least_peak: A map whose peak is less than so many times its mean points nowhere: its
            instruction, such as one of style, then acts everywhere. From 1 on; 1 is off, 1.5 a
            fair value.
        mask_grid: Height of the maps that masks are made of, in cells; by default a quarter of the
            latents' side, or the next larger one.
        masks: A mask for each instruction in place of those from attention, for all pictures:
            files, pictures or arrays, white inside; they hold from the first step on.
        where: Cross-attention layers that are read and modulated.
    """

    reference: ClassVar[str] = "Guo and Lin, CVPR 2024, arXiv 2312.10113, reconstructed"
    families: ClassVar[str] = "InstructPix2Pix: StableDiffusionInstructPix2PixPipeline"

    instructions: Any = ()
    weights: Sequence[float] = ()
    threshold: float = 0.3
    gamma: float = 0.5
    swap: bool = True
    collect: float | int = 0.1
    least_peak: float = 1.0
    mask_grid: int | None = None
    masks: Any = field(default=(), compare=False)
    where: Where = field(default=Where("cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "instructions", read_instructions(self.name, self.instructions))
        object.__setattr__(self, "collect", steps_or_fraction(self.name, "collect", self.collect))
        for name in ("weights", "masks"):
            value = getattr(self, name)
            listed = tuple(value) if isinstance(value, list | tuple) else (value,)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            object.__setattr__(self, name, listed)
            counts = {len(one) for one in instruction_lists(self.instructions)}
            if listed and counts != {len(listed)}:  # pyright: ignore[reportUnknownArgumentType]
                raise SettingError(
                    f"{self.name}: {name} has {len(listed)} entries, but there are "  # pyright: ignore[reportUnknownArgumentType]
                    f"{' and '.join(map(str, sorted(counts)))} instructions; give one for each"
                )
        for weight in self.weights:
            check_number(self.name, "weights", weight, at_least=0)
        for mask in self.masks:
            as_mask(self.name, "masks", mask)
        check_number(self.name, "threshold", self.threshold, at_least=0, at_most=1)
        check_number(self.name, "gamma", self.gamma, at_least=0)
        check_number(self.name, "least_peak", self.least_peak, at_least=1)
        if not isinstance(self.swap, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(f"{self.name}: swap={self.swap!r} must be True or False")

    def settings(self) -> dict[str, Any]:
        """Plain values; of a mask in memory its size, which cannot build it."""
        return {**super().settings(), "masks": [plain_mask(mask) for mask in self.masks]}

    def needs(self) -> Needs:
        return Needs(layout=True, prompts=True, couples=True)

    def select(self, sites: Sequence[Site], model: str) -> Where:
        here = [site for site in sites if site.kind == "cross"]
        foreign = [s for s in (self.where.sites(sites) if here else sites) if s.kind != "cross"]
        if foreign:
            raise UnsupportedModelError(
                f"{self.name} acts where the picture attends to the text alone; {foreign[0].path} "
                f"is {foreign[0].kind} attention. Select where='cross'; it supports {self.families}"
            )
        return self.where

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        for site in sites:
            layout = layouts[site]
            if layout is None or layout.text is None:
                raise UnsupportedModelError(
                    f"{self.name}: it is not known which tokens of {site.path} are text"
                )
        return sites

    def begin(self, run: RunStart) -> _State:
        layouts = {site: run.layouts[site.path] for site in run.sites}
        text = next(x.text for x in layouts.values() if x is not None)
        assert text is not None  # looked at in narrow
        lists = spread(self.name, "instructions", instruction_lists(self.instructions), run.items)
        words = [
            locate_instructions(
                self.name, one, run.prompts[i][0] if run.prompts else None, text.stop - text.start
            )
            for i, one in enumerate(lists)
        ]
        if self.masks:
            masks = [as_mask(self.name, "masks", mask) for mask in self.masks]
            return _State(words, None, 0, run.note, masks=[masks] * run.items)
        total = run.total or 1
        wanted = max(1, step_of(self.collect, total))
        active = sum(self.steps.strength(i, run.total) != 0 for i in range(total))
        if 0 < active < wanted:
            run.warn(
                f"{self.name}: collect={self.collect} takes {wanted} steps, but it acts in {active}"
                " alone, so the edit is not restricted; collect fewer"
            )
        return _State(words, map_grid(self.name, layouts, self.mask_grid), wanted, run.note)

    def edit_qkv(self, call: AttentionCall) -> None:
        state: _State = call.state
        if call.pass_.kind == "main" and not len(call.pick("image")):
            raise UnsupportedModelError(
                f"{self.name} needs a guidance branch with the picture and no text, which this "
                f"forward has not. It supports {self.families}, called with guidance_scale above 1 "
                "and image_guidance_scale from 1 on"
            )
        if state.masks is not None:
            self._modulate(call)
        elif call.pass_.kind == "main" and grid_of(call) == state.grid:
            self._collect(call)

    @torch.no_grad()
    def _collect(self, call: AttentionCall) -> None:
        """Add the attention to each instruction's words to the maps of each picture."""
        state: _State = call.state
        start = _text_of(call).start
        for item, instructions in enumerate(state.words):
            at = call.pick("cond", item, "main")
            maps: list[Tensor] = []
            for words in instructions:
                columns = call.columns([start + word for word in words], at)  # (1, H, n, words)
                mean = of_heads(columns, call.heads).mean(dim=(0, 1, 3))
                maps.append(mean.unflatten(0, grid_of(call)))
            seen = torch.stack(maps)
            state.maps[item] = state.maps[item] + seen if item in state.maps else seen

    def _modulate(self, call: AttentionCall) -> None:
        """Hide an instruction's words outside its mask, and raise them inside."""
        state: _State = call.state
        start, keys = _text_of(call).start, call.key.shape[2]
        gain = self.gamma * (1 - call.step.fraction)
        for item, instructions in enumerate(state.words):
            masks = state.masks_at(item, grid_of(call), call.query.device).flatten(1)
            at = call.pick("cond", item)
            if not len(at) or (gain == 0 and bool(masks.all())):
                continue
            members = memberships([[start + w for w in words] for words in instructions], keys)
            bias = instruction_bias(
                masks, members.to(masks.device), gain, call.strength, call.query.dtype
            )[None, None]
            call.add_bias(on_heads(bias, 0.0, call.heads, call.query.shape[1]), at)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        state: _State = call.state
        if not self.swap or state.masks is None:
            return out
        for item in range(len(state.words)):
            at, image = call.pick("cond", item), call.pick("image", item, "main")
            if len(at) and len(image):
                masks = state.masks_at(item, grid_of(call), out.device)
                inside = masks.any(dim=0).flatten()[:, None]  # (n, 1)
                swapped = torch.where(inside, out[at], out[image])
                out = with_target_output(out, at, swapped, call.strength, call.heads)
        return out

    def edit_prediction(self, call: PredictionCall) -> None:
        state: _State = call.state
        state.steps.add(call.step.index)
        if state.masks is None and len(state.steps) >= state.wanted:
            self._make_masks(state, (call.latents.shape[-2], call.latents.shape[-1]))
        if state.masks is None:
            return
        text, image = call.get("cond"), call.get("image")
        made: list[Tensor] = []
        for item, instructions in enumerate(state.words):
            masks = state.masks_at(item, (text.shape[-2], text.shape[-1]), text.device)
            own = torch.tensor(self.weights or [1.0] * len(instructions), device=text.device)
            made.append(instruction_weights(masks, own))
        weights = 1 + call.strength * (torch.stack(made)[:, None] - 1)
        call.set("cond", focused_prediction(text, image, weights))

    def _make_masks(self, state: _State, size: Grid) -> None:
        """Turn the maps of each picture into masks at the latents' size."""
        state.masks = [
            [instruction_mask(one, size, self.threshold, self.least_peak) for one in maps]
            for _, maps in sorted(state.maps.items())
        ]
        state.maps.clear()
        for item, masks in enumerate(state.masks):
            shares = ", ".join(f"{mask.float().mean().item():.0%}" for mask in masks)
            state.note(f"{self.name}: the masks of picture {item} cover {shares} of it")


def _text_of(call: AttentionCall) -> slice:
    assert call.layout is not None  # declared in needs
    assert call.layout.text is not None  # looked at in narrow
    return call.layout.text
