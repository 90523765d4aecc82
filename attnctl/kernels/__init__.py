"""Attention kernels: records and chooser; dense, block-sparse, probability columns; patterns."""

from attnctl.kernels.block_sparse import block_sparse_attention
from attnctl.kernels.column_gradients import differentiable_columns
from attnctl.kernels.column_maps import column_maps
from attnctl.kernels.columns import probability_columns, probability_masses
from attnctl.kernels.dense import attention
from attnctl.kernels.explicit import attention_scores, explicit_probabilities
from attnctl.kernels.fused import (
    agent_attention,
    sparse_blend,
    sparse_refresh,
    sparse_reuse,
)
from attnctl.kernels.kernel import Kernel, choose, list_kernels, register_kernel
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.layout_pictures import layout_picture, layout_text
from attnctl.kernels.masks import mask_kind
from attnctl.kernels.predict import attend_by_choice, pick_by_sample, predict_layout
from attnctl.kernels.rules import Band, Bitmask, SameId

__all__ = [
    "Band",
    "Bitmask",
    "BlockLayout",
    "Kernel",
    "SameId",
    "agent_attention",
    "attend_by_choice",
    "attention",
    "attention_scores",
    "block_sparse_attention",
    "choose",
    "column_maps",
    "differentiable_columns",
    "explicit_probabilities",
    "layout_picture",
    "layout_text",
    "list_kernels",
    "mask_kind",
    "pick_by_sample",
    "predict_layout",
    "probability_columns",
    "probability_masses",
    "register_kernel",
    "sparse_blend",
    "sparse_refresh",
    "sparse_reuse",
]
