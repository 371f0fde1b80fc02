"""The second order of L2 attention of any length: a pass for row sums, one that owns queries and one that owns keys.

Floor and layout are those of `kernels_tiled.py`. Of its products the sums take 3 d + 2 e, the pass that owns queries
5 d + 4 e, and the pass that owns keys 5 d + 3 e.
"""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from vitgan_kernels.l2_attention.kernels import (
    inner,
    load_lse,
    load_tile,
    load_tokens,
    own_tile,
    probabilities,
    row_inner,
    row_numbers,
    scores,
    second_order,
    store_tokens,
    tangents,
    token_rows,
    weighted_sum,
    whole,
)


@triton.jit
def tile_of_pairs(
    query, key, lse, scale, score_scale, d, e, EUCLIDEAN: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """P, dP, y, X, slope and 1 / squared distance of queries (q, a, q . a, dO) and keys (k, b, v, c): (ROWS, KEYS)."""
    q, a, qa, grad = query
    k, b, v, c = key
    score, slope, inverse = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
    p = probabilities(score, lse)
    y = tangents(q, a, qa, k, b, row_inner(k, b, d, CHUNK), d, CHUNK, PRECISION)
    return p, inner(grad, v, e, CHUNK, PRECISION), y, inner(grad, c, e, CHUNK, PRECISION), slope, inverse


@triton.jit
def pulls(
    query, key, LSE, DELTA, MEAN_G, MEAN_W, PLANE, sums, scale, score_scale, d, e,
    EUCLIDEAN: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P, R, and e and f as the tensor cores take them, of queries with row sums in memory: (ROWS, KEYS) each."""
    valid = query[0][2]
    lse = load_lse(LSE, PLANE, sums, valid)
    delta = tl.load(DELTA + sums, mask=valid, other=0.0)  # (ROWS,)
    mean_g = tl.load(MEAN_G + sums, mask=valid, other=0.0)
    mean_w = tl.load(MEAN_W + sums, mask=valid, other=0.0)
    p, dp, y, x, slope, inverse = tile_of_pairs(query, key, lse, scale, score_scale, d, e, EUCLIDEAN, CHUNK, PRECISION)
    r, pull_e, pull_f = second_order(p, dp, y, x, slope, inverse, delta, mean_g, mean_w, EUCLIDEAN)
    dtype = key[0][0].dtype
    return p, r, pull_e.to(dtype), pull_f.to(dtype)


@triton.jit
def second_order_sums(
    A, B, C, G, Q, K, V, OUT, LSE, DELTA, MEAN_G, MEAN_W,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The row sums that the second order needs before its passes: D, g and w = sum P ((dP - D) G + X)."""
    head, start = own_tile(N, ROWS)
    q = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)  # (ROWS, D)
    a = load_tokens((A, a_b, a_h, a_n), head, HEADS, start, N, d, D, FULL_D, ROWS)
    grad = load_tokens((G, g_b, g_h, g_n), head, HEADS, start, N, e, E, FULL_E, ROWS)  # (ROWS, E)
    out = load_tokens((OUT, o_b, o_h, o_n), head, HEADS, start, N, e, E, FULL_E, ROWS)
    delta = row_inner(grad, out, e, CHUNK)  # (ROWS,)
    query = (q, a, row_inner(q, a, d, CHUNK), grad)
    sums = row_numbers(head, N, start, ROWS)
    lse = load_lse(LSE, PLANE, sums, q[2])
    mean_g = tl.zeros((ROWS,), tl.float32)
    mean_w = tl.zeros((ROWS,), tl.float32)
    for first in range(0, M, KEYS):
        k = load_tokens((K, k_b, k_h, k_n), head, HEADS, first, M, d, D, FULL_D, KEYS)  # (KEYS, D)
        b = load_tokens((B, b_b, b_h, b_n), head, HEADS, first, M, d, D, FULL_D, KEYS)
        v = load_tokens((V, v_b, v_h, v_n), head, HEADS, first, M, e, E, FULL_E, KEYS)  # (KEYS, E)
        c = load_tokens((C, c_b, c_h, c_n), head, HEADS, first, M, e, E, FULL_E, KEYS)
        p, dp, y, x, slope, _ = tile_of_pairs(
            query, (k, b, v, c), lse, scale, score_scale, d, e, EUCLIDEAN, CHUNK, PRECISION
        )
        tangent = slope * y
        mean_g += tl.sum(p * tangent, 1)
        mean_w += tl.sum(p * ((dp - delta[:, None]) * tangent + x), 1)
    tl.store(DELTA + sums, delta, mask=q[2])
    tl.store(MEAN_G + sums, mean_g, mask=q[2])
    tl.store(MEAN_W + sums, mean_w, mask=q[2])


@triton.jit
def second_order_rows(
    A, B, C, G, Q, K, V, LSE, DELTA, MEAN_G, MEAN_W, DDO, DQ,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    ddo_b, ddo_h, ddo_n, dq_b, dq_h, dq_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """ddO and dQ2 of a tile of queries."""
    head, start = own_tile(N, ROWS)
    q = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)  # (ROWS, D)
    a = load_tokens((A, a_b, a_h, a_n), head, HEADS, start, N, d, D, FULL_D, ROWS)
    grad = load_tokens((G, g_b, g_h, g_n), head, HEADS, start, N, e, E, FULL_E, ROWS)  # (ROWS, E)
    query = (q, a, row_inner(q, a, d, CHUNK), grad)
    sums = row_numbers(head, N, start, ROWS)
    weight_e = tl.zeros((ROWS,), tl.float32)
    weight_f = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, D), tl.float32)
    ddo = tl.zeros((ROWS, E), tl.float32)
    for first in range(0, M, KEYS):
        k = load_tokens((K, k_b, k_h, k_n), head, HEADS, first, M, d, D, FULL_D, KEYS)  # (KEYS, D)
        b = load_tokens((B, b_b, b_h, b_n), head, HEADS, first, M, d, D, FULL_D, KEYS)
        v = load_tokens((V, v_b, v_h, v_n), head, HEADS, first, M, e, E, FULL_E, KEYS)  # (KEYS, E)
        c = load_tokens((C, c_b, c_h, c_n), head, HEADS, first, M, e, E, FULL_E, KEYS)
        p, r, pull_e, pull_f = pulls(
            query, (k, b, v, c), LSE, DELTA, MEAN_G, MEAN_W, PLANE, sums, scale, score_scale, d, e,
            EUCLIDEAN, CHUNK, PRECISION,
        )  # fmt: skip
        ddo += weighted_sum(r, v, e, CHUNK, FULL_E, PRECISION)
        ddo += weighted_sum(p, c, e, CHUNK, FULL_E, PRECISION)
        weight_e += tl.sum(pull_e.to(tl.float32), 1)
        weight_f += tl.sum(pull_f.to(tl.float32), 1)
        pulled += weighted_sum(pull_e, b, d, CHUNK, FULL_D, PRECISION)
        pulled += weighted_sum(pull_f, k, d, CHUNK, FULL_D, PRECISION)
    dq = weight_e[:, None] * whole(a, d, CHUNK, FULL_D).to(tl.float32) - pulled
    dq += weight_f[:, None] * whole(q, d, CHUNK, FULL_D).to(tl.float32)
    store_tokens((DDO, ddo_b, ddo_h, ddo_n), ddo, head, HEADS, start, N, e, FULL_E)
    store_tokens((DQ, dq_b, dq_h, dq_n), dq, head, HEADS, start, N, d, FULL_D)


