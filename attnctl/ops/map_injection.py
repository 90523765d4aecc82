"""Prompt-to-Prompt: columns of a source's cross-attention map in the map of a target."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnctl.ops.prompt_alignment import Refinement


@dataclass(frozen=True, slots=True)
class MapEdit:
    """How the map of a source becomes that of a target.

    Attributes:
        mapping: ``(T, T)`` for swapped words, a `Refinement` for added ones, ``None`` for the
            source's columns as they are.
        weights: Factor of each target token, ``(T,)``.
    """

    mapping: Tensor | Refinement | None
    weights: Tensor

    @property
    def is_plain(self) -> bool:
        """Whether the source's map is taken as it is, so that its query and key do the same."""
        if not bool((self.weights == 1).all()):
            return False
        if isinstance(self.mapping, Refinement):
            own = torch.arange(len(self.mapping.index))
            return bool((self.mapping.is_aligned == 1).all() and (self.mapping.index == own).all())
        return self.mapping is None or torch.equal(self.mapping, torch.eye(len(self.mapping)))


def edited_map(source: Tensor, target: Tensor, edit: MapEdit) -> Tensor:
    """Build the map that is injected.

    Args:
        source: Probabilities of the source, ``(B, H, Q, T)``.
        target: Probabilities of the target, same shape.
        edit: The word alignment and weights.

    Returns:
        Same shape; rows need not sum to 1.

    Source: Hertz et al., arXiv 2208.01626, section 3.2 (swap, refinement, re-weighting).
    """
    mapping = edit.mapping
    if isinstance(mapping, Refinement):
        aligned = mapping.is_aligned.to(source)
        taken = source[..., mapping.index.to(source.device)]
        base = aligned * taken + (1 - aligned) * target
    else:
        base = source if mapping is None else source @ mapping.to(source)
    return base * edit.weights.to(source)


def inject_map(
    source: Tensor,
    target: Tensor,
    edit: MapEdit,
    window: Tensor,
    *,
    strength: float = 1.0,
    renormalise: bool = False,
) -> Tensor:
    """Mix the edited map into the target's, token by token.

    Args:
        source: Probabilities of the source, ``(B, H, Q, T)``.
        target: Probabilities of the target, same shape.
        edit: The word alignment and weights.
        window: 1 for tokens whose columns are injected at this step, ``(T,)``.
        strength: How far, unitless; 0 keeps the target's map, 1 is the reference.
        renormalise: Scale the rows to sum 1 again; the reference does not.
    """
    share = strength * window.to(source)
    mixed = share * edited_map(source, target, edit) + (1 - share) * target
    return mixed / mixed.sum(-1, keepdim=True).clamp_min(1e-12) if renormalise else mixed
