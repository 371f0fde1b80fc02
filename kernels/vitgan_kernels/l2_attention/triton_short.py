"""L2 attention of short sequences: one program has a whole (batch, head), its keys held throughout. One launch an order.

The floor is that of `triton_tiled.py`, met in one pass: every input is read once and every result written once.

Keys are held in two blocks, FIRST and REST long (REST may be 0), because lengths just above a power of two are what
transformers have: 64 patches and a class token fit 64 + 16, where one block would take 128. With K = Q the blocks of
keys are the blocks of queries: nothing is loaded twice, and the two gradients meet in registers.
"""

import triton
import triton.language as tl

from vitgan_kernels.l2_attention.triton_tiles import (
    LOG2_E,
    load_tile,
    probabilities,
    product,
    row_products,
    scores,
    second_order,
    store_tile,
    tangents,
    token_rows,
)


@triton.jit
def attend(
    q, q_rows, valid, first, rest, scale, d, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, REST: tl.constexpr
):
    """O and the log-sum-exp of a block of queries; first, rest: (k, k_rows, present, v) of the two blocks of keys."""
    k, k_rows, present, v = first
    score, _, _ = scores(q, q_rows, valid, k, k_rows, present, scale, d, EUCLIDEAN, PRECISION)
    highest = tl.max(score, 1)
    if REST > 0:
        k, k_rows, present, v_rest = rest
        score_rest, _, _ = scores(q, q_rows, valid, k, k_rows, present, scale, d, EUCLIDEAN, PRECISION)
        highest = tl.maximum(highest, tl.max(score_rest, 1))
    p = tl.exp2(score - highest[:, None])
    total = tl.sum(p, 1)
    out = product(p.to(v.dtype), v, PRECISION)
    if REST > 0:
        p = tl.exp2(score_rest - highest[:, None])
        total += tl.sum(p, 1)
        out += product(p.to(v.dtype), v_rest, PRECISION)
    return out / total[:, None], (highest + tl.log2(total)) / LOG2_E


