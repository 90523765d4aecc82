"""What a denoiser returns: the prediction in it, and the same container with another one."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnctl.roles import Rows


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


def main_rows(rows: Rows, whole: Tensor, edited: Tensor, axis: int) -> Tensor:
    """The edited channels of the main rows, with the other channels of ``whole`` behind them."""
    rest = whole.shape[axis] - edited.shape[axis]
    if rest:
        edited = torch.cat([edited, whole.narrow(axis, edited.shape[axis], rest)], dim=axis)
    if all(row.kind == "main" for row in rows):
        return edited
    return edited[: sum(row.kind == "main" for row in rows)]
