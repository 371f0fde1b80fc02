"""The second order of L2 attention of any length: a pass for row sums, one that owns queries and one that owns keys.

Floor and layout are those of `triton_tiled.py`. Of its products the sums take 3 d + 2 e, the pass that owns queries
5 d + 4 e, and the pass that owns keys 5 d + 3 e.
"""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from vitgan_kernels.l2_attention.triton_tiles import (
    inner,
    load_lse,
    load_tile,
    load_tokens,
    probabilities,
    row_inner,
    scores,
    second_order,
    store_tile,
    tangents,
    token_rows,
    weighted_sum,
    whole,
)


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
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    a = load_tokens(A, head, HEADS, start, rows, valid, a_b, a_h, a_n, d, D, FULL_D)
    q = load_tokens(Q, head, HEADS, start, rows, valid, q_b, q_h, q_n, d, D, FULL_D)
    grad = load_tokens(G, head, HEADS, start, rows, valid, g_b, g_h, g_n, e, E, FULL_E)
    out = load_tokens(OUT, head, HEADS, start, rows, valid, o_b, o_h, o_n, e, E, FULL_E)
    delta = row_inner(grad, out, e, CHUNK)
    qa = row_inner(q, a, d, CHUNK)
    sums = head.to(tl.int64) * N + start + rows
    lse = load_lse(LSE, PLANE, sums, valid)
    mean_g = tl.zeros((ROWS,), tl.float32)
    mean_w = tl.zeros((ROWS,), tl.float32)
    keys = tl.arange(0, KEYS)
    for first in range(0, M, KEYS):
        present = first + keys < M
        k = load_tokens(K, head, HEADS, first, keys, present, k_b, k_h, k_n, d, D, FULL_D)
        b = load_tokens(B, head, HEADS, first, keys, present, b_b, b_h, b_n, d, D, FULL_D)
        v = load_tokens(V, head, HEADS, first, keys, present, v_b, v_h, v_n, e, E, FULL_E)
        c = load_tokens(C, head, HEADS, first, keys, present, c_b, c_h, c_n, e, E, FULL_E)
        score, slope, _ = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        p = probabilities(score, lse)
        tangent = slope * tangents(q, a, qa, k, b, row_inner(k, b, d, CHUNK), d, CHUNK, PRECISION)
        mean_g += tl.sum(p * tangent, 1)
        dp = inner(grad, v, e, CHUNK, PRECISION)
        x = inner(grad, c, e, CHUNK, PRECISION)
        mean_w += tl.sum(p * ((dp - delta[:, None]) * tangent + x), 1)
    tl.store(DELTA + sums, delta, mask=valid)
    tl.store(MEAN_G + sums, mean_g, mask=valid)
    tl.store(MEAN_W + sums, mean_w, mask=valid)


@triton.jit
def second_order_rows(
    A, B, C, G, Q, K, V, LSE, DELTA, MEAN_G, MEAN_W, DDO, DQ,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, ddo_b, ddo_h, ddo_n, dq_b, dq_h, dq_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """ddO and dQ2 of a tile of queries."""
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    a = load_tokens(A, head, HEADS, start, rows, valid, a_b, a_h, a_n, d, D, FULL_D)
    q = load_tokens(Q, head, HEADS, start, rows, valid, q_b, q_h, q_n, d, D, FULL_D)
    grad = load_tokens(G, head, HEADS, start, rows, valid, g_b, g_h, g_n, e, E, FULL_E)
    qa = row_inner(q, a, d, CHUNK)
    sums = head.to(tl.int64) * N + start + rows
    lse = load_lse(LSE, PLANE, sums, valid)
    delta = tl.load(DELTA + sums, mask=valid, other=0.0)
    mean_g = tl.load(MEAN_G + sums, mask=valid, other=0.0)
    mean_w = tl.load(MEAN_W + sums, mask=valid, other=0.0)
    weight_e = tl.zeros((ROWS,), tl.float32)
    weight_f = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, D), tl.float32)
    ddo = tl.zeros((ROWS, E), tl.float32)
    keys = tl.arange(0, KEYS)
    for first in range(0, M, KEYS):
        present = first + keys < M
        k = load_tokens(K, head, HEADS, first, keys, present, k_b, k_h, k_n, d, D, FULL_D)
        b = load_tokens(B, head, HEADS, first, keys, present, b_b, b_h, b_n, d, D, FULL_D)
        v = load_tokens(V, head, HEADS, first, keys, present, v_b, v_h, v_n, e, E, FULL_E)
        c = load_tokens(C, head, HEADS, first, keys, present, c_b, c_h, c_n, e, E, FULL_E)
        score, slope, inverse = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        p = probabilities(score, lse)
        y = tangents(q, a, qa, k, b, row_inner(k, b, d, CHUNK), d, CHUNK, PRECISION)
        dp = inner(grad, v, e, CHUNK, PRECISION)
        x = inner(grad, c, e, CHUNK, PRECISION)
        r, pull_e, pull_f = second_order(p, dp, y, x, slope, inverse, delta, mean_g, mean_w, EUCLIDEAN)
        ddo += weighted_sum(r, v, e, CHUNK, FULL_E, PRECISION)
        ddo += weighted_sum(p, c, e, CHUNK, FULL_E, PRECISION)
        pull_e, pull_f = pull_e.to(k[0].dtype), pull_f.to(k[0].dtype)
        weight_e += tl.sum(pull_e.to(tl.float32), 1)
        weight_f += tl.sum(pull_f.to(tl.float32), 1)
        pulled += weighted_sum(pull_e, b, d, CHUNK, FULL_D, PRECISION)
        pulled += weighted_sum(pull_f, k, d, CHUNK, FULL_D, PRECISION)
    dq = weight_e[:, None] * whole(a, d, CHUNK, FULL_D).to(tl.float32) - pulled
    dq += weight_f[:, None] * whole(q, d, CHUNK, FULL_D).to(tl.float32)
    store_tile(token_rows(DDO, head, HEADS, start, rows, ddo_b, ddo_h, ddo_n), ddo, valid, e, E, FULL_E)
    store_tile(token_rows(DQ, head, HEADS, start, rows, dq_b, dq_h, dq_n), dq, valid, d, D, FULL_D)


