"""L2 attention of short sequences: one program has a (batch, head), its keys held throughout; one launch an order.

The floor is that of `kernels_tiled.py` less O and the row sums, which no derivative needs here: with every key at hand
the softmax and D, the row sum of P dP, are done again, exactly. Every input is read once, every result written once.

Keys are held in two blocks, FIRST and REST long (REST may be 0), because lengths just above a power of two are what
transformers have: 64 patches and a class token fit 64 + 16, where one block would take 128. With K = Q the forward has
the keys' blocks for queries too and loads nothing twice; the derivatives, which need the registers, walk over the
queries ROWS at a time and leave dQ in float32 for dK to take in.
"""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from vitgan_kernels.l2_attention import tiles as shapes
from vitgan_kernels.l2_attention.kernels import (
    load_tile,
    load_tokens,
    product,
    row_numbers,
    row_products,
    scores,
    second_order,
    store_lse,
    store_tokens,
    tangents,
    token_rows,
)

# The features that a product takes at once: all of them.
WHOLE: tl.constexpr = tl.constexpr(shapes.WIDEST)


@triton.jit
def load_keys(
    at_k, at_v, head, HEADS, start, M, d, e,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(k, pointers to its rows, which keys are there, v) of a block of keys: (BLOCK, D), (BLOCK, E)."""
    v = load_tokens(at_v, head, HEADS, start, M, e, E, FULL_E, BLOCK)
    return load_tokens(at_k, head, HEADS, start, M, d, D, FULL_D, BLOCK) + (v[0],)  # noqa: RUF005 Triton's tuples


@triton.jit
def store_key_gradients(
    at_dq, at_dk, at_dv, dk, dv, head, HEADS, start, M, d, e,
    D: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
):  # fmt: skip
    """dK and dV of a block of keys; with TIED, dQ, which this program left in float32, is added to dK."""
    if TIED:
        present = start + tl.arange(0, dk.shape[0]) < M
        dk += load_tile(token_rows(at_dq, head, HEADS, start, dk.shape[0]), present, d, D, FULL_D)
    store_tokens(at_dk, dk, head, HEADS, start, M, d, FULL_D)
    store_tokens(at_dv, dv, head, HEADS, start, M, e, FULL_E)


@triton.jit
def attend(
    query, first, rest, at_out, LSE, PLANE, head, HEADS, start, N, scale, score_scale, d, e,
    FULL_E: tl.constexpr, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """O and the log-sum-exp of a block of queries (q, q_rows, valid) and the two blocks of keys."""
    score, _, _ = scores(query, first, scale, score_scale, d, EUCLIDEAN, WHOLE, PRECISION)  # (rows, FIRST)
    highest = tl.max(score, 1)
    if REST > 0:
        score_rest, _, _ = scores(query, rest, scale, score_scale, d, EUCLIDEAN, WHOLE, PRECISION)  # (rows, REST)
        highest = tl.maximum(highest, tl.max(score_rest, 1))
    v = first[3]
    p = tl.exp2(score - highest[:, None])
    total = tl.sum(p, 1)
    out = product(p.to(v.dtype), v, PRECISION)  # (rows, E)
    if REST > 0:
        p = tl.exp2(score_rest - highest[:, None])
        total += tl.sum(p, 1)
        out += product(p.to(v.dtype), rest[3], PRECISION)
    store_tokens(at_out, out / total[:, None], head, HEADS, start, N, e, FULL_E)
    store_lse(LSE, PLANE, row_numbers(head, N, start, out.shape[0]), query[2], highest, total)


@triton.jit
def forward(
    Q, K, V, OUT, LSE,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """O and the log-sum-exp of a (batch, head)."""
    head = tl.program_id(0)
    at_k, at_v, at_out = (K, k_b, k_h, k_n), (V, v_b, v_h, v_n), (OUT, o_b, o_h, o_n)
    first = load_keys(at_k, at_v, head, HEADS, 0, M, d, e, D, E, FULL_D, FULL_E, FIRST)
    rest = first
    if REST > 0:
        rest = load_keys(at_k, at_v, head, HEADS, FIRST, M, d, e, D, E, FULL_D, FULL_E, REST)
    if TIED:
        attend(first, first, rest, at_out, LSE, PLANE, head, HEADS, 0, N, scale, score_scale, d, e,
               FULL_E, EUCLIDEAN, PRECISION, REST)  # fmt: skip
        if REST > 0:
            attend(rest, first, rest, at_out, LSE, PLANE, head, HEADS, FIRST, N, scale, score_scale, d, e,
                   FULL_E, EUCLIDEAN, PRECISION, REST)  # fmt: skip
    else:
        for start in range(0, N, ROWS):
            query = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)  # (ROWS, D)
            attend(query, first, rest, at_out, LSE, PLANE, head, HEADS, start, N, scale, score_scale, d, e,
                   FULL_E, EUCLIDEAN, PRECISION, REST)  # fmt: skip


@triton.jit
def score_tiles(
    query, first, rest, scale, score_scale, d, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """(P, slope, 1 / squared distance) of a block of queries and each of the two blocks of keys.

    With every key at hand the softmax is done again, instead of by the log-sum-exp: rows sum to 1 to the last digit.
    """
    valid = query[2]
    score, slope, inverse = scores(query, first, scale, score_scale, d, EUCLIDEAN, WHOLE, PRECISION)
    highest = tl.max(score, 1)
    if REST > 0:
        score_r, slope_r, inverse_r = scores(query, rest, scale, score_scale, d, EUCLIDEAN, WHOLE, PRECISION)
        highest = tl.maximum(highest, tl.max(score_r, 1))
    p = tl.where(valid[:, None], tl.exp2(score - highest[:, None]), 0.0)
    total = tl.sum(p, 1)
    tiles_r = (p, slope, inverse)
    if REST > 0:
        p_r = tl.where(valid[:, None], tl.exp2(score_r - highest[:, None]), 0.0)
        total += tl.sum(p_r, 1)
    share = 1.0 / tl.where(valid, total, 1.0)
    if REST > 0:
        tiles_r = (p_r * share[:, None], slope_r, inverse_r)
    return (p * share[:, None], slope, inverse), tiles_r


@triton.jit
def pull(query, key, tiles, dp, delta, dk, dv, PRECISION: tl.constexpr):
    """What a block of queries and a block of keys give each other: dQ of the one, dK and dV, added to, of the other.

    query: (q, q_rows, valid, dO); key: (k, k_rows, present, v).
    """
    q, _, _, grad = query
    k, _, _, v = key
    p, slope, _ = tiles
    dv += product(tl.trans(p.to(v.dtype)), grad, PRECISION)
    e = (slope * (p * (dp - delta[:, None]))).to(k.dtype)
    weights = e.to(tl.float32)
    dk += tl.sum(weights, 0)[:, None] * k.to(tl.float32) - product(tl.trans(e), q, PRECISION)
    dq = tl.sum(weights, 1)[:, None] * q.to(tl.float32) - product(e, k, PRECISION)
    return dq, dk, dv


@triton.jit
def backward(
    G, Q, K, V, DQ, DK, DV,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """dQ, dK and dV of a (batch, head); G is dO. With TIED, DQ is scratch in float32, which dK takes in."""
    head = tl.program_id(0)
    at_k, at_v = (K, k_b, k_h, k_n), (V, v_b, v_h, v_n)
    at_dq, at_dk, at_dv = (DQ, dq_b, dq_h, dq_n), (DK, dk_b, dk_h, dk_n), (DV, dv_b, dv_h, dv_n)
    first = load_keys(at_k, at_v, head, HEADS, 0, M, d, e, D, E, FULL_D, FULL_E, FIRST)
    rest = first
    dk = tl.zeros((FIRST, D), tl.float32)
    dv = tl.zeros((FIRST, E), tl.float32)
    if REST > 0:
        rest = load_keys(at_k, at_v, head, HEADS, FIRST, M, d, e, D, E, FULL_D, FULL_E, REST)
        dk_r = tl.zeros((REST, D), tl.float32)
        dv_r = tl.zeros((REST, E), tl.float32)
    for start in range(0, N, ROWS):
        q, q_rows, valid = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)  # (ROWS, D)
        grad = load_tokens((G, g_b, g_h, g_n), head, HEADS, start, N, e, E, FULL_E, ROWS)[0]  # (ROWS, E)
        query = (q, q_rows, valid, grad)
        tiles, tiles_r = score_tiles(query, first, rest, scale, score_scale, d, EUCLIDEAN, PRECISION, REST)
        dp = product(grad, tl.trans(first[3]), PRECISION)  # (ROWS, FIRST)
        delta = tl.sum(tiles[0] * dp, 1)
        if REST > 0:
            dp_r = product(grad, tl.trans(rest[3]), PRECISION)  # (ROWS, REST)
            delta += tl.sum(tiles_r[0] * dp_r, 1)
        dq, dk, dv = pull(query, first, tiles, dp, delta, dk, dv, PRECISION)
        if REST > 0:
            dq_r, dk_r, dv_r = pull(query, rest, tiles_r, dp_r, delta, dk_r, dv_r, PRECISION)
            dq += dq_r
        store_tokens(at_dq, dq, head, HEADS, start, N, d, FULL_D)
    if TIED:
        tl.debug_barrier()  # the rows of DQ were written by other threads of this program
    store_key_gradients(at_dq, at_dk, at_dv, dk, dv, head, HEADS, 0, M, d, e, D, FULL_D, FULL_E, TIED)
    if REST > 0:
        store_key_gradients(at_dq, at_dk, at_dv, dk_r, dv_r, head, HEADS, FIRST, M, d, e, D, FULL_D, FULL_E, TIED)


@triton.jit
def tangent_tiles(query, key, PRECISION: tl.constexpr):
    """dP, y and X of a block of queries (q, _, _, dO, a, q . a) and one of keys (k, _, _, v, b, c, k . b)."""
    q, _, _, grad, a, qa = query
    k, _, _, v, b, c, kb = key
    y = tangents((q,), (a,), qa, (k,), (b,), kb, 0, WHOLE, PRECISION)
    return product(grad, tl.trans(v), PRECISION), y, product(grad, tl.trans(c), PRECISION)


@triton.jit
def second_pull(query, key, tiles, more, delta, g, w, dk, dv, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr):
    """The second order of `pull`: ddO and dQ2 of the queries, dK2 and dV2, added to, of the keys."""
    q, _, _, grad, a, _ = query
    k, _, _, v, b, c, _ = key
    p, slope, inverse = tiles
    dp, y, x = more
    r, e, f = second_order(p, dp, y, x, slope, inverse, delta, g, w, EUCLIDEAN)
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
def row_means(tiles, more, delta):
    """g and w over a block of keys."""
    p, slope, _ = tiles
    dp, y, x = more
    tangent = slope * y
    return tl.sum(p * tangent, 1), tl.sum(p * ((dp - delta[:, None]) * tangent + x), 1)


@triton.jit
def second_rows(
    query, first, rest, dk, dv, dk_r, dv_r, scale, score_scale, d,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """The second order of a block of queries and all keys."""
    tiles, tiles_r = score_tiles(query, first, rest, scale, score_scale, d, EUCLIDEAN, PRECISION, REST)
    more = tangent_tiles(query, first, PRECISION)
    delta = tl.sum(tiles[0] * more[0], 1)
    if REST > 0:
        more_r = tangent_tiles(query, rest, PRECISION)
        delta += tl.sum(tiles_r[0] * more_r[0], 1)
    g, w = row_means(tiles, more, delta)
    if REST > 0:
        g_r, w_r = row_means(tiles_r, more_r, delta)
        g += g_r
        w += w_r
    ddo, dq, dk, dv = second_pull(query, first, tiles, more, delta, g, w, dk, dv, EUCLIDEAN, PRECISION)
    if REST > 0:
        ddo_r, dq_r, dk_r, dv_r = second_pull(
            query, rest, tiles_r, more_r, delta, g, w, dk_r, dv_r, EUCLIDEAN, PRECISION
        )
        ddo += ddo_r
        dq += dq_r
    return ddo, dq, dk, dv, dk_r, dv_r


@triton.jit
def load_second_keys(
    at_b, at_c, at_k, at_v, head, HEADS, start, M, d, e,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`load_keys`, then (b, c, k . b)."""
    keys = load_keys(at_k, at_v, head, HEADS, start, M, d, e, D, E, FULL_D, FULL_E, BLOCK)
    b = load_tokens(at_b, head, HEADS, start, M, d, D, FULL_D, BLOCK)[0]
    c = load_tokens(at_c, head, HEADS, start, M, e, E, FULL_E, BLOCK)[0]
    return keys + (b, c, row_products(keys[0], b))  # noqa: RUF005 Triton's tuples


@triton.jit
def double_backward(
    A, B, C, G, Q, K, V, DDO, DQ, DK, DV,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    ddo_b, ddo_h, ddo_n, dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """ddO, dQ2, dK2 and dV2 of a (batch, head). With TIED, DQ is scratch in float32, which dK2 takes in."""
    head = tl.program_id(0)
    at_b, at_c, at_k, at_v = (B, b_b, b_h, b_n), (C, c_b, c_h, c_n), (K, k_b, k_h, k_n), (V, v_b, v_h, v_n)
    at_dq, at_dk, at_dv = (DQ, dq_b, dq_h, dq_n), (DK, dk_b, dk_h, dk_n), (DV, dv_b, dv_h, dv_n)
    first = load_second_keys(at_b, at_c, at_k, at_v, head, HEADS, 0, M, d, e, D, E, FULL_D, FULL_E, FIRST)
    dk = tl.zeros((FIRST, D), tl.float32)
    dv = tl.zeros((FIRST, E), tl.float32)
    rest, dk_r, dv_r = first, dk, dv
    if REST > 0:
        rest = load_second_keys(at_b, at_c, at_k, at_v, head, HEADS, FIRST, M, d, e, D, E, FULL_D, FULL_E, REST)
        dk_r = tl.zeros((REST, D), tl.float32)
        dv_r = tl.zeros((REST, E), tl.float32)
    for start in range(0, N, ROWS):
        q, q_rows, valid = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)  # (ROWS, D)
        a = load_tokens((A, a_b, a_h, a_n), head, HEADS, start, N, d, D, FULL_D, ROWS)[0]
        grad = load_tokens((G, g_b, g_h, g_n), head, HEADS, start, N, e, E, FULL_E, ROWS)[0]  # (ROWS, E)
        query = (q, q_rows, valid, grad, a, row_products(q, a))
        ddo, dq, dk, dv, dk_r, dv_r = second_rows(
            query, first, rest, dk, dv, dk_r, dv_r, scale, score_scale, d, EUCLIDEAN, PRECISION, REST
        )
        store_tokens((DDO, ddo_b, ddo_h, ddo_n), ddo, head, HEADS, start, N, e, FULL_E)
        store_tokens(at_dq, dq, head, HEADS, start, N, d, FULL_D)
    if TIED:
        tl.debug_barrier()  # the rows of DQ were written by other threads of this program
    store_key_gradients(at_dq, at_dk, at_dv, dk, dv, head, HEADS, 0, M, d, e, D, FULL_D, FULL_E, TIED)
    if REST > 0:
        store_key_gradients(at_dq, at_dk, at_dv, dk_r, dv_r, head, HEADS, FIRST, M, d, e, D, FULL_D, FULL_E, TIED)
