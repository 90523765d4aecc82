"""The block-sparse forward kernel, with what happens to its result before it is stored.

One program computes one block of queries of one head: it walks the list of full blocks, then the
list of partial ones, and keeps a running maximum and sum (online softmax, base 2).
"""
# pyright: basic, reportArgumentType=false
# Triton's language has no types that a checker of Python could use.

import triton
import triton.language as tl

PLAIN = tl.constexpr(0)  # out = attention
REUSE = tl.constexpr(1)  # out = (share + shift) * attention + extra
REFRESH = tl.constexpr(2)  # share = exp(lse - share), out = extra - share * attention
BLEND = tl.constexpr(3)  # out = (1 - share) * attention + share * extra, share a head
ADD = tl.constexpr(4)  # out = attention + shift * extra

NO_RULE = tl.constexpr(0)
BAND = tl.constexpr(1)
SAME_ID = tl.constexpr(2)
TILES = tl.constexpr(3)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_rows(base, rows, stride, columns, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Load rows of a tensor with a contiguous last axis, zeros outside."""
    inside = (rows >= 0)[:, None] & (columns < WIDTH)[None, :]
    tile = tl.load(base + rows.to(tl.int64)[:, None] * stride + columns[None, :], inside, other=0.0)
    return tile.to(tl.float32) if WIDE else tile


@triton.jit
def _tokens(places, order, count, HAS_ORDER: tl.constexpr):
    """Turn places of the layout into tokens; -1 past the end."""
    if HAS_ORDER:
        return tl.load(order + places, places < count, other=-1)
    return tl.where(places < count, places, -1)


@triton.jit
def _allowed(
    queries, keys, tile, first, second, q_tokens, k_tokens, half_width, text, group,
    RULE: tl.constexpr, Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr,
):  # fmt: skip
    """Apply the rule of a partial block to places; see `attnctl.kernels.rules`."""
    if RULE == BAND:
        # Shifted by whole groups, so that the division never sees a negative number.
        query_group = (queries - text + text * group) // group
        key_group = (keys - text + text * group) // group
        near = tl.abs(query_group[:, None] - key_group[None, :]) <= half_width
        return near | (queries < text)[:, None] | (keys < text)[None, :]
    if RULE == SAME_ID:
        query_ids = tl.load(first + queries, queries < q_tokens, other=0)
        key_ids = tl.load(second + keys, keys < k_tokens, other=0)
        return query_ids[:, None] == key_ids[None, :]
    row, column = tl.arange(0, Q_BLOCK), tl.arange(0, K_BLOCK)
    base = first + tile.to(tl.int64) * Q_BLOCK * K_BLOCK
    return tl.load(base + row[:, None] * K_BLOCK + column[None, :]) != 0


@triton.jit
def _join(acc, top, total, scores, value, MAY_BE_EMPTY: tl.constexpr):
    """Add one block of scores (base 2) to the running softmax."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(new_top == float("-inf"), 0.0, new_top) if MAY_BE_EMPTY else new_top
    weights = tl.exp2(scores - safe[:, None])
    fade = tl.exp2(top - safe)
    total = total * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None]
    acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
    return acc, new_top, total