@triton.jit
def second_order_keys(
    A, B, C, G, Q, K, V, LSE, DELTA, MEAN_G, MEAN_W, DQ, DK, DV,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dK2 and dV2 of a tile of keys; with TIED, DQ, which the rows pass left in float32, is added to dK2."""
    tiles = tl.cdiv(M, KEYS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * KEYS
    keys = tl.arange(0, KEYS)
    present = start + keys < M
    k = load_tokens(K, head, HEADS, start, keys, present, k_b, k_h, k_n, d, D, FULL_D)
    b = load_tokens(B, head, HEADS, start, keys, present, b_b, b_h, b_n, d, D, FULL_D)
    v = load_tokens(V, head, HEADS, start, keys, present, v_b, v_h, v_n, e, E, FULL_E)
    c = load_tokens(C, head, HEADS, start, keys, present, c_b, c_h, c_n, e, E, FULL_E)
    kb = row_inner(k, b, d, CHUNK)
    weight_e = tl.zeros((KEYS,), tl.float32)
    weight_f = tl.zeros((KEYS,), tl.float32)
    pulled = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, E), tl.float32)
    rows = tl.arange(0, ROWS)
    for first in range(0, N, ROWS):
        valid = first + rows < N
        q = load_tokens(Q, head, HEADS, first, rows, valid, q_b, q_h, q_n, d, D, FULL_D)
        a = load_tokens(A, head, HEADS, first, rows, valid, a_b, a_h, a_n, d, D, FULL_D)
        grad = load_tokens(G, head, HEADS, first, rows, valid, g_b, g_h, g_n, e, E, FULL_E)
        sums = head.to(tl.int64) * N + first + rows
        lse = load_lse(LSE, PLANE, sums, valid)
        delta = tl.load(DELTA + sums, mask=valid, other=0.0)
        mean_g = tl.load(MEAN_G + sums, mask=valid, other=0.0)
        mean_w = tl.load(MEAN_W + sums, mask=valid, other=0.0)
        score, slope, inverse = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        p = probabilities(score, lse)
        y = tangents(q, a, row_inner(q, a, d, CHUNK), k, b, kb, d, CHUNK, PRECISION)
        dp = inner(grad, v, e, CHUNK, PRECISION)
        x = inner(grad, c, e, CHUNK, PRECISION)
        r, pull_e, pull_f = second_order(p, dp, y, x, slope, inverse, delta, mean_g, mean_w, EUCLIDEAN)
        dv += weighted_sum(tl.trans(r), grad, e, CHUNK, FULL_E, PRECISION)
        pull_e, pull_f = pull_e.to(k[0].dtype), pull_f.to(k[0].dtype)
        weight_e += tl.sum(pull_e.to(tl.float32), 0)
        weight_f += tl.sum(pull_f.to(tl.float32), 0)
        pulled += weighted_sum(tl.trans(pull_e), a, d, CHUNK, FULL_D, PRECISION)
        pulled += weighted_sum(tl.trans(pull_f), q, d, CHUNK, FULL_D, PRECISION)
    dk = weight_e[:, None] * whole(b, d, CHUNK, FULL_D).to(tl.float32) - pulled
    dk += weight_f[:, None] * whole(k, d, CHUNK, FULL_D).to(tl.float32)
    if TIED:
        dq_rows = token_rows(DQ, head, HEADS, start, keys, dq_b, dq_h, dq_n)
        dk += load_tile(dq_rows, present, d, D, FULL_D)
    store_tile(token_rows(DK, head, HEADS, start, keys, dk_b, dk_h, dk_n), dk, present, d, D, FULL_D)
    store_tile(token_rows(DV, head, HEADS, start, keys, dv_b, dv_h, dv_n), dv, present, e, E, FULL_E)
