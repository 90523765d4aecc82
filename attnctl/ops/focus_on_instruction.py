"""Focus on Your Instruction: where an instruction points, and edits that stay there.

Source: Guo and Lin, "Focus on Your Instruction: Fine-grained and Multi-instruction Image Editing by
Attention Modulation", CVPR 2024, arXiv 2312.10113. Its code is not public; what the paper leaves
open is a choice made here, and each function says which.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.blur import gaussian_blur
from attnctl.ops.token_bias import bias_of

SIGMA = 0.5  # of the blur of word maps, in cells: 3 x 3 weights


def instruction_mask(
    word_map: Tensor, size: tuple[int, int], threshold: float, least_peak: float = 1.0
) -> Tensor:
    """Mask of the cells that the words of an instruction point at.

    Args:
        word_map: Attention to the words, ``(h, w)``; its scale does not matter.
        size: Height and width of the mask in cells.
        threshold: Least value after enhancement, which lies in [0, 1]; 0 gives a full mask, more
            than 1 an empty one.
        least_peak: A map whose largest value is less than so many times its mean points nowhere,
            and gives a full mask. From 1 on; 1 lets every map point.

    Returns:
        bool ``(H, W)``; a map that is equal everywhere gives a full mask.

    Source: mask extraction of arXiv 2312.10113: keyword map, enhancement, threshold. The
        enhancement is a choice made here: 3 x 3 blur, min-max, square, bilinear.
    """
    wide = gaussian_blur(word_map[None, None].float(), SIGMA)
    low, high = wide.min(), wide.max()
    is_flat = bool(high <= low) or bool(word_map.max() < least_peak * word_map.mean())
    if is_flat:
        return torch.ones(size, dtype=torch.bool, device=word_map.device)
    enhanced = ((wide - low) / (high - low)).square()
    sized = F.interpolate(enhanced, size, mode="bilinear", align_corners=False)
    return sized[0, 0] >= threshold


def shared_cells(masks: Tensor, members: Tensor) -> Tensor:
    """Which pixel lies in the mask of an instruction that has a word.

    Args:
        masks: Pixels of each instruction, bool ``(L, n)``.
        members: Keys of the words of each instruction, bool ``(L, K)``; a word may have several.

    Returns:
        bool ``(n, K)``.
    """
    return masks.float().T @ members.float() > 0


def instruction_bias(
    masks: Tensor, members: Tensor, gain: float, strength: float, dtype: torch.dtype
) -> Tensor:
    """Bias on the logits: words of an instruction are hidden outside its mask, and raised inside.

    Args:
        masks: Pixels of each instruction, bool ``(L, n)``.
        members: Keys of the words of each instruction, bool ``(L, K)``.
        gain: Added to the logits inside.
        strength: 1 hides; less multiplies the odds of a hidden word by ``1 - strength``, and the
            gain by ``strength``.
        dtype: Of the logits.

    Returns:
        ``(n, K)``; 0 for keys that are no word of any instruction.

    Source: cross-condition attention modulation of arXiv 2312.10113; the gain is a choice made
        here.
    """
    inside = shared_cells(masks, members)
    hidden = members.any(dim=0) & ~inside
    return bias_of(hidden, strength, dtype) + (gain * strength) * inside


def instruction_weights(masks: Tensor, weights: Tensor) -> Tensor:
    """Weight of the text guidance in each cell: the largest among the instructions that cover it.

    Args:
        masks: Cells of each instruction, bool ``(L, H, W)``.
        weights: One for each instruction, ``(L,)``.

    Returns:
        ``(H, W)``; 0 outside of all masks.

    Source: disentangled sampling of arXiv 2312.10113; the largest, not the sum, is a choice made
        here.
    """
    return (masks * weights[:, None, None]).amax(dim=0)


def focused_prediction(text: Tensor, image: Tensor, weights: Tensor) -> Tensor:
    """Let the text act by its weights: ``e_I + W (e_T - e_I)``.

    A pipeline that then computes ``e_0 + s_I (e_I - e_0) + s_T (e_T - e_I)`` gives the guidance
    ``e_0 + s_I (e_I - e_0) + s_T W (e_T - e_I)``.

    Args:
        text: Prediction with picture and text ``e_T``, ``(items, C, H, W)``.
        image: Prediction with the picture alone ``e_I``, same shape.
        weights: ``(items, 1, H, W)``.

    Returns:
        Same shape as ``text``: exactly ``e_T`` where the weight is 1, exactly ``e_I`` where it is
        0.

    Source: disentangled sampling of arXiv 2312.10113, equation for the masked guidance.
    """
    mixed = image + weights.to(text) * (text - image)
    return torch.where(weights == 1, text, torch.where(weights == 0, image, mixed))