@triton.jit
def block_sparse_forward(
    q, k, v, out, lse, full_count, full_index, partial_count, partial_index, first, second, order,
    extra, share,
    q_item, q_head, q_row, k_item, k_head, k_row, v_item, v_head, v_row,
    out_item, out_head, out_row, extra_item, extra_head, extra_row,
    list_item, list_head, longest_full, longest_partial,
    heads, q_tokens, k_tokens, scale_log2, half_width, text, group, shift,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr,
    RULE: tl.constexpr, HAS_FULL: tl.constexpr, HAS_ORDER: tl.constexpr, RAGGED: tl.constexpr,
    EPILOGUE: tl.constexpr, CLAMP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Attend to the listed blocks; the host side is `attnctl.kernels.triton.launch`."""
    block, head = tl.program_id(0), tl.program_id(1) % heads
    item = (tl.program_id(1) // heads).to(tl.int64)
    place = block * Q_BLOCK + tl.arange(0, Q_BLOCK)
    columns = tl.arange(0, PADDED)
    token = _tokens(place, order, q_tokens, HAS_ORDER)
    query = _load_rows(q + item * q_item + head * q_head, token, q_row, columns, WIDTH, WIDE)
    k += item * k_item + head * k_head
    v += item * v_item + head * v_head
    row = item * list_item + head * list_head + block
    acc = tl.zeros([Q_BLOCK, PADDED], tl.float32)
    top = tl.full([Q_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([Q_BLOCK], tl.float32)
    blended = 0.0
    if EPILOGUE == BLEND:
        blended = tl.load(share + item * heads + head)
    if HAS_FULL:
        count = tl.load(full_count + row)
        if EPILOGUE == BLEND:
            count = tl.where(blended >= 1.0, 0, count)  # nothing of the attention is left
        for entry in range(count):
            start = tl.load(full_index + row * longest_full + entry) * K_BLOCK
            places = start + tl.arange(0, K_BLOCK)
            tokens = _tokens(places, order, k_tokens, HAS_ORDER)
            key = _load_rows(k, tokens, k_row, columns, WIDTH, WIDE)
            value = _load_rows(v, tokens, v_row, columns, WIDTH, WIDE)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
            if RAGGED:
                scores = tl.where((places < k_tokens)[None, :], scores, float("-inf"))
            acc, top, total = _join(acc, top, total, scores, value, False)
    if RULE != NO_RULE:
        count = tl.load(partial_count + row)
        if EPILOGUE == BLEND:
            count = tl.where(blended >= 1.0, 0, count)
        for entry in range(count):
            listed = row * longest_partial + entry
            places = tl.load(partial_index + listed) * K_BLOCK + tl.arange(0, K_BLOCK)
            tile = tl.load(second + listed) if RULE == TILES else 0
            tokens = _tokens(places, order, k_tokens, HAS_ORDER)
            key = _load_rows(k, tokens, k_row, columns, WIDTH, WIDE)
            value = _load_rows(v, tokens, v_row, columns, WIDTH, WIDE)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
            allowed = _allowed(
                place, places, tile, first, second, q_tokens, k_tokens, half_width, text, group,
                RULE, Q_BLOCK, K_BLOCK,
            )  # fmt: skip
            allowed = allowed & (places < k_tokens)[None, :]
            scores = tl.where(allowed, scores, float("-inf"))
            acc, top, total = _join(acc, top, total, scores, value, True)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    acc = acc / total[:, None]
    found = tl.where(empty, float("-inf"), (top + tl.log2(total)) * LN2)
    at = tl.program_id(1).to(tl.int64) * q_tokens + token
    inside = token >= 0
    if EPILOGUE != PLAIN:
        base = extra + item * extra_item + head * extra_head
        more = _load_rows(base, token, extra_row, columns, WIDTH, True).to(tl.float32)
        if EPILOGUE == REUSE:
            weight = tl.load(share + at, inside, other=0.0) + shift
            if CLAMP:
                weight = tl.minimum(weight, 1.0)
            acc = weight[:, None] * acc + more
        if EPILOGUE == REFRESH:
            found = tl.exp(found - tl.load(share + at, inside, other=0.0))
            found = tl.where(empty, 0.0, found)
            acc = more - found[:, None] * acc
        if EPILOGUE == BLEND:
            acc = (1.0 - blended) * acc + blended * more
        if EPILOGUE == ADD:
            acc = acc + shift * more
    tl.store(lse + at, found, inside)
    out += item * out_item + head * out_head
    target = out + token.to(tl.int64)[:, None] * out_row + columns[None, :]
    stored = inside[:, None] & (columns < WIDTH)[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), stored)
