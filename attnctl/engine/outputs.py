"""What a denoiser returns: the prediction in it, and the same container with another one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor


def prediction_of(output: Any) -> Tensor:
    """The prediction of a tensor, a tuple or an output object; a list of rows as one tensor."""
    if isinstance(output, Tensor):
        return output
    return torch.stack(output[0]) if isinstance(output[0], list) else output[0]


def with_prediction(output: Any, prediction: Tensor, rows: int) -> Any:
    """The same container with another prediction.

    Args:
        output: What the denoiser returned for ``rows`` rows.
        prediction: Prediction of the first of them; what else it returned is cut to these too.
        rows: Rows of the forward.
    """
    if isinstance(output, Tensor):
        return prediction

    def cut(other: Any) -> Any:
        has_rows = isinstance(other, Tensor) and other.shape[:1] == (rows,)
        return other[: len(prediction)] if has_rows else other

    as_given = list(prediction) if isinstance(output[0], list) else prediction
    if isinstance(output, tuple):
        return (as_given, *map(cut, output[1:]))
    first, *others = output.keys()
    return replace(output, **{first: as_given}, **{name: cut(output[name]) for name in others})


def joined_parts(parts: Sequence[tuple[Sequence[int], Any]], rows: int) -> Any:
    """One output of all rows, from outputs of some of them: ``(numbers of the rows, output)``."""
    outputs = [output for _, output in parts]

    def join(tensors: Sequence[Tensor]) -> Tensor:
        joined = tensors[0].new_empty((rows, *tensors[0].shape[1:]))
        for (chosen, _), tensor in zip(parts, tensors, strict=True):
            joined[torch.tensor(chosen, device=tensor.device)] = tensor
        return joined

    if isinstance(outputs[0], Tensor):
        return join(outputs)
    if isinstance(outputs[0], tuple):
        return tuple(map(join, zip(*outputs, strict=True)))
    names = list(outputs[0].keys())
    return replace(outputs[0], **{name: join([one[name] for one in outputs]) for name in names})


def with_other_channels(whole: Tensor, edited: Tensor, axis: int) -> Tensor:
    """The edited main rows, with the channels of ``whole`` that they lack behind their own."""
    rest = whole.shape[axis] - edited.shape[axis]
    if not rest:
        return edited
    behind = whole[: len(edited)].narrow(axis, edited.shape[axis], rest)
    return torch.cat([edited, behind], dim=axis)