@triton.jit
def second_order_keys(
    A, B, C, G, Q, K, V, LSE, DELTA, MEAN_G, MEAN_W, DQ, DK, DV,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n,
    dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dK2 and dV2 of a tile of keys; with TIED, DQ, which the rows pass left in float32, is added to dK2."""
    head, start = own_tile(M, KEYS)
    k = load_tokens((K, k_b, k_h, k_n), head, HEADS, start, M, d, D, FULL_D, KEYS)  # (KEYS, D)
    b = load_tokens((B, b_b, b_h, b_n), head, HEADS, start, M, d, D, FULL_D, KEYS)
    v = load_tokens((V, v_b, v_h, v_n), head, HEADS, start, M, e, E, FULL_E, KEYS)  # (KEYS, E)
    c = load_tokens((C, c_b, c_h, c_n), head, HEADS, start, M, e, E, FULL_E, KEYS)
    weight_e = tl.zeros((KEYS,), tl.float32)
    weight_f = tl.zeros((KEYS,), tl.float32)
    pulled = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, E), tl.float32)
    for first in range(0, N, ROWS):
        q = load_tokens((Q, q_b, q_h, q_n), head, HEADS, first, N, d, D, FULL_D, ROWS)  # (ROWS, D)
        a = load_tokens((A, a_b, a_h, a_n), head, HEADS, first, N, d, D, FULL_D, ROWS)
        grad = load_tokens((G, g_b, g_h, g_n), head, HEADS, first, N, e, E, FULL_E, ROWS)  # (ROWS, E)
        query, sums = (q, a, row_inner(q, a, d, CHUNK), grad), row_numbers(head, N, first, ROWS)
        _, r, pull_e, pull_f = pulls(
            query, (k, b, v, c), LSE, DELTA, MEAN_G, MEAN_W, PLANE, sums, scale, score_scale, d, e,
            EUCLIDEAN, CHUNK, PRECISION,
        )  # fmt: skip
        dv += weighted_sum(tl.trans(r), grad, e, CHUNK, FULL_E, PRECISION)
        weight_e += tl.sum(pull_e.to(tl.float32), 0)
        weight_f += tl.sum(pull_f.to(tl.float32), 0)
        pulled += weighted_sum(tl.trans(pull_e), a, d, CHUNK, FULL_D, PRECISION)
        pulled += weighted_sum(tl.trans(pull_f), q, d, CHUNK, FULL_D, PRECISION)
    dk = weight_e[:, None] * whole(b, d, CHUNK, FULL_D).to(tl.float32) - pulled
    dk += weight_f[:, None] * whole(k, d, CHUNK, FULL_D).to(tl.float32)
    if TIED:
        dk += load_tile(token_rows((DQ, dq_b, dq_h, dq_n), head, HEADS, start, KEYS), k[2], d, D, FULL_D)
    store_tokens((DK, dk_b, dk_h, dk_n), dk, head, HEADS, start, M, d, FULL_D)
    store_tokens((DV, dv_b, dv_h, dv_n), dv, head, HEADS, start, M, e, FULL_E)
