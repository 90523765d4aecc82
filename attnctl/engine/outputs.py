"""What a denoiser returns: the prediction in it, and the same container with another one."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor


def prediction_of(output: Any) -> Tensor:
    """The prediction of a tensor, a tuple or an output object."""
    if isinstance(output, Tensor):
        return output
    return output[0]


def with_prediction(output: Any, prediction: Tensor) -> Any:
    """The same container with another prediction."""
    if isinstance(output, Tensor):
        return prediction
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    first = next(iter(output.keys()))
    return replace(output, **{first: prediction})


def with_other_channels(whole: Tensor, edited: Tensor, axis: int) -> Tensor:
    """The edited main rows, with the channels of ``whole`` that they lack behind their own."""
    rest = whole.shape[axis] - edited.shape[axis]
    if not rest:
        return edited
    behind = whole[: len(edited)].narrow(axis, edited.shape[axis], rest)
    return torch.cat([edited, behind], dim=axis)
