"""The block-sparse forward kernel, with what happens to its result before it is stored.

One program computes one block of queries of one head, which ``programs`` numbers: it walks the list
of full blocks, then the list of partial ones, and keeps a running maximum and sum (online softmax,
base 2). Numbers of blocks and of tokens are read one block ahead, so that copies of keys and values
depend on nothing of their own iteration and Triton keeps some of them under way.

Heads of a width between 64 and 96 are cut into 64 columns and a rest of 16 or 32, which spares up
to a third of the work that padding them to 128 would take.
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

# Compiling anew where one of them becomes 1 or a multiple of 16 would only halt a run.
NUMBERS = (
    *("list_item", "list_head", "longest_full", "longest_partial"),
    *("heads", "q_blocks", "q_tokens", "k_tokens", "half_width", "text", "group"),
)


@triton.jit
def _load_rows(
    base, rows, stride, FIRST: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Load COUNT columns from FIRST on of some rows, zeros outside."""
    columns = FIRST + tl.arange(0, COUNT)
    inside = (rows >= 0)[:, None] & (columns < WIDTH)[None, :]
    tile = tl.load(base + rows.to(tl.int64)[:, None] * stride + columns[None, :], inside, other=0.0)
    return tile.to(tl.float32) if WIDE else tile


@triton.jit
def _load_block(
    base, start, tokens, stride, FIRST: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr,
    K_BLOCK: tl.constexpr, HAS_ORDER: tl.constexpr, INSIDE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Load columns of a block of keys or values; INSIDE says that all its tokens exist."""
    columns = FIRST + tl.arange(0, COUNT)
    if HAS_ORDER:
        rows = base + tokens.to(tl.int64)[:, None] * stride
    else:
        rows = base + start.to(tl.int64) * stride + (tl.arange(0, K_BLOCK) * stride)[:, None]
    if INSIDE and FIRST + COUNT <= WIDTH:
        tile = tl.load(rows + columns[None, :])
    elif INSIDE:
        tile = tl.load(rows + columns[None, :], (columns < WIDTH)[None, :], other=0.0)
    else:
        inside = (tokens >= 0)[:, None] & (columns < WIDTH)[None, :]
        tile = tl.load(rows + columns[None, :], inside, other=0.0)
    return tile.to(tl.float32) if WIDE else tile


@triton.jit
def _multiply(
    query, query_rest, k, v, start, tokens, k_row, v_row,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, K_BLOCK: tl.constexpr,
    HAS_ORDER: tl.constexpr, INSIDE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the products of the queries with a block of keys, and both parts of its values."""
    key = _load_block(
        k, start, tokens, k_row, 0, MAIN, WIDTH, K_BLOCK, HAS_ORDER, INSIDE, WIDE
    )  # fmt: skip
    value = _load_block(
        v, start, tokens, v_row, 0, MAIN, WIDTH, K_BLOCK, HAS_ORDER, INSIDE, WIDE
    )  # fmt: skip
    products = tl.dot(query, tl.trans(key), input_precision="ieee")
    value_rest = value
    if REST > 0:
        key = _load_block(
            k, start, tokens, k_row, MAIN, REST, WIDTH, K_BLOCK, HAS_ORDER, INSIDE, WIDE
        )
        value_rest = _load_block(
            v, start, tokens, v_row, MAIN, REST, WIDTH, K_BLOCK, HAS_ORDER, INSIDE, WIDE
        )
        products = tl.dot(query_rest, tl.trans(key), products, input_precision="ieee")
    return products, value, value_rest


@triton.jit
def _start(index, entry, count, K_BLOCK: tl.constexpr, K_PARTS: tl.constexpr):
    """Read the first place of a part of a listed block; 0 past the end of the list."""
    block = tl.load(index + entry // K_PARTS, entry < count, other=0)
    return (block * K_PARTS + entry % K_PARTS) * K_BLOCK


@triton.jit
def _tokens(places, order, count, HAS_ORDER: tl.constexpr):
    """Turn places of the layout into tokens; -1 past the end."""
    if HAS_ORDER:
        return tl.load(order + places, places < count, other=-1)
    return tl.where(places < count, places, -1)


@triton.jit
def _seen_keys(queries, k_tokens, half_width, text, group):
    """Return the first place and the end of the keys that a query of a band sees after the text."""
    # Shifted by whole groups, so that the division never sees a negative number.
    own = (queries - text + text * group) // group - text
    first = tl.where(queries < text, 0, text + (own - half_width) * group)
    end = tl.where(queries < text, k_tokens, text + (own + half_width + 1) * group)
    return first, tl.minimum(end, k_tokens)


@triton.jit
def _allowed(
    places, tile, part, own, end, first, second, k_tokens, text,
    RULE: tl.constexpr, Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, K_PARTS: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    """Apply the rule of a partial block to its keys; see `attnctl.kernels.rules`."""
    if RULE == BAND:
        near = (places[None, :] >= own[:, None]) & (places[None, :] < end[:, None])
        return near | (places < text)[None, :]
    if RULE == SAME_ID:
        allowed = own[:, None] == tl.load(second + places, places < k_tokens, other=0)[None, :]
    else:
        row, column = tl.arange(0, Q_BLOCK), part * K_BLOCK + tl.arange(0, K_BLOCK)
        base = first + tile.to(tl.int64) * Q_BLOCK * K_BLOCK * K_PARTS
        allowed = tl.load(base + row[:, None] * K_BLOCK * K_PARTS + column[None, :]) != 0
    return allowed & (places < k_tokens)[None, :] if RAGGED else allowed


@triton.jit
def _join(
    acc, rest, top, total, products, scale_log2, value, value_rest,
    REST: tl.constexpr, MAY_BE_EMPTY: tl.constexpr,
):  # fmt: skip
    """Add one block of products of queries and keys to the running softmax (base 2)."""
    new_top = tl.maximum(top, tl.max(products, 1) * scale_log2)
    safe = tl.where(new_top == float("-inf"), 0.0, new_top) if MAY_BE_EMPTY else new_top
    weights = tl.exp2(products * scale_log2 - safe[:, None])
    fade = tl.exp2(top - safe)
    total = total * fade + tl.sum(weights, 1)
    weights = weights.to(value.dtype)
    acc = tl.dot(weights, value, acc * fade[:, None], input_precision="ieee")
    if REST > 0:
        rest = tl.dot(weights, value_rest, rest * fade[:, None], input_precision="ieee")
    return acc, rest, new_top, total


@triton.jit
def _store_part(
    acc, factor, kept, extra, out, token, extra_row, out_row,
    FIRST: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """Store columns of ``factor * acc + kept * extra``."""
    acc = acc * factor[:, None]
    if EPILOGUE != PLAIN:
        more = _load_rows(extra, token, extra_row, FIRST, COUNT, WIDTH, True).to(tl.float32)
        acc += kept * more
    columns = FIRST + tl.arange(0, COUNT)
    target = out + token.to(tl.int64)[:, None] * out_row + columns[None, :]
    stored = (token >= 0)[:, None] & (columns < WIDTH)[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), stored)


@triton.jit(do_not_specialize=NUMBERS)
def block_sparse_forward(
    q, k, v, out, lse, full_count, full_index, partial_count, partial_index, first, second, order,
    programs, extra, share,
    q_item, q_head, q_row, k_item, k_head, k_row, v_item, v_head, v_row,
    out_item, out_head, out_row, extra_item, extra_head, extra_row,
    list_item, list_head, longest_full, longest_partial,
    heads, q_blocks, q_tokens, k_tokens, scale_log2, half_width, text, group, shift,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, K_PARTS: tl.constexpr,
    RULE: tl.constexpr, HAS_FULL: tl.constexpr, HAS_ORDER: tl.constexpr, RAGGED: tl.constexpr,
    EPILOGUE: tl.constexpr, CLAMP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Attend to the listed blocks; the host side is `attnctl.kernels.triton.launch`."""
    program = tl.load(programs + tl.program_id(0))
    block, head_of_item = program % q_blocks, program // q_blocks
    item, head = (head_of_item // heads).to(tl.int64), head_of_item % heads
    place = block * Q_BLOCK + tl.arange(0, Q_BLOCK)
    token = _tokens(place, order, q_tokens, HAS_ORDER)
    q += item * q_item + head * q_head
    query = _load_rows(q, token, q_row, 0, MAIN, WIDTH, WIDE)
    query_rest = query
    k += item * k_item + head * k_head
    v += item * v_item + head * v_head
    row = item * list_item + head * list_head + block
    acc = tl.zeros([Q_BLOCK, MAIN], tl.float32)
    rest = 0.0
    if REST > 0:
        query_rest = _load_rows(q, token, q_row, MAIN, REST, WIDTH, WIDE)
        rest = tl.zeros([Q_BLOCK, REST], tl.float32)
    top = tl.full([Q_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([Q_BLOCK], tl.float32)
    blended = 0.0
    if EPILOGUE == BLEND:
        blended = tl.load(share + item * heads + head)
    steps = tl.arange(0, K_BLOCK)
    if HAS_FULL:
        index = full_index + row * longest_full
        count = tl.load(full_count + row)
        if EPILOGUE == BLEND:
            count = tl.where(blended >= 1.0, 0, count)  # nothing of the attention is left
        count *= K_PARTS
        whole = count
        if RAGGED:  # the lists rise, so a ragged block is the last one
            last = _start(index, count - K_PARTS, count, K_BLOCK, K_PARTS)
            ragged = (count > 0) & (last + K_BLOCK * K_PARTS > k_tokens)
            whole = tl.where(ragged, count - K_PARTS, count)
        start = _start(index, 0, count, K_BLOCK, K_PARTS)
        tokens = _tokens(start + steps, order, k_tokens, HAS_ORDER)
        for entry in range(whole):
            products, value, value_rest = _multiply(
                query, query_rest, k, v, start, tokens, k_row, v_row,
                WIDTH, MAIN, REST, K_BLOCK, HAS_ORDER, True, WIDE,
            )  # fmt: skip
            start = _start(index, entry + 1, count, K_BLOCK, K_PARTS)
            tokens = _tokens(start + steps, order, k_tokens, HAS_ORDER)
            acc, rest, top, total = _join(
                acc, rest, top, total, products, scale_log2, value, value_rest, REST, False
            )
        if RAGGED:
            for entry in tl.range(whole, count, num_stages=1):
                products, value, value_rest = _multiply(
                    query, query_rest, k, v, start, tokens, k_row, v_row,
                    WIDTH, MAIN, REST, K_BLOCK, HAS_ORDER, False, WIDE,
                )  # fmt: skip
                inside = (start + steps < k_tokens)[None, :]
                products = tl.where(inside, products, float("-inf"))
                acc, rest, top, total = _join(
                    acc, rest, top, total, products, scale_log2, value, value_rest, REST, False
                )
                if K_PARTS > 1:
                    start = _start(index, entry + 1, count, K_BLOCK, K_PARTS)
                    tokens = _tokens(start + steps, order, k_tokens, HAS_ORDER)
    if RULE != NO_RULE:
        index = partial_index + row * longest_partial
        count = tl.load(partial_count + row)
        if EPILOGUE == BLEND:
            count = tl.where(blended >= 1.0, 0, count)
        count *= K_PARTS
        start = _start(index, 0, count, K_BLOCK, K_PARTS)
        tokens = _tokens(start + steps, order, k_tokens, HAS_ORDER)
        tile, own, end = 0, place, place
        if RULE == BAND:
            own, end = _seen_keys(place, k_tokens, half_width, text, group)
        if RULE == SAME_ID:
            own = tl.load(first + place, place < q_tokens, other=0)
        if RULE == TILES:
            tile = tl.load(second + row * longest_partial, count > 0, other=0)
        for entry in range(count):
            places = start + steps
            products, value, value_rest = _multiply(
                query, query_rest, k, v, start, tokens, k_row, v_row,
                WIDTH, MAIN, REST, K_BLOCK, HAS_ORDER, False, WIDE,
            )  # fmt: skip
            allowed = _allowed(
                places, tile, entry % K_PARTS, own, end, first, second, k_tokens, text,
                RULE, Q_BLOCK, K_BLOCK, K_PARTS, RAGGED,
            )  # fmt: skip
            products = tl.where(allowed, products, float("-inf"))
            start = _start(index, entry + 1, count, K_BLOCK, K_PARTS)
            tokens = _tokens(start + steps, order, k_tokens, HAS_ORDER)
            if RULE == TILES:
                more = (entry + 1) // K_PARTS
                tile = tl.load(second + row * longest_partial + more, entry + 1 < count, other=0)
            acc, rest, top, total = _join(
                acc, rest, top, total, products, scale_log2, value, value_rest, REST, True
            )
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    found = tl.where(empty, float("-inf"), (top + tl.log2(total)) * LN2)
    at = head_of_item.to(tl.int64) * q_tokens + token
    inside = token >= 0
    factor, kept = 1.0 / total, shift
    if EPILOGUE == REUSE:
        weight = tl.load(share + at, inside, other=0.0) + shift
        if CLAMP:
            weight = tl.minimum(weight, 1.0)
        factor, kept = weight / total, 1.0
    if EPILOGUE == REFRESH:
        found = tl.exp(found - tl.load(share + at, inside, other=0.0))
        found = tl.where(empty, 0.0, found)
        factor, kept = -found / total, 1.0
    if EPILOGUE == BLEND:
        factor, kept = (1.0 - blended) / total, blended
    tl.store(lse + at, found, inside)
    extra += item * extra_item + head * extra_head
    out += item * out_item + head * out_head
    _store_part(
        acc, factor, kept, extra, out, token, extra_row, out_row, 0, MAIN, WIDTH, EPILOGUE
    )  # fmt: skip
    if REST > 0:
        _store_part(
            rest, factor, kept, extra, out, token, extra_row, out_row, MAIN, REST, WIDTH, EPILOGUE
        )
