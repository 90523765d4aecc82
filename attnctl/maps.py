"""Attention maps of a run, gathered while it goes and asked for by word afterwards.

Source: Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention",
ACL 2023, arXiv 2210.04885. Different from its code: maps need not be square, every item of a batch
has its own, and a sum over steps is given as the mean, so that runs of any length compare.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from torch import Tensor

from attnctl.errors import LayerNotFoundError, SettingError, WordNotFoundError, nearest
from attnctl.map_prompts import (
    Prompt,
    find_positions,
    segments_of,
    token_columns,
    word_columns,
)
from attnctl.map_sums import Grid, Heads, LayerSum, Steps, steps_shown
from attnctl.ops.heat_maps import normalise_display, upscale_maps
from attnctl.tokens import PromptTokens

if TYPE_CHECKING:
    from PIL.Image import Image

Layers = str | Sequence[str] | None


class Chosen(TypedDict, total=False):
    """Which maps a question is about, and how words compare; all of it may be left out.

    Attributes:
        steps: ``(start, stop)``, stop excluded; None for all. Needs ``keep_steps``.
        layers: Paths or globs of layers; None for all.
        heads: A head or several; None for all. Needs ``keep_heads``.
        frame: Frame of a video; None for the mean over frames.
        normalize: Divide by the sum over all words first, so that words compete per cell.
    """

    steps: Steps
    layers: Layers
    heads: Heads
    frame: int | None
    normalize: bool


class AttentionMaps:
    """Sums of attention columns per item and layer, queried by word.

    Maps are kept on the device where they arise, in float32: for each layer tokens x cells, times
    heads with ``keep_heads``, times steps with ``keep_steps``.

    Args:
        tokens: The prompt of each item, or several where several text encoders share the text
            axis (Stable Diffusion 3); None where it is not known.
        keep_heads: Keep heads apart, so that ``heads=`` can be asked for.
        keep_steps: Keep steps apart, so that ``steps=`` can be asked for.
    """

    def __init__(
        self,
        tokens: Sequence[Prompt] = (),
        keep_heads: bool = False,
        keep_steps: bool = False,
    ) -> None:
        self._prompts = tuple(segments_of(prompt) for prompt in tokens)
        self._keep_heads = keep_heads
        self._keep_steps = keep_steps
        self._layers: dict[tuple[int, str, Grid], LayerSum] = {}

    def __repr__(self) -> str:
        items = len({key[0] for key in self._layers})
        sites = len({key[1] for key in self._layers})
        return f"AttentionMaps({items} items, {sites} layers, {self.calls} calls)"

    @property
    def calls(self) -> int:
        """Number of maps added so far, over items, layers and steps."""
        return sum(layer.whole.calls for layer in self._layers.values())

    @property
    def layers(self) -> list[str]:
        """Paths of the layers that gave maps, in the order of their first call."""
        return list(dict.fromkeys(path for _, path, _ in self._layers))

    @property
    def nbytes(self) -> int:
        """Memory that the maps take, in bytes."""
        return sum(layer.nbytes for layer in self._layers.values())

    def begin(self, tokens: Sequence[Prompt]) -> None:
        """Open a run: with other prompts than before all maps are dropped, else they add up."""
        prompts = tuple(segments_of(prompt) for prompt in tokens)
        if prompts != self._prompts:
            self.clear()
            self._prompts = prompts

    def clear(self) -> None:
        """Drop all maps."""
        self._layers.clear()

    def add(
        self,
        item: int,
        site_path: str,
        step_index: int,
        grid: tuple[int, int] | Grid,
        columns: Tensor,
    ) -> None:
        """Add the attention of one call onto the text tokens.

        Args:
            item: Which picture of the batch.
            site_path: Path of the attention module.
            step_index: Step of the run, from 0.
            grid: ``(h, w)`` or ``(frames, h, w)`` of the queries, row-major.
            columns: Probabilities ``(H, Q, T)``; column c belongs to token c of the prompt.

        Raises:
            SettingError: Q is not the number of cells of ``grid``, or H or T changed.
        """
        frames, height, width = grid if len(grid) == 3 else (1, *grid)
        if columns.ndim != 3 or columns.shape[1] != frames * height * width:
            raise SettingError(
                f"columns must be (heads, {frames * height * width} cells of {grid}, tokens); "
                f"got shape {tuple(columns.shape)} from {site_path!r}"
            )
        key = (item, site_path, (frames, height, width))
        if key not in self._layers:
            heads, _, tokens = columns.shape
            self._layers[key] = LayerSum(
                site_path, key[2], heads, tokens, self._keep_heads, self._keep_steps
            )
        self._layers[key].add(step_index, columns)

    def tokens(self, item: int = 0) -> list[str]:
        """List the tokens of an item's prompt, special and padding ones included.

        Raises:
            SettingError: There is no such item.
            WordNotFoundError: The prompt is not known.
        """
        return [token for segment in self._prompt(item) for token in segment.tokens]

    def positions(self, word: str, *, item: int = 0) -> list[int]:
        """Positions of a word on the text axis, all occurrences together.

        Raises:
            WordNotFoundError: The word is not in the prompt, or the prompt is not known.
        """
        return find_positions(self._prompt(item), word)

    def word(
        self, word: str, *, item: int = 0, absolute: bool = False, **chosen: Unpack[Chosen]
    ) -> Tensor:
        """Return the heat map of a word: where its tokens got attention.

        Args:
            word: A word or phrase of the prompt; ``"cat#2"`` is its second occurrence. Without a
                number the map is the mean over the tokens of all occurrences.
            item: Which picture of the batch.
            absolute: Leave out the stretch to [0, 1].
            chosen: ``steps``, ``layers``, ``heads``, ``frame``, ``normalize``; see `Chosen`.

        Returns:
            ``(H, W)`` of the largest layer's grid, float32 on the CPU, in [0, 1].

        Raises:
            WordNotFoundError: The word is not in the prompt.
            LayerNotFoundError: A name in ``layers`` matches no layer.
            SettingError: There is no such item, head or frame; nothing was recorded; or
                ``steps`` or ``heads`` were not kept apart.

        Source: arXiv 2210.04885, section 2.2 and its code (mean over layers and heads of bicubic
        upscaled maps, mean over the word's tokens, min-max).
        """
        mean = self._mean(item, self.positions(word, item=item), **chosen)
        return mean.clamp(0, 1) if absolute else normalise_display(mean)

    def token(
        self, position: int, *, item: int = 0, absolute: bool = False, **chosen: Unpack[Chosen]
    ) -> Tensor:
        """Return the heat map of one token by its position on the text axis; see `word`."""
        mean = self._mean(item, [position], **chosen)
        return mean.clamp(0, 1) if absolute else normalise_display(mean)

    def raw(
        self, word: str, *, item: int = 0, per_call: bool = True, **chosen: Unpack[Chosen]
    ) -> Tensor:
        """Return a word's map as it is: mean attention probability, no stretch, no clipping.

        Args:
            word: A word or phrase of the prompt.
            item: Which picture of the batch.
            per_call: True for the mean over calls; False for their sum, as the official code.
            chosen: As in `word`.

        Returns:
            ``(H, W)``, float32 on the CPU.
        """
        positions = self.positions(word, item=item)
        return self._mean(item, positions, per_call=per_call, **chosen)

    def overlay(
        self, image: "Image", word: str, *, item: int = 0, alpha: float = 0.65, **chosen: Any
    ) -> "Image":
        """Lay a word's heat map over a picture.

        Args:
            image: The picture of ``item``, any size.
            word: A word or phrase of the prompt.
            item: Which picture of the batch.
            alpha: 0 shows the grey picture alone, 1 the map alone.
            chosen: Further arguments of `word`.

        Returns:
            A new RGB picture of the same size.
        """
        from attnctl.sheets import overlay_heat

        return overlay_heat(image, self.word(word, item=item, **chosen).numpy(), opacity=alpha)

    def _prompt(self, item: int) -> tuple[PromptTokens, ...]:
        items = max([len(self._prompts), *(key[0] + 1 for key in self._layers)])
        if not 0 <= item < items:
            raise SettingError(f"item {item} does not exist; this run has items 0 to {items - 1}")
        prompt = self._prompts[item] if item < len(self._prompts) else ()
        if not prompt:
            raise WordNotFoundError(
                "the prompt is not known (embeddings were given): use token(position)"
            )
        return prompt

    def _mean(
        self,
        item: int,
        positions: Sequence[int],
        steps: Steps = None,
        layers: Layers = None,
        heads: Heads = None,
        frame: int | None = None,
        normalize: bool = False,
        per_call: bool = True,
    ) -> Tensor:
        """Mean map of token positions, ``(H, W)``, on the CPU."""
        found = self._chosen_layers(item, layers)
        size = max((key[2][1:] for key in self._layers if key[0] == item), key=_cells)
        prompt = self._prompts[item] if item < len(self._prompts) else ()
        offset = min((segment.offset for segment in prompt), default=0)
        columns = token_columns(positions, offset, found)
        others = word_columns(prompt, offset, found)
        total, words, weight = torch.zeros(size), torch.zeros(size), 0
        for layer in found:
            mean = layer.mean(steps, heads, frame)
            if mean is None:
                continue
            maps, calls = mean
            share = layer.weight(heads) * (1 if per_call else calls)
            total += share * upscale_maps(maps[columns].mean(dim=0), size).cpu()
            if normalize:
                words += share * upscale_maps(maps[others], size).sum(dim=0).cpu()
            weight += layer.weight(heads)
        if weight == 0:
            raise SettingError(f"no step in {steps} gave a map; {steps_shown(found)}")
        total, words = total / weight, words / weight
        return total / (words + 1e-6) if normalize else total

    def _chosen_layers(self, item: int, layers: Layers) -> list[LayerSum]:
        if not self._layers:
            raise SettingError("no maps yet: call the pipeline while HeatMaps is attached")
        known = [layer for key, layer in self._layers.items() if key[0] == item]
        if not known:
            items = sorted({key[0] for key in self._layers})
            raise SettingError(f"item {item} gave no maps; items with maps: {items}")
        if layers is None:
            return known
        patterns = [layers] if isinstance(layers, str) else list(layers)
        for pattern in patterns:
            if not any(fnmatchcase(layer.path, pattern) for layer in known):
                names = nearest(pattern, [layer.path for layer in known])
                raise LayerNotFoundError(f"no layer {pattern!r} gave maps; {names}")
        return [k for k in known if any(fnmatchcase(k.path, p) for p in patterns)]


def _cells(size: tuple[int, int]) -> int:
    return size[0] * size[1]
