"""Attention kernels: their records, the chooser, dense attention, probability columns."""

from attnctl.kernels.block_sparse import block_sparse_attention
from attnctl.kernels.columns import probability_columns, probability_masses
from attnctl.kernels.dense import attention, explicit_probabilities
from attnctl.kernels.kernel import Kernel, choose, list_kernels, register_kernel
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import mask_kind
from attnctl.kernels.rules import Band, Bitmask, SameId

__all__ = [
    "Band",
    "Bitmask",
    "BlockLayout",
    "Kernel",
    "SameId",
    "attention",
    "block_sparse_attention",
    "choose",
    "explicit_probabilities",
    "list_kernels",
    "mask_kind",
    "probability_columns",
    "probability_masses",
    "register_kernel",
]