@triton.jit
def forward(
    Q, K, V, OUT, LSE,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    HEADS, N, M, d, e, scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """O and the log-sum-exp of a (batch, head)."""
    head = tl.program_id(0)
    LSE += head.to(tl.int64) * N
    tokens = tl.arange(0, FIRST)
    present = tokens < M
    k_rows = token_rows(K, head, HEADS, 0, tokens, k_b, k_h, k_n)
    k = load_tile(k_rows, present, d, D, FULL_D)
    v = load_tile(token_rows(V, head, HEADS, 0, tokens, v_b, v_h, v_n), present, e, E, FULL_E)
    first = (k, k_rows, present, v)
    rest = first
    if REST > 0:
        tokens_r = FIRST + tl.arange(0, REST)
        present_r = tokens_r < M
        k_rows_r = token_rows(K, head, HEADS, 0, tokens_r, k_b, k_h, k_n)
        k_r = load_tile(k_rows_r, present_r, d, D, FULL_D)
        v_r = load_tile(token_rows(V, head, HEADS, 0, tokens_r, v_b, v_h, v_n), present_r, e, E, FULL_E)
        rest = (k_r, k_rows_r, present_r, v_r)
    if TIED:
        out, lse = attend(k, k_rows, present, first, rest, scale, d, EUCLIDEAN, PRECISION, REST)
        store_tile(token_rows(OUT, head, HEADS, 0, tokens, o_b, o_h, o_n), out, present, e, E, FULL_E)
        tl.store(LSE + tokens, lse, mask=present)
        if REST > 0:
            out, lse = attend(k_r, k_rows_r, present_r, first, rest, scale, d, EUCLIDEAN, PRECISION, REST)
            store_tile(token_rows(OUT, head, HEADS, 0, tokens_r, o_b, o_h, o_n), out, present_r, e, E, FULL_E)
            tl.store(LSE + tokens_r, lse, mask=present_r)
    else:
        for start in range(0, N, ROWS):
            rows = start + tl.arange(0, ROWS)
            valid = rows < N
            q_rows = token_rows(Q, head, HEADS, 0, rows, q_b, q_h, q_n)
            q = load_tile(q_rows, valid, d, D, FULL_D)
            out, lse = attend(q, q_rows, valid, first, rest, scale, d, EUCLIDEAN, PRECISION, REST)
            store_tile(token_rows(OUT, head, HEADS, 0, rows, o_b, o_h, o_n), out, valid, e, E, FULL_E)
            tl.store(LSE + rows, lse, mask=valid)


@triton.jit
def pull(query, key, dk, dv, scale, d, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr):
    """What a block of queries and a block of keys give each other: dQ of the one, dK and dV, added to, of the other.

    query: (q, q_rows, valid, dO, lse, D); key: (k, k_rows, present, v).
    """
    q, q_rows, valid, grad, lse, delta = query
    k, k_rows, present, v = key
    score, slope, _ = scores(q, q_rows, valid, k, k_rows, present, scale, d, EUCLIDEAN, PRECISION)
    p = probabilities(score, lse)
    dv += product(tl.trans(p.to(v.dtype)), grad, PRECISION)
    e = (slope * (p * (product(grad, tl.trans(v), PRECISION) - delta[:, None]))).to(k.dtype)
    weights = e.to(tl.float32)
    dk += tl.sum(weights, 0)[:, None] * k.to(tl.float32) - product(tl.trans(e), q, PRECISION)
    dq = tl.sum(weights, 1)[:, None] * q.to(tl.float32) - product(e, k, PRECISION)
    return dq, dk, dv


@triton.jit
def backward(
    G, Q, K, V, OUT, LSE, DQ, DK, DV,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr,
    TIED: tl.constexpr, WHOLE: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """dQ, dK and dV of a (batch, head); G is dO. With TIED, dK takes dQ in.

    WHOLE, for TIED only: the blocks of queries are those of keys, and DQ is not touched; else DQ is scratch in float32.
    """
    head = tl.program_id(0)
    LSE += head.to(tl.int64) * N
    tokens = tl.arange(0, FIRST)
    present = tokens < M
    k_rows = token_rows(K, head, HEADS, 0, tokens, k_b, k_h, k_n)
    k = load_tile(k_rows, present, d, D, FULL_D)
    v = load_tile(token_rows(V, head, HEADS, 0, tokens, v_b, v_h, v_n), present, e, E, FULL_E)
    first = (k, k_rows, present, v)
    dk = tl.zeros((FIRST, D), tl.float32)
    dv = tl.zeros((FIRST, E), tl.float32)
    if REST > 0:
        tokens_r = FIRST + tl.arange(0, REST)
        present_r = tokens_r < M
        k_rows_r = token_rows(K, head, HEADS, 0, tokens_r, k_b, k_h, k_n)
        k_r = load_tile(k_rows_r, present_r, d, D, FULL_D)
        v_r = load_tile(token_rows(V, head, HEADS, 0, tokens_r, v_b, v_h, v_n), present_r, e, E, FULL_E)
        rest = (k_r, k_rows_r, present_r, v_r)
        dk_r = tl.zeros((REST, D), tl.float32)
        dv_r = tl.zeros((REST, E), tl.float32)
    if WHOLE:
        grad = load_tile(token_rows(G, head, HEADS, 0, tokens, g_b, g_h, g_n), present, e, E, FULL_E)
        out = load_tile(token_rows(OUT, head, HEADS, 0, tokens, o_b, o_h, o_n), present, e, E, FULL_E)
        lse = tl.load(LSE + tokens, mask=present, other=float("inf"))
        query = (k, k_rows, present, grad, lse, row_products(grad, out))
        dq, dk, dv = pull(query, first, dk, dv, scale, d, EUCLIDEAN, PRECISION)
        dk += dq
        if REST > 0:
            dq, dk_r, dv_r = pull(query, rest, dk_r, dv_r, scale, d, EUCLIDEAN, PRECISION)
            dk += dq
            grad_r = load_tile(token_rows(G, head, HEADS, 0, tokens_r, g_b, g_h, g_n), present_r, e, E, FULL_E)
            out_r = load_tile(token_rows(OUT, head, HEADS, 0, tokens_r, o_b, o_h, o_n), present_r, e, E, FULL_E)
            lse_r = tl.load(LSE + tokens_r, mask=present_r, other=float("inf"))
            query_r = (k_r, k_rows_r, present_r, grad_r, lse_r, row_products(grad_r, out_r))
            dq_r, dk, dv = pull(query_r, first, dk, dv, scale, d, EUCLIDEAN, PRECISION)
            dk_r += dq_r
            dq_r, dk_r, dv_r = pull(query_r, rest, dk_r, dv_r, scale, d, EUCLIDEAN, PRECISION)
            dk_r += dq_r
    else:
        for start in range(0, N, ROWS):
            rows = start + tl.arange(0, ROWS)
            valid = rows < N
            q_rows = token_rows(Q, head, HEADS, 0, rows, q_b, q_h, q_n)
            q = load_tile(q_rows, valid, d, D, FULL_D)
            grad = load_tile(token_rows(G, head, HEADS, 0, rows, g_b, g_h, g_n), valid, e, E, FULL_E)
            out = load_tile(token_rows(OUT, head, HEADS, 0, rows, o_b, o_h, o_n), valid, e, E, FULL_E)
            lse = tl.load(LSE + rows, mask=valid, other=float("inf"))
            query = (q, q_rows, valid, grad, lse, row_products(grad, out))
            dq, dk, dv = pull(query, first, dk, dv, scale, d, EUCLIDEAN, PRECISION)
            if REST > 0:
                more, dk_r, dv_r = pull(query, rest, dk_r, dv_r, scale, d, EUCLIDEAN, PRECISION)
                dq += more
            store_tile(token_rows(DQ, head, HEADS, 0, rows, dq_b, dq_h, dq_n), dq, valid, d, D, FULL_D)
    if TIED and not WHOLE:
        tl.debug_barrier()  # the rows of DQ were written by other threads of this program
        dk += load_tile(token_rows(DQ, head, HEADS, 0, tokens, dq_b, dq_h, dq_n), present, d, D, FULL_D)
        if REST > 0:
            dk_r += load_tile(token_rows(DQ, head, HEADS, 0, tokens_r, dq_b, dq_h, dq_n), present_r, d, D, FULL_D)
    store_tile(token_rows(DK, head, HEADS, 0, tokens, dk_b, dk_h, dk_n), dk, present, d, D, FULL_D)
    store_tile(token_rows(DV, head, HEADS, 0, tokens, dv_b, dv_h, dv_n), dv, present, e, E, FULL_E)
    if REST > 0:
        store_tile(token_rows(DK, head, HEADS, 0, tokens_r, dk_b, dk_h, dk_n), dk_r, present_r, d, D, FULL_D)
        store_tile(token_rows(DV, head, HEADS, 0, tokens_r, dv_b, dv_h, dv_n), dv_r, present_r, e, E, FULL_E)


@triton.jit
def tangent_tiles(query, key, scale, d, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr):
    """P, dP, y, X, the slope and 1 / squared distance of a block of queries and one of keys.

    query: (q, q_rows, valid, dO, lse, D, a, q . a); key: (k, k_rows, present, v, b, c, k . b).
    """
    q, q_rows, valid, grad, lse, _, a, qa = query
    k, k_rows, present, v, b, c, kb = key
    score, slope, inverse = scores(q, q_rows, valid, k, k_rows, present, scale, d, EUCLIDEAN, PRECISION)
    p = probabilities(score, lse)
    y = tangents(q, a, qa, k, b, kb, PRECISION)
    return p, product(grad, tl.trans(v), PRECISION), y, product(grad, tl.trans(c), PRECISION), slope, inverse


@triton.jit
def second_pull(query, key, tiles, mean_g, mean_w, dk, dv, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr):
    """The second order of `pull`: ddO and dQ2 of the queries, dK2 and dV2, added to, of the keys."""
    q, _, _, grad, _, delta, a, _ = query
    k, _, _, v, b, c, _ = key
    p, dp, y, x, slope, inverse = tiles
    r, e, f = second_order(p, dp, y, x, slope, inverse, delta, mean_g, mean_w, EUCLIDEAN)
    r = r.to(v.dtype)
    ddo = product(r, v, PRECISION) + product(p.to(c.dtype), c, PRECISION)
    dv += product(tl.trans(r), grad, PRECISION)
    e = e.to(k.dtype)
    weights = e.to(tl.float32)
    dq = tl.sum(weights, 1)[:, None] * a.to(tl.float32) - product(e, b, PRECISION)
    dk += tl.sum(weights, 0)[:, None] * b.to(tl.float32) - product(tl.trans(e), a, PRECISION)
    f = f.to(k.dtype)
    weights = f.to(tl.float32)
    dq += tl.sum(weights, 1)[:, None] * q.to(tl.float32) - product(f, k, PRECISION)
    dk += tl.sum(weights, 0)[:, None] * k.to(tl.float32) - product(tl.trans(f), q, PRECISION)
    return ddo, dq, dk, dv


@triton.jit
def second_rows(
    query, first, rest, dk, dv, dk_r, dv_r, scale, d,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """The second order of a block of queries and all keys."""
    delta = query[5]
    tiles = tangent_tiles(query, first, scale, d, EUCLIDEAN, PRECISION)
    tangent = tiles[4] * tiles[2]
    mean_g = tl.sum(tiles[0] * tangent, 1)
    mean_h = tl.sum(tiles[0] * (tiles[1] * tangent + tiles[3]), 1)
    if REST > 0:
        tiles_r = tangent_tiles(query, rest, scale, d, EUCLIDEAN, PRECISION)
        tangent_r = tiles_r[4] * tiles_r[2]
        mean_g += tl.sum(tiles_r[0] * tangent_r, 1)
        mean_h += tl.sum(tiles_r[0] * (tiles_r[1] * tangent_r + tiles_r[3]), 1)
    mean_w = mean_h - 2.0 * delta * mean_g
    ddo, dq, dk, dv = second_pull(query, first, tiles, mean_g, mean_w, dk, dv, EUCLIDEAN, PRECISION)
    if REST > 0:
        ddo_r, dq_r, dk_r, dv_r = second_pull(query, rest, tiles_r, mean_g, mean_w, dk_r, dv_r, EUCLIDEAN, PRECISION)
        ddo += ddo_r
        dq += dq_r
    return ddo, dq, dk, dv, dk_r, dv_r


@triton.jit
def double_backward(
    A, B, C, G, Q, K, V, OUT, LSE, DDO, DQ, DK, DV,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    ddo_b, ddo_h, ddo_n, dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """ddO, dQ2, dK2 and dV2 of a (batch, head). With TIED, DQ is scratch in float32, which dK2 takes in."""
    head = tl.program_id(0)
    LSE += head.to(tl.int64) * N
    tokens = tl.arange(0, FIRST)
    present = tokens < M
    k_rows = token_rows(K, head, HEADS, 0, tokens, k_b, k_h, k_n)
    k = load_tile(k_rows, present, d, D, FULL_D)
    v = load_tile(token_rows(V, head, HEADS, 0, tokens, v_b, v_h, v_n), present, e, E, FULL_E)
    b = load_tile(token_rows(B, head, HEADS, 0, tokens, b_b, b_h, b_n), present, d, D, FULL_D)
    c = load_tile(token_rows(C, head, HEADS, 0, tokens, c_b, c_h, c_n), present, e, E, FULL_E)
    kb = row_products(k, b)
    first = (k, k_rows, present, v, b, c, kb)
    dk = tl.zeros((FIRST, D), tl.float32)
    dv = tl.zeros((FIRST, E), tl.float32)
    rest, dk_r, dv_r = first, dk, dv
    if REST > 0:
        tokens_r = FIRST + tl.arange(0, REST)
        present_r = tokens_r < M
        k_rows_r = token_rows(K, head, HEADS, 0, tokens_r, k_b, k_h, k_n)
        k_r = load_tile(k_rows_r, present_r, d, D, FULL_D)
        v_r = load_tile(token_rows(V, head, HEADS, 0, tokens_r, v_b, v_h, v_n), present_r, e, E, FULL_E)
        b_r = load_tile(token_rows(B, head, HEADS, 0, tokens_r, b_b, b_h, b_n), present_r, d, D, FULL_D)
        c_r = load_tile(token_rows(C, head, HEADS, 0, tokens_r, c_b, c_h, c_n), present_r, e, E, FULL_E)
        kb_r = row_products(k_r, b_r)
        rest = (k_r, k_rows_r, present_r, v_r, b_r, c_r, kb_r)
        dk_r = tl.zeros((REST, D), tl.float32)
        dv_r = tl.zeros((REST, E), tl.float32)
    for start in range(0, N, ROWS):
        rows = start + tl.arange(0, ROWS)
        valid = rows < N
        q_rows = token_rows(Q, head, HEADS, 0, rows, q_b, q_h, q_n)
        q = load_tile(q_rows, valid, d, D, FULL_D)
        a = load_tile(token_rows(A, head, HEADS, 0, rows, a_b, a_h, a_n), valid, d, D, FULL_D)
        grad = load_tile(token_rows(G, head, HEADS, 0, rows, g_b, g_h, g_n), valid, e, E, FULL_E)
        out = load_tile(token_rows(OUT, head, HEADS, 0, rows, o_b, o_h, o_n), valid, e, E, FULL_E)
        lse = tl.load(LSE + rows, mask=valid, other=float("inf"))
        query = (q, q_rows, valid, grad, lse, row_products(grad, out), a, row_products(q, a))
        ddo, dq, dk, dv, dk_r, dv_r = second_rows(
            query, first, rest, dk, dv, dk_r, dv_r, scale, d, EUCLIDEAN, PRECISION, REST
        )
        store_tile(token_rows(DDO, head, HEADS, 0, rows, ddo_b, ddo_h, ddo_n), ddo, valid, e, E, FULL_E)
        store_tile(token_rows(DQ, head, HEADS, 0, rows, dq_b, dq_h, dq_n), dq, valid, d, D, FULL_D)
    if TIED:
        tl.debug_barrier()  # the rows of DQ were written by other threads of this program
        dk += load_tile(token_rows(DQ, head, HEADS, 0, tokens, dq_b, dq_h, dq_n), present, d, D, FULL_D)
        if REST > 0:
            dk_r += load_tile(token_rows(DQ, head, HEADS, 0, tokens_r, dq_b, dq_h, dq_n), present_r, d, D, FULL_D)
    store_tile(token_rows(DK, head, HEADS, 0, tokens, dk_b, dk_h, dk_n), dk, present, d, D, FULL_D)
    store_tile(token_rows(DV, head, HEADS, 0, tokens, dv_b, dv_h, dv_n), dv, present, e, E, FULL_E)
    if REST > 0:
        store_tile(token_rows(DK, head, HEADS, 0, tokens_r, dk_b, dk_h, dk_n), dk_r, present_r, d, D, FULL_D)
        store_tile(token_rows(DV, head, HEADS, 0, tokens_r, dv_b, dv_h, dv_n), dv_r, present_r, e, E, FULL_E)
