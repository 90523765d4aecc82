"""The kernel for exact columns of an attention map, summed over groups and heads as wished."""
# pyright: basic, reportArgumentType=false
# Triton's language has no types that a checker of Python could use.

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=("heads", "q_tokens", "column_count", "group_count"))
def probability_columns_forward(
    q, k, lse, groups, out,
    q_item, q_head, q_row, k_item, k_head, k_row, out_item, out_head, out_row,
    heads, q_tokens, column_count, group_count, scale_log2,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr,
    MEAN: tl.constexpr, GROUPED: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute ``exp(score - lse)`` for a block of queries; see `launch_columns`."""
    place = tl.program_id(0) * Q_BLOCK + tl.arange(0, Q_BLOCK)
    item = tl.program_id(1).to(tl.int64)
    first, own = tl.zeros([], tl.int32), heads
    if not MEAN:
        first, item, own = (tl.program_id(1) % heads).to(tl.int32), item // heads, 1
    width = tl.arange(0, PADDED)
    group = tl.arange(0, GROUPS)
    rows = (place < q_tokens)[:, None] & (width < WIDTH)[None, :]
    sums = tl.zeros([Q_BLOCK, GROUPS], tl.float32)
    out += item * out_item + first * out_head + place.to(tl.int64)[:, None] * out_row
    for start in range(0, column_count, K_BLOCK):
        column = start + tl.arange(0, K_BLOCK)
        inside = (column < column_count)[:, None]
        total = tl.zeros([Q_BLOCK, K_BLOCK], tl.float32)
        for step in range(own):
            head = first + step
            query = tl.load(
                q + item * q_item + head * q_head
                + place.to(tl.int64)[:, None] * q_row + width[None, :], rows, other=0.0,
            )  # fmt: skip
            key = tl.load(
                k + item * k_item + head * k_head
                + column.to(tl.int64)[:, None] * k_row + width[None, :],
                inside & (width < WIDTH)[None, :], other=0.0,
            )  # fmt: skip
            if WIDE:
                query, key = query.to(tl.float32), key.to(tl.float32)
            at = (item * heads + head) * q_tokens + place
            whole = tl.load(lse + at, place < q_tokens, other=0.0) * LOG2_E
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
            empty = whole == float("-inf")
            probs = tl.exp2(scores - tl.where(empty, 0.0, whole)[:, None])
            total += tl.minimum(tl.where(empty[:, None], 0.0, probs), 1.0)
        if MEAN:
            total = total / heads
        if GROUPED:
            member = tl.load(
                groups + column[:, None] * group_count + group[None, :],
                inside & (group < group_count)[None, :], other=0.0,
            )  # fmt: skip
            sums = tl.dot(total, member, sums, input_precision="ieee")
        else:
            stored = (place < q_tokens)[:, None] & (column < column_count)[None, :]
            tl.store(out + column[None, :], total, stored)
    if GROUPED:
        stored = (place < q_tokens)[:, None] & (group < group_count)[None, :]
        tl.store(out + group[None, :], sums, stored)
