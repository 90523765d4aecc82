"""Attention kernels: their records, the chooser, dense attention, probability columns."""

from attnctl.kernels.columns import probability_columns, probability_masses
from attnctl.kernels.dense import attention, explicit_probabilities
from attnctl.kernels.kernel import Kernel, choose, list_kernels, register_kernel
from attnctl.kernels.masks import mask_kind

__all__ = [
    "Kernel",
    "attention",
    "choose",
    "explicit_probabilities",
    "list_kernels",
    "mask_kind",
    "probability_columns",
    "probability_masses",
    "register_kernel",
]
